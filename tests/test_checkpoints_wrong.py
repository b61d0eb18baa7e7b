"""Checkpoint files that do not fit a backbone, or are none: what the errors say, and that nothing is changed or run."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from checkpoint_states import assert_state, blank, official_state, own_state, save, snapshot
from torch import Tensor

from yolo_lightbackbones import Backbone, create_backbone, fuse, load_weights
from yolo_lightbackbones.checkpoints import engine

pytestmark = pytest.mark.usefixtures("one_thread")


# --- files that do not fit --------------------------------------------------------------------------------------------


def test_one_error_lists_everything_and_nothing_is_changed(tmp_path: Path) -> None:
    state = official_state("repvit")
    del state["features.1.token_mixer.0.conv1.bias"]
    del state["features.26.channel_mixer.m.2.bn.running_var"]
    state["features.2.channel_mixer.m.0.c.weight"] = torch.ones(96, 48, 3, 3)
    state["features.5.channel_mixer.m.0.c.weight"] = torch.ones(192, 96, 1, 1, dtype=torch.int8)
    state["stem.conv1.conv.weight"] = torch.ones(24, 3, 3, 3)  # our name for features.0.0.c.weight
    state["surprise.weight"] = torch.ones(1)
    backbone = blank("repvit_m0_9")
    before = snapshot(backbone)

    with pytest.raises(ValueError, match="tensors fit repvit_m0_9") as caught:
        load_weights(backbone, save({"model": state}, tmp_path / "x.pth"))

    message = str(caught.value)
    for expected in (
        "2 missing in the file",
        "stages.0.blocks.0.token_mixer.conv1x1.bias",
        "stages.3.blocks.1.channel_mixer.conv2.norm.running_var",
        "1 unknown here",
        "surprise.weight",
        "1 several keys for one parameter",
        "stem.conv1.conv.weight <- features.0.0.c.weight, stem.conv1.conv.weight",
        "2 of a wrong shape, type or value",
        "features.2.channel_mixer.m.0.c.weight: the file has 96 x 48 x 3 x 3, the backbone 96 x 48 x 1 x 1",
        "features.5.channel_mixer.m.0.c.weight: the file has torch.int8, the backbone torch.float32",
    ):
        assert expected in message
    assert_state(backbone, before)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda weight: weight.to_sparse(), "sparse, quantised or without values"),
        (lambda weight: weight.to("meta"), "sparse, quantised or without values"),
        (lambda weight: weight.fill_(torch.nan), "not finite in torch.float32"),
        (lambda weight: weight.double().fill_(1e300), "not finite in torch.float32"),
    ],
    ids=["sparse", "meta", "nan", "overflow"],
)
@pytest.mark.parametrize("in_channels", [3, 4])
def test_tensors_without_plain_finite_values(
    spoil: Callable[[Tensor], Tensor], message: str, *, in_channels: int, tmp_path: Path
) -> None:
    state = {key: value.clone() for key, value in own_state("edgevit_xxs").items()}
    stem, last = next(iter(state)), list(state)[-1]
    for key in (stem, last):
        state[key] = spoil(state[key].float())
    file = save(state, tmp_path / "x.pth")
    backbone = blank("edgevit_xxs", in_channels=in_channels)
    before = snapshot(backbone)
    with pytest.raises(ValueError, match=f"2 of a wrong shape, type or value(.|\n)*{last}: .*{message}"):
        load_weights(backbone, file)
    assert_state(backbone, before)
    assert sorted(load_weights(backbone, file, strict=False).missing) == sorted([stem, last])


def test_thousands_of_unknown_names_make_a_short_message(tmp_path: Path) -> None:
    value = torch.ones(1)
    strange = {f"part{i}\x1b[2J.{'x' * 150}.\n{i}": value for i in range(20_000)}
    file = save({**own_state("edgevit_xxs"), **strange, **{f"entry\r{i}": i for i in range(3)}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"20003 unknown here:(.|\n)*\.\.\. \(19,983 more\)") as caught:
        load_weights(blank("edgevit_xxs"), file)
    report = engine.LoadReport("official", (), dropped=tuple(strange), unexpected=tuple(strange))
    for text in (str(caught.value), str(report)):
        assert len(text) < 10_000
        assert text.replace("\n", "").isprintable()
    assert r"part0\x1b[2J." in str(caught.value)


def test_odd_names_are_unknown_ones(tmp_path: Path) -> None:
    """Digits that are no numbers, numbers that Python refuses to read, nothing at all."""
    names = ["stages.\u00b2.w", f"stages.{'9' * 150}.w", "stages.1.blocks.\u0663.w", "....", "", "stages."]
    file = save({**own_state("edgevit_xxs"), **{name: torch.ones(1) for name in names}}, tmp_path / "x.pth")
    assert sorted(load_weights(blank("edgevit_xxs"), file, strict=False).unexpected) == sorted(names)
    with pytest.raises(ValueError, match="6 unknown here"):
        load_weights(blank("edgevit_xxs", taps=("P2",)), file)


def test_a_mean_of_weights(tmp_path: Path) -> None:
    """As torch.optim.swa_utils.AveragedModel keeps it: a module, and of how many it is the mean."""
    model, backbone = torch.optim.swa_utils.AveragedModel(create_backbone("edgevit_xxs")), blank("edgevit_xxs")
    load_weights(backbone, save(model.state_dict(), tmp_path / "x.pth"))
    assert_state(backbone, model.module.state_dict())


def test_not_strict_loads_what_fits_and_says_how_much(tmp_path: Path) -> None:
    state = official_state("edgevit")
    expected = blank("edgevit_xxs")
    load_weights(expected, save(state, tmp_path / "whole.pth"))
    del state["blocks1.0.LocalAgg.conv1.bias"]
    state["blocks1.0.LocalAgg.conv2.bias"] = torch.ones(7)
    state["surprise.weight"] = torch.ones(1)
    backbone = blank("edgevit_xxs")
    untouched = ("stages.0.blocks.0.local_agg.conv1.bias", "stages.0.blocks.0.local_agg.conv2.bias")
    before = snapshot(backbone)

    report = load_weights(backbone, save(state, tmp_path / "x.pth"), strict=False)

    assert set(report.missing) == set(untouched)
    assert set(report.unexpected) == {"blocks1.0.LocalAgg.conv2.bias", "surprise.weight"}
    assert set(report.loaded) == backbone.state_dict().keys() - set(untouched)
    assert str(report) == (
        "loaded 242 of 244 tensors (official layout), dropped 7 (norm, head), missing 2 (stages), "
        "unexpected 2 (surprise, blocks1)"
    )
    assert_state(backbone, {**expected.state_dict(), **{key: before[key] for key in untouched}})


WRONG = {
    "official file, other variant": (lambda: {"model": official_state("repvit")}, "repvit_m1_0", "repvit_m0_9"),
    "timm's file, other variant": (lambda: official_state("repvit_timm"), "repvit_m2_3", "repvit_m0_9"),
    "official file, other family": (lambda: official_state("conv2former"), "edgevit_s", "conv2former_n"),
    "ParC-Net for RepViT": (lambda: official_state("parcnet"), "repvit_m0_6", "parcnet_s"),
    "EdgeViT for Conv2Former": (lambda: {"model": official_state("edgevit")}, "conv2former_n", "edgevit_xxs"),
    "our file, other variant": (lambda: own_state("parcnet_s"), "parcnet_xs", "parcnet_s"),
    "our file, other family": (lambda: own_state("repvit_m0_6"), "parcnet_xs", "repvit_m0_6"),
    "our file of fewer stages": (lambda: own_state("repvit_m0_9", taps=("P3",)), "repvit_m0_6", "repvit_m0_9"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_backbone_is_named(case: str, tmp_path: Path) -> None:
    content, asked, given = WRONG[case]
    backbone = blank(asked)
    before = snapshot(backbone)
    with pytest.raises(ValueError, match=rf"this is {given}; you asked for {asked}\. .* build {given}\."):
        load_weights(backbone, save(content(), tmp_path / "x.pth"))
    assert_state(backbone, before)


def test_kernels_of_another_size_are_another_variant(tmp_path: Path) -> None:
    file = save(own_state("conv2former_b_k7", taps=("P2",)), tmp_path / "x.pth")
    with pytest.raises(ValueError, match="this is conv2former_b_k7; you asked for conv2former_b"):
        load_weights(blank("conv2former_b", taps=("P2",)), file)


def test_not_strict_is_no_excuse_for_a_file_of_which_nothing_fits(tmp_path: Path) -> None:
    file = save(official_state("repvit"), tmp_path / "x.pth")
    with pytest.raises(ValueError, match="this is repvit_m0_9; you asked for edgevit_xxs"):
        load_weights(blank("edgevit_xxs"), file, strict=False)


def test_incomplete_file_of_another_variant_is_named_too(tmp_path: Path) -> None:
    state = official_state("repvit")
    del state["features.1.token_mixer.0.conv1.bias"]
    with pytest.raises(ValueError, match=r"this looks like repvit_m0_9; you asked for repvit_m1_0"):
        load_weights(blank("repvit_m1_0"), save(state, tmp_path / "x.pth"))


@pytest.mark.parametrize("prefix", ["backbone.", "model.0."])
def test_weights_inside_a_larger_model_are_pointed_out(prefix: str, tmp_path: Path) -> None:
    state = {prefix + key: value for key, value in official_state("repvit").items()}
    state["neck.fpn.weight"] = torch.ones(2)
    with pytest.raises(ValueError, match=rf"larger model; the part of it called '{re.escape(prefix)}' is repvit_m0_9"):
        load_weights(blank("repvit_m0_9"), save({"state_dict": state}, tmp_path / "x.pth"))


def test_a_few_tensors_with_the_names_of_a_backbone_are_none(tmp_path: Path) -> None:
    """A stem on its own, all of whose names and shapes fit, is no backbone inside a larger model."""
    stem = {key: value for key, value in own_state("edgevit_xxs").items() if key.startswith("stem.")}
    assert 2 < len(stem) < 20
    state = {"head.weight": torch.ones(2), **{f"aux.{key}": value for key, value in stem.items()}}
    with pytest.raises(ValueError, match=r"aux\.stem\.") as error:
        load_weights(blank("edgevit_xxs"), save(state, tmp_path / "x.pth"))
    assert "larger model" not in str(error.value)
    assert "looks like" not in str(error.value)


def test_custom_config_is_called_that(tmp_path: Path) -> None:
    from dataclasses import replace

    from yolo_lightbackbones.backbones.edgevit import VARIANTS, EdgeViT

    backbone = EdgeViT(replace(VARIANTS["xxs"], depths=(1, 1, 1, 1)))
    with pytest.raises(ValueError, match="this is edgevit_xxs; you asked for the EdgeViT of a custom config"):
        load_weights(backbone, save(own_state("edgevit_xxs"), tmp_path / "x.pth"))


def test_fused_backbone_is_refused(tmp_path: Path) -> None:
    backbone = fuse(blank("edgevit_xxs"))
    assert isinstance(backbone, Backbone)
    with pytest.raises(ValueError, match=r"EdgeViT is fused.*unfused backbone, then fuse it"):
        load_weights(backbone, save(own_state("edgevit_xxs"), tmp_path / "x.pth"))


def test_backbone_without_memory_is_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        backbone = create_backbone("edgevit_xxs")
    with pytest.raises(ValueError, match=r"on the meta device.*to_empty"):
        load_weights(backbone, save(own_state("edgevit_xxs"), tmp_path / "x.pth"))


# --- files that are no checkpoints ------------------------------------------------------------------------------------


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def write_bomb(kind: str, path: Path, trace: Path) -> None:
    content = {"model": own_state("edgevit_xxs"), "extra": Bomb(trace)}
    if kind == "zip":
        torch.save(content, path)
    elif kind == "old":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(Bomb(trace), protocol=int(kind)))


@pytest.mark.parametrize("kind", ["zip", "old", "2", "4"])
def test_pickled_objects_are_refused_and_never_executed(kind: str, tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    write_bomb(kind, tmp_path / "x.pth", trace)
    backbone = blank("edgevit_xxs")
    before = snapshot(backbone)
    for strict in (True, False):
        with pytest.raises(ValueError, match=r"pickled Python objects .*refused.*torch.save\(model.state_dict"):
            load_weights(backbone, tmp_path / "x.pth", strict=strict)
    assert not trace.exists()
    assert_state(backbone, before)


def test_what_others_have_allowed_is_not_allowed_here(tmp_path: Path) -> None:
    """Ultralytics leaves its models on torch's list, and they evaluate strings of the YAML they are built from."""
    write_bomb("zip", tmp_path / "x.pth", trace := tmp_path / "executed")
    before = set(torch.serialization.get_safe_globals())  # torch keeps a set and lists it in any order
    with torch.serialization.safe_globals([os.mkdir]):
        with pytest.raises(ValueError, match=r"pickled Python objects .*mkdir"):
            load_weights(blank("edgevit_xxs"), tmp_path / "x.pth")
        assert os.mkdir in torch.serialization.get_safe_globals()
    assert set(torch.serialization.get_safe_globals()) == before
    assert not trace.exists()


def test_pickled_module_is_refused_by_name(tmp_path: Path) -> None:
    file = save(torch.nn.Linear(2, 2), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"pickled Python objects \(torch.nn.modules.linear.Linear\)"):
        load_weights(blank("edgevit_xxs"), file)


def test_namespace_is_allowed_only_while_a_file_is_read(tmp_path: Path) -> None:
    file = published.save_checkpoint(own_state("edgevit_xxs"), tmp_path / "x.pth", "model")
    load_weights(blank("edgevit_xxs"), file)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def garbage(kind: str, folder: Path) -> Path:
    """A file of the given kind; its name says what is wrong with it."""
    path = folder / "x.pth"
    if kind == "truncated zip":
        save(own_state("edgevit_xxs"), path)
        path.write_bytes(path.read_bytes()[:100_000])
    elif kind == "truncated old":
        torch.save(own_state("edgevit_xxs"), path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:100_000])
    elif kind == "truncated safetensors":
        path = save(own_state("edgevit_xxs"), folder / "x.safetensors")
        path.write_bytes(path.read_bytes()[:100_000])
    elif kind == "damaged zip":
        save(own_state("edgevit_xxs"), path)
        content = bytearray(path.read_bytes())
        content[:1000] = content[:4] + bytes(996)  # a tensor's bytes may be anything; the pickle at the front may not
        path.write_bytes(bytes(content))
    elif kind == "other zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("word/document.xml", "<xml/>")
    elif kind == "no safetensors":
        path = folder / "x.safetensors"
        path.write_text("hello")
    else:
        path.write_bytes({"empty": b"", "text": b"hello", "page": b"<!DOCTYPE html><html>"}[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("truncated zip", r"damaged or cut off \(100,000 bytes\)\. Download"),
        ("truncated old", r"damaged or cut off \(100,000 bytes\)\. Download"),
        ("truncated safetensors", "damaged or cut off.*Download"),
        ("damaged zip", r"is damaged: the checksum of a part of it is wrong\. Download"),
        ("other zip", "not a checkpoint"),
        ("no safetensors", "not a safetensors file"),
        ("empty", "an empty file.*Give weights"),
        ("text", "not a checkpoint.*Give weights"),
        ("page", r"not a checkpoint \(it starts with b'<!DO'\)"),
    ],
)
def test_files_that_are_no_checkpoints(kind: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        load_weights(blank("edgevit_xxs"), garbage(kind, tmp_path))


def nested(depth: int) -> dict[str, Any]:
    return {"model": nested(depth - 1)} if depth else {"weight": torch.ones(1)}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([torch.ones(2)], "holds a list, not weights by name"),
        (torch.ones(2), "holds a Tensor, not weights by name"),
        ({"epoch": 3, "loss": 0.5}, "holds no weights; its entries are: epoch, loss"),
        ({}, "holds no weights; its entries are: none"),
        ({"a": {"x.y": torch.ones(1)}, "b": {"x.y": torch.ones(1)}}, "several sets of weights: a, b"),
        (nested(400), "holds no weights; its entries are: model"),
    ],
)
def test_checkpoints_without_weights(content: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        load_weights(blank("edgevit_xxs"), save(content, tmp_path / "x.pth"))


def test_entries_that_are_no_tensors_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 unknown here:\s+epoch \(int\)"):
        load_weights(blank("edgevit_xxs"), save({**own_state("edgevit_xxs"), "epoch": 3}, tmp_path / "x.pth"))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    backbone = blank("edgevit_xxs")
    with pytest.raises(FileNotFoundError, match=r"no weights file .*nowhere\.pth.*\.safetensors"):
        load_weights(backbone, tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match=r"is a folder"):
        load_weights(backbone, tmp_path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_archive_is_refused(tmp_path: Path) -> None:
    traced = torch.jit.trace(torch.nn.ReLU(), torch.ones(1))
    traced.save(str(tmp_path / "x.pt"))
    with pytest.raises(ValueError, match="TorchScript archive"):
        load_weights(blank("edgevit_xxs"), tmp_path / "x.pt")


def test_ultralytics_checkpoint_is_sent_where_it_belongs(tmp_path: Path) -> None:
    from ultralytics.nn.tasks import DetectionModel

    file = save(
        {"model": DetectionModel("yolov8n.yaml", verbose=False), "ema": None, "epoch": -1}, tmp_path / "best.pt"
    )
    with pytest.raises(ValueError, match=r"an Ultralytics model, not .*yolo train model=.*lightbackbones convert"):
        load_weights(blank("edgevit_xxs"), file)

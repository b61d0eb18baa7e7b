"""Checkpoint files into backbones: layouts, wrappers, formats, and every way in which a file can be wrong."""

from __future__ import annotations

import argparse
import functools
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from yolo_lightbackbones import Backbone, create_backbone, fuse, load_weights, registry
from yolo_lightbackbones.checkpoints import engine, rules
from yolo_lightbackbones.checkpoints.layouts import layouts_of

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDEN = {
    "edgevit": ("edgevit_xxs_96x64", "official"),
    "parcnet": ("parcnet_s_96x96", "official"),
    "repvit": ("repvit_m0_9_96x64", "official"),
    "repvit_timm": ("timm_repvit_m0_9_96x64", "timm"),
    "conv2former": ("conv2former_n_96x64", "official"),
}
"""Published key lists: name of the golden file and of its layout."""

SMALLEST = ("edgevit_xxs", "parcnet_xs", "repvit_m0_6", "conv2former_n")


def official_state(family: str) -> dict[str, Tensor]:
    return dict(_cached_state(tuple((k, tuple(v)) for k, v in published.golden(GOLDEN[family][0])["keys"].items())))


def own_state(name: str, **options: Any) -> dict[str, Tensor]:
    """Weights under our names, made from the names alone: what a file of ours may hold."""
    shapes = {key: tuple(value.shape) for key, value in blank(name, **options).state_dict().items()}
    return dict(_cached_state(tuple(shapes.items())))


@functools.cache
def _cached_state(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, Tensor]:
    return published.make_state(dict(shapes))


def blank(name: str, **options: Any) -> Backbone:
    """A backbone full of zeros: quicker to build than one that is initialised."""
    with torch.device("meta"):
        backbone = create_backbone(name, **{"input_norm": "none", **options})
    return backbone.to_empty(device="cpu").apply(zero)


def zero(module: torch.nn.Module) -> None:
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        tensor.data.zero_()


def save(content: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def assert_state(backbone: Backbone, expected: Mapping[str, Tensor]) -> None:
    state = backbone.state_dict()
    assert state.keys() == expected.keys()
    assert [key for key, value in expected.items() if not torch.equal(state[key], value)] == []


def snapshot(backbone: Backbone) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in backbone.state_dict().items()}


# --- rules ------------------------------------------------------------------------------------------------------------


def moved_keys(layout: rules.Layout, keys: list[str]) -> list[str]:
    """Keys with their sections replaced, as rules see them."""
    inert = rules.Layout("sections only", sections=layout.sections)
    return list(rules.convert(inert, dict.fromkeys(keys, torch.empty(0))).placed)


@pytest.mark.parametrize("family", GOLDEN)
def test_rules_do_not_overlap_and_their_examples_are_published_keys(family: str) -> None:
    name, layout_name = GOLDEN[family]
    cls = registry.family_in(family)
    assert cls is not None
    layout = next(layout for layout in layouts_of(cls) if layout.name == layout_name)
    keys = moved_keys(layout, list(published.golden(name)["keys"]))

    renames = [rule for rule in layout.rules if isinstance(rule, rules.Rename | rules.Drop)]
    for key in keys:
        matching = [rule.pattern for rule in renames if re.fullmatch(rule.pattern, key)]
        assert len(matching) <= 1, key
    for rule in layout.rules:
        assert re.fullmatch(rule.pattern, rule.example), rule
        assert rule.example in keys, rule


# --- our own layout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "suffix"),
    [*((name, ".safetensors") for name in SMALLEST), ("edgevit_xxs", ".pth"), ("edgevit_xxs", ".pt")],
)
def test_own_layout_is_the_identity(name: str, suffix: str, tmp_path: Path) -> None:
    state = own_state(name)
    backbone = blank(name)

    report = load_weights(backbone, save(state, tmp_path / f"own{suffix}"))

    assert_state(backbone, state)
    assert report.layout == "yolo_lightbackbones"
    assert set(report.loaded) == state.keys()
    assert (report.dropped, report.missing, report.unexpected) == ((), (), ())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_published_file_saved_as_ours_loads_the_same(suffix: str, tmp_path: Path) -> None:
    first, second = blank("edgevit_xxs"), blank("edgevit_xxs")
    load_weights(first, save(official_state("edgevit"), tmp_path / "official.pth"))

    load_weights(second, save(first.state_dict(), tmp_path / f"own{suffix}"))

    assert_state(second, first.state_dict())


# --- wrappers, prefixes, dtypes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state_dict", "model_ema", "ema", "my_weights"])
def test_wrappers_are_opened(wrapper: str | None, tmp_path: Path) -> None:
    state = own_state("edgevit_xxs")
    backbone = blank("edgevit_xxs")
    load_weights(backbone, published.save_checkpoint(state, tmp_path / "x.pth", wrapper))
    assert_state(backbone, state)


def test_nested_wrappers_are_opened(tmp_path: Path) -> None:
    state = own_state("edgevit_xxs")
    backbone = blank("edgevit_xxs")
    load_weights(backbone, save({"model": {"state_dict": state, "name": "edgevit"}}, tmp_path / "x.pth"))
    assert_state(backbone, state)


def test_plain_weights_come_before_averaged_ones(tmp_path: Path) -> None:
    state = own_state("edgevit_xxs")
    averaged = {key: torch.zeros_like(value) for key, value in state.items()}
    backbone = blank("edgevit_xxs")
    load_weights(backbone, save({"model_ema": averaged, "model": state}, tmp_path / "x.pth"))
    assert_state(backbone, state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_parallel_training_are_removed(prefix: str, tmp_path: Path) -> None:
    backbone, expected = blank("edgevit_xxs"), blank("edgevit_xxs")
    state = official_state("edgevit")
    load_weights(expected, save(state, tmp_path / "plain.pth"))
    file = save({prefix + key: value for key, value in state.items()}, tmp_path / "x.pth")
    assert load_weights(backbone, file).layout == "official"
    assert_state(backbone, expected.state_dict())


def test_old_format_of_torch_save(tmp_path: Path) -> None:
    state = own_state("edgevit_xxs")
    torch.save(
        {"model": state, "args": argparse.Namespace(lr=1)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False
    )
    backbone = blank("edgevit_xxs")
    load_weights(backbone, tmp_path / "x.pth")
    assert_state(backbone, state)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_files_are_converted_to_the_dtype_of_the_backbone(half: torch.dtype, tmp_path: Path) -> None:
    state = {key: value.to(half) for key, value in own_state("edgevit_xxs").items()}  # counters too, as tools do
    backbone = blank("edgevit_xxs")
    load_weights(backbone, save(state, tmp_path / "half.pth"))
    for key, value in backbone.state_dict().items():
        assert value.dtype == (torch.int64 if key.endswith("num_batches_tracked") else torch.float32)
        torch.testing.assert_close(value, state[key].to(value.dtype), rtol=0, atol=0)


def test_half_backbone_stays_half(tmp_path: Path) -> None:
    state = own_state("edgevit_xxs")
    backbone = blank("edgevit_xxs").half()
    load_weights(backbone, save(state, tmp_path / "x.pth"))
    assert backbone.stem.proj.weight.dtype == torch.float16
    torch.testing.assert_close(backbone.stem.proj.weight.data, state["stem.proj.weight"].half(), rtol=0, atol=0)


def test_counters_may_be_missing(tmp_path: Path) -> None:
    state = own_state("edgevit_xxs")
    without = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    backbone = blank("edgevit_xxs")
    report = load_weights(backbone, save(without, tmp_path / "x.pth"))
    assert_state(backbone, state)
    assert not report.missing


# --- what is dropped --------------------------------------------------------------------------------------------------

HEADS = {
    "edgevit": ("norm.", "head."),
    "parcnet": ("residual.", "conv_1x1_exp.", "classifier."),
    "repvit": ("classifier.classifier.", "classifier.classifier_dist."),
    "repvit_timm": ("head.head.", "head.head_dist."),
    "conv2former": ("head.", "pred."),
}


@pytest.mark.parametrize("family", GOLDEN)
def test_heads_are_listed_as_dropped(family: str, tmp_path: Path) -> None:
    state = official_state(family)
    backbone = blank(published.golden(GOLDEN[family][0])["name"])
    report = load_weights(backbone, save(state, tmp_path / "x.pth"))
    assert report.layout == GOLDEN[family][1]
    assert set(report.dropped) == {key for key in state if key.startswith(HEADS[family])}
    assert f"loaded {len(report.loaded)} of {len(report.loaded)} tensors" in str(report)
    assert f"dropped {len(report.dropped)} (" in str(report)


def test_parcnet_detector_keeps_its_encoder_alone(tmp_path: Path) -> None:
    classifier = official_state("parcnet")
    encoder = {
        f"encoder.{key}": value for key, value in classifier.items() if not key.startswith(("classifier", "conv_1x1"))
    }
    beside = {
        "extra_layers.os_64.0.block.conv.weight": torch.ones(80, 160, 1, 1),
        "ssd_heads.0.loc_cls_layer.pw_conv.block.conv.weight": torch.ones(4, 4, 1, 1),
    }
    expected, backbone = blank("parcnet_s"), blank("parcnet_s")
    load_weights(expected, save(classifier, tmp_path / "classifier.pt"))

    report = load_weights(backbone, save({**encoder, **beside}, tmp_path / "detector.pt"))

    assert_state(backbone, expected.state_dict())
    assert report.layout == "detector"
    assert set(report.dropped) == beside.keys() | {key for key in encoder if key.startswith("encoder.residual.")}


@pytest.mark.parametrize("family", ["repvit", "repvit_timm", "edgevit", "parcnet", "conv2former"])
def test_stages_that_were_not_built_are_dropped(family: str, tmp_path: Path) -> None:
    golden = published.golden(GOLDEN[family][0])
    file = save(official_state(family), tmp_path / "x.pth")
    full = blank(golden["name"]).eval()
    shallow = blank(golden["name"], taps=("P2", "P3")).eval()
    load_weights(full, file)

    report = load_weights(shallow, file)

    assert set(report.loaded) == shallow.state_dict().keys()
    weights = [key for key in report.loaded if not key.endswith("blocks_behind_tap")]  # which is in no published file
    assert len(weights) + len(report.dropped) == len(golden["keys"])
    image = published.make_image((1, 3, 32, 32))
    with torch.no_grad():
        torch.testing.assert_close(shallow(image), full(image)[:2], rtol=0, atol=0)


def test_unknown_keys_are_not_mistaken_for_stages_that_were_not_built(tmp_path: Path) -> None:
    state = {**own_state("repvit_m0_6"), "stages.2.blocks.99.squeeze.fc1.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"1 unknown here:\s+stages.2.blocks.99.squeeze.fc1.weight"):
        load_weights(blank("repvit_m0_6", taps=("P2",)), save(state, tmp_path / "x.pth"))


# --- norms behind taps ------------------------------------------------------------------------------------------------


def test_norms_behind_taps_keep_their_values_where_a_file_has_none(tmp_path: Path) -> None:
    path = save(official_state("edgevit"), tmp_path / "published.pth")
    backbone = blank("edgevit_xxs", taps=("P3", "P4"), normed_taps=("P3", "P4"))
    torch.nn.init.constant_(backbone.tap_norms["P3"].weight, 0.5)
    report = load_weights(backbone, path)
    assert not report.missing
    assert not any(key.startswith("tap_norms") for key in (*report.loaded, *report.dropped))
    assert (backbone.tap_norms["P3"].weight == 0.5).all()


def test_norms_behind_taps_are_carried_to_the_same_taps(tmp_path: Path) -> None:
    state = own_state("edgevit_xxs", taps=("P4", "P5"), normed_taps=("P4", "P5"))
    path = save(state, tmp_path / "own.safetensors")
    backbone = blank("edgevit_xxs", taps=("P3", "P4"), normed_taps=("P3", "P4"))
    report = load_weights(backbone, path)
    assert torch.equal(backbone.tap_norms["P4"].running_mean, state["tap_norms.P4.running_mean"])
    assert (backbone.tap_norms["P3"].running_mean == 0).all()
    assert {key for key in report.dropped if "tap_norms" in key} == {key for key in state if "tap_norms.P5" in key}
    report = load_weights(plain := blank("edgevit_xxs"), path)
    assert not plain.tap_norms
    assert set(report.dropped) == {key for key in state if "tap_norms" in key}


def test_a_wrong_variant_is_recognised_by_more_than_its_norms_behind_taps(tmp_path: Path) -> None:
    path = save(own_state("edgevit_xs", normed_taps=("P3", "P4", "P5")), tmp_path / "own.pth")
    with pytest.raises(ValueError, match="this is edgevit_xs; you asked for edgevit_xxs"):
        load_weights(blank("edgevit_xxs", normed_taps=("P3", "P4", "P5")), path)


# --- where in its stage a tap is --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_own_files_keep_the_taps_of_the_layout_they_came_from(suffix: str, tmp_path: Path) -> None:
    golden = published.golden(GOLDEN["repvit_timm"][0])
    first = blank(golden["name"]).eval()
    load_weights(first, save(official_state("repvit_timm"), tmp_path / "timm.pth"))
    own = save(first.state_dict(), tmp_path / f"own{suffix}")
    image = published.make_image((1, 3, 32, 32))
    shallow, second = blank(golden["name"], taps=("P2",)).eval(), blank(golden["name"]).eval()
    report = load_weights(second, own)
    assert set(report.loaded) == second.state_dict().keys()
    report = load_weights(shallow, own)
    assert "stages.1.blocks_behind_tap" in report.dropped
    with torch.no_grad():
        wanted = first(image)
        torch.testing.assert_close(second(image), wanted, rtol=0, atol=0)
        torch.testing.assert_close(shallow(image), wanted[:1], rtol=0, atol=0)
        load_weights(second, save(own_state(golden["name"]), tmp_path / "authors.pth"))
    assert [stage.blocks_behind_tap for stage in second.stages] == [0, 0, 0, 0]


def test_a_tap_at_no_block_of_a_file_is_refused(tmp_path: Path) -> None:
    state = {**own_state("repvit_m0_6"), "stages.0.blocks_behind_tap": torch.tensor(9)}
    with pytest.raises(ValueError, match=r"stages\.0\.blocks_behind_tap: .* one whole number from 0 to 2"):
        load_weights(blank("repvit_m0_6"), save(state, tmp_path / "x.pth"))


# --- image channels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALLEST)
def test_grey_images_look_as_before(name: str, tmp_path: Path) -> None:
    file = save(own_state(name), tmp_path / "x.pth")
    colour, grey = blank(name).eval(), blank(name, in_channels=1).eval()
    load_weights(colour, file)
    load_weights(grey, file)
    image = published.make_image((1, 1, 32, 32))
    with torch.no_grad():
        torch.testing.assert_close(grey(image), colour(image.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_an_image_twice_looks_as_before(tmp_path: Path) -> None:
    file = save(own_state("repvit_m0_6"), tmp_path / "x.pth")
    colour, double = (blank("repvit_m0_6", in_channels=c).eval() for c in (3, 6))
    load_weights(colour, file)
    load_weights(double, file)
    image = published.make_image((1, 3, 32, 32))
    with torch.no_grad():
        torch.testing.assert_close(double(image.repeat(1, 2, 1, 1)), colour(image), rtol=1e-4, atol=1e-4)


def test_fourth_channel_starts_as_red(tmp_path: Path) -> None:
    state = own_state("edgevit_xxs")
    backbone = blank("edgevit_xxs", in_channels=4)
    load_weights(backbone, save(state, tmp_path / "x.pth"))
    rgb = state["stem.proj.weight"]
    expected = torch.stack([rgb[:, 0], rgb[:, 1], rgb[:, 2], rgb[:, 0]], dim=1) * 0.75
    torch.testing.assert_close(backbone.stem.proj.weight.data, expected)


@pytest.mark.parametrize("channels", [4, 6])
def test_filters_meet_the_colour_they_were_trained_on(channels: int, tmp_path: Path) -> None:
    """ParC-Net was trained on BGR, which its input norm makes of images with 3 channels, and of no others."""
    state = own_state("parcnet_xs")
    backbone = blank("parcnet_xs", in_channels=channels)
    report = load_weights(backbone, save(state, tmp_path / "x.pth"))
    blue, green, red = state["stem.conv.conv.weight"].unbind(1)
    expected = torch.stack([red, green, blue, red, green, blue][:channels], dim=1) * 3 / channels
    torch.testing.assert_close(backbone.stem.conv.conv.weight.data, expected)
    assert report.adapted == ("stem.conv.conv.weight",)
    assert "adapted stem.conv.conv.weight to the number of image channels" in str(report)
    assert not load_weights(blank("parcnet_xs"), tmp_path / "x.pth").adapted


def test_own_file_with_four_channels_is_the_identity(tmp_path: Path) -> None:
    state = own_state("edgevit_xxs", in_channels=4)
    backbone = blank("edgevit_xxs", in_channels=4)
    load_weights(backbone, save(state, tmp_path / "x.pth"))
    assert_state(backbone, state)


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

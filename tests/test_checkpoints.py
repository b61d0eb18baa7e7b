"""Checkpoint files into backbones: layouts, wrappers, formats, taps and image channels."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import published
import pytest
import torch
from checkpoint_states import GOLDEN, assert_state, blank, official_state, own_state, save
from families import SMALLEST

from yolo_lightbackbones import load_weights, registry
from yolo_lightbackbones.checkpoints import rules
from yolo_lightbackbones.checkpoints.layouts import layouts_of

pytestmark = pytest.mark.usefixtures("one_thread")


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
    [*((name, ".safetensors") for name in SMALLEST.values()), ("edgevit_xxs", ".pth"), ("edgevit_xxs", ".pt")],
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


@pytest.mark.parametrize("name", SMALLEST.values())
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

"""Pretrained weights: what `BaseModel.load` takes over between models of ours and Ultralytics' own, and what not."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import nn
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.utils.torch_utils import intersect_dicts

import yolo_lightbackbones

MODELS: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    yolo_lightbackbones.register()
    yield
    yolo_lightbackbones.register()


def model(name: str, *, ch: int = 3, nc: int | None = None, seed: int = 0) -> Any:
    """A detector of its own whose every tensor is random, statistics of norms as well."""
    key = f"{name} {ch} {nc}"
    if key not in MODELS:
        MODELS[key] = tasks.DetectionModel(name, ch=ch, nc=nc, verbose=False)
    made = copy.deepcopy(MODELS[key])
    generator = torch.Generator().manual_seed(seed)
    for tensor in made.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return made


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    both = before.keys() & after.keys()
    return before.keys() ^ after.keys() | {key for key in both if not torch.equal(before[key], after[key])}


def load(target: Any, source: Any) -> tuple[set[str], list[str]]:
    """Which tensors of `target` another value came into, and what was said."""
    before = copy.deepcopy(target.state_dict())
    torch.manual_seed(0)  # Ultralytics draws a last layer for another number of classes
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        target.load(source, verbose=False)
    return changed(before, target.state_dict()), [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("target", "source", "row", "why"),
    [
        ("yolo11n_repvit.yaml", "yolo11s.yaml", "row 0 is Conv in their model and RepViT", "row 5 C2PSA: cv1"),
        ("yolov5n.yaml", "yolo11n_repvit.yaml", "row 0 is RepViT in their model and Conv", "row 23 is C3 in"),
        (
            "yolov8n-p2_repvit.yaml",
            "yolo11n_edgevit.yaml",
            "row 0 is EdgeViT in their model and RepViT",
            "row 24 Detect takes its input from rows 14, 17, 20, 23 in this model",
        ),
    ],
)
def test_nothing_goes_between_models_on_different_backbones_and_necks(
    target: str, source: str, row: str, why: str
) -> None:
    mine, theirs = model(target), model(source, seed=1)
    total = len(theirs.state_dict())
    by_chance = len(intersect_dicts(theirs.state_dict(), mine.state_dict()))
    assert by_chance >= 4, "names and shapes that stand for other layers"
    moved, said = load(mine, theirs)
    assert not moved
    (message,) = said
    assert f"0 of {total} pretrained tensors are taken over: {row} in this one" in message
    assert why in message
    assert f" {by_chance} others have the name and shape of a tensor here" in message


def test_a_checkpoint_is_treated_as_its_model() -> None:
    moved, said = load(model("yolo11n_repvit.yaml"), {"model": model("yolo11s.yaml", seed=1), "ema": None})
    assert not moved
    assert len(said) == 1


@pytest.mark.parametrize("name", ["yolo11n_repvit.yaml", "yolo11n.yaml"])
@pytest.mark.parametrize("nc", [None, 3])
def test_the_same_rows_load_as_ultralytics_loads_them(name: str, nc: int | None) -> None:
    theirs = model(name, seed=1)
    mine, plain = model(name, nc=nc), model(name, nc=nc)
    moved, said = load(mine, theirs)
    yolo_lightbackbones.unregister()
    moved_by_ultralytics, _ = load(plain, theirs)
    assert moved == moved_by_ultralytics
    assert len(moved) > 400
    assert not said
    assert not changed(mine.state_dict(), plain.state_dict())


def test_stock_models_of_other_scales_load_as_without_the_plugin() -> None:
    theirs, mine = model("yolo11n.yaml", seed=1), model("yolov8n.yaml")
    moved, said = load(mine, theirs)
    yolo_lightbackbones.unregister()
    assert moved == load(model("yolov8n.yaml"), theirs)[0]
    assert moved
    assert not said


def test_the_backbone_goes_under_another_neck_and_no_row_of_the_neck() -> None:
    mine, theirs = model("yolov5n_repvit.yaml"), model("yolo11n_repvit.yaml", seed=1)
    rows = [type(row).__name__ for row in mine.model], [type(row).__name__ for row in theirs.model]
    first = next(i for i, (a, b) in enumerate(zip(*rows, strict=False)) if a != b)
    moved, said = load(mine, theirs)
    assert {int(key.split(".")[1]) for key in moved} == {0, 4}, "RepViT, and SPPF right behind its taps"
    assert first == 5
    (message,) = said
    assert "row 5 is C2PSA in their model and Conv in this one, and what follows does not correspond" in message


def test_a_block_in_the_place_of_another_costs_only_its_own_row() -> None:
    config = copy.deepcopy(model("yolo11n.yaml").yaml)
    assert config["backbone"][2][2] == "C3k2"
    config["backbone"][2] = [-1, 2, "RepViTBlock", [256]]
    mine = tasks.DetectionModel(config, verbose=False)
    theirs = model("yolo11n.yaml", seed=1)
    moved, said = load(mine, theirs)
    counters = {key for key in moved | set(theirs.state_dict()) if key.endswith("num_batches_tracked")}
    assert moved - counters == {key for key in theirs.state_dict() if not key.startswith("model.2.")} - counters
    assert not said


def test_yolo_load_and_scale_letters() -> None:
    """By the way that users take, and between scales, of which little fits."""
    detector = YOLO("yolov5n_repvit.yaml", verbose=False)
    with pytest.warns(UserWarning, match="0 of 499 pretrained tensors"):
        detector.load(model("yolo11n.yaml"))
    moved, said = load(model("yolov5s_repvit.yaml"), model("yolov5n_repvit.yaml", seed=1))
    assert not said
    assert moved


def test_taps_stay_where_the_weights_have_them() -> None:
    """Weights in timm's layout have RepViT's taps one block earlier; training builds the model anew and loads it."""
    theirs, mine = YOLO("yolov5n_repvit.yaml", verbose=False).model, model("yolov5n_repvit.yaml")
    for stage in theirs.model[0].stages[:-1]:
        stage.blocks_behind_tap = 1
    load(mine, theirs)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for seen, expected in zip(mine.model[0].eval()(image), theirs.model[0].eval()(image), strict=True):
            torch.testing.assert_close(seen, expected, rtol=0, atol=0)
            assert expected.std() > 0
    load(mine, model("yolov5n_repvit.yaml"))
    assert {stage.blocks_behind_tap for stage in mine.model[0].stages} == {0}


def stem_output(detector: Any, image: torch.Tensor) -> torch.Tensor:
    """Of the first convolution and what norm is right behind it, without the border that padding reaches."""
    backbone = detector.model[0].eval()
    found: list[torch.Tensor] = []
    last = next(m for m in backbone.stem.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm))
    if type(backbone).__name__ == "Conv2Former":
        last = next(m for m in backbone.stem.modules() if isinstance(m, nn.Conv2d))
    handle = last.register_forward_hook(lambda module, arguments, output: found.append(output))
    with torch.no_grad():
        backbone(image)
    handle.remove()
    return found[0][..., 2:-2, 2:-2]


@pytest.mark.parametrize("family", FAMILIES)
def test_rgb_weights_see_a_grey_image_as_before(family: str) -> None:
    rgb, grey = model(f"yolov5n_{family}.yaml", seed=1), model(f"yolov5n_{family}.yaml", ch=1)
    generator = torch.Generator().manual_seed(2)
    first = next(m for m in rgb.model[0].stem.modules() if isinstance(m, nn.Conv2d))
    first.weight.data.normal_(generator=generator)  # of both signs, and R, G and B unlike each other
    moved, said = load(grey, rgb)
    assert next(iter(grey.model[0].named_parameters()))[0] in {key.removeprefix("model.0.") for key in moved}
    image = torch.rand(2, 1, 64, 64, generator=generator)
    expected, seen = stem_output(rgb, image.expand(-1, 3, -1, -1)), stem_output(grey, image)
    if family == "conv2former":  # the first norm comes behind GELU; there is no place for the mean
        assert len(said) == 1
        assert "without the mean" in said[0]
        expected, seen = expected.diff(dim=0), seen.diff(dim=0)
    else:
        assert not said
    assert expected.std() > 0.1
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["parcnet", "repvit"])
def test_four_channels_meet_the_filters_of_their_colours(family: str) -> None:
    rgb, four = model(f"yolov5n_{family}.yaml", seed=1), model(f"yolov5n_{family}.yaml", ch=4)
    trained = next(rgb.model[0].parameters()).detach()
    load(four, rgb)
    adapted = next(four.model[0].parameters()).detach()
    # ParC-Net was trained on BGR; the others on (x - mean) / std
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    of_rgb = trained.flip(1) if family == "parcnet" else trained / std
    torch.testing.assert_close(adapted[:, :3], of_rgb * 3 / 4)
    torch.testing.assert_close(adapted[:, 3], of_rgb[:, 0] * 3 / 4)


def test_weights_for_other_images_than_rgb_are_not_adapted_and_it_says_so() -> None:
    target = model("yolov5n_repvit.yaml")
    first = next(target.parameters()).detach().clone()
    moved, said = load(target, model("yolov5n_repvit.yaml", ch=1, seed=1))
    assert torch.equal(next(target.parameters()), first)
    assert len(moved) > 400
    (message,) = said
    assert "images of 1 channels and this model takes 3" in message

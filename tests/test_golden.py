"""Every golden output of a published implementation, from a checkpoint file to the values at each tap."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import published
import pytest
import torch
from torch import nn

from yolo_lightbackbones import Backbone, create_backbone, load_weights

FILES = sorted(path.stem for path in published.GOLDEN.glob("*.json"))

TOLERANCE = 1e-4
"""Largest allowed error of a value, as a share of its tap's standard deviation."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The arithmetic here is tiny: threads that wait for each other on a busy machine cost more than they do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def outputs_at(backbone: Backbone, modules: list[nn.Module], image: torch.Tensor) -> list[torch.Tensor]:
    """What each of these modules of the backbone puts out for an image."""
    seen: dict[nn.Module, torch.Tensor] = {}
    for module in modules:
        module.register_forward_hook(lambda module, inputs, output: seen.__setitem__(module, output))
    with torch.no_grad():
        backbone(image)
    return [seen[module] for module in modules]


@pytest.mark.parametrize("name", FILES)
def test_published_outputs(name: str, tmp_path: Path) -> None:
    golden = published.golden(name)
    layout = golden.get("layout", "official")
    backbone = create_backbone(golden["name"], input_norm="none").eval()
    state = published.make_state(golden["keys"])
    file = published.save_checkpoint(state, tmp_path / "published.pth", golden["checkpoint_wrapper"])
    image = published.make_image(golden["input"]["shape"])

    report = load_weights(backbone, file, strict=True)

    assert report.layout == layout
    assert set(report.loaded) == backbone.state_dict().keys()
    assert not report.missing
    assert not report.unexpected
    assert backbone.taps == tuple(golden["taps"])
    if layout == "timm":
        # timm counts the last block of a stage as part of the downsampling behind it, and its feature maps are what
        # goes into that block. Our taps are the authors', behind it, whatever names the file has.
        stages = list(backbone.stages)
        outputs = outputs_at(backbone, [*(stage.blocks[-2] for stage in stages[:-1]), stages[-1]], image)
    else:
        with torch.no_grad():
            outputs = backbone(image)
    for output, expected in zip(outputs, golden["taps"].values(), strict=True):
        atol = TOLERANCE * expected["std"]
        values = output.flatten()[expected["indices"]]
        assert list(output.shape) == expected["shape"]
        torch.testing.assert_close(values, torch.tensor(expected["values"]), rtol=0, atol=atol)
        assert output.mean().item() == pytest.approx(expected["mean"], abs=atol)
        assert output.std(correction=0).item() == pytest.approx(expected["std"], rel=TOLERANCE)

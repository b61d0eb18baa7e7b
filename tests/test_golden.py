"""Every golden output of a published implementation, from a checkpoint file to the values at each tap."""

from __future__ import annotations

from pathlib import Path

import published
import pytest
import torch

from yolo_lightbackbones import create_backbone, load_weights

pytestmark = pytest.mark.usefixtures("one_thread")

FILES = sorted(path.stem for path in published.GOLDEN.glob("*.json"))

TOLERANCE = 1e-4
"""Largest allowed error of a value, as a share of its tap's standard deviation."""


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
    with torch.no_grad():
        outputs = backbone(image)
    for output, expected in zip(outputs, golden["taps"].values(), strict=True):
        atol = TOLERANCE * expected["std"]
        values = output.flatten()[expected["indices"]]
        assert list(output.shape) == expected["shape"]
        torch.testing.assert_close(values, torch.tensor(expected["values"]), rtol=0, atol=atol)
        assert output.mean().item() == pytest.approx(expected["mean"], abs=atol)
        assert output.std(correction=0).item() == pytest.approx(expected["std"], rel=TOLERANCE)


def test_taps_are_those_of_the_implementation_loaded_last(tmp_path: Path) -> None:
    """timm takes RepViT's P2 to P4 one block before the authors do; a later official file brings the authors' back."""
    authors, timm = published.golden("repvit_m0_9_96x64"), published.golden("timm_repvit_m0_9_96x64")
    backbone = create_backbone("repvit_m0_9")
    for golden, behind in ((timm, [1, 1, 1, 0]), (authors, [0, 0, 0, 0])):
        state = published.make_state(golden["keys"])
        load_weights(backbone, published.save_checkpoint(state, tmp_path / "w.pth", golden["checkpoint_wrapper"]))
        assert [stage.blocks_behind_tap for stage in backbone.stages] == behind

"""The simple feature pyramid: what each level computes, what is built, folded, exported and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from contract import assert_features, randomise, run
from torch import Tensor, nn

from yolo_lightbackbones import fusion
from yolo_lightbackbones.layers import PyramidLevel, SimpleFeaturePyramid, check_plain

pytestmark = pytest.mark.usefixtures("one_thread")

SIDES = {"P2": 4, "P3": 8, "P4": 16, "P5": 32}


def pyramid_by_hand(state: dict[str, Tensor], x: Tensor, reduction: int) -> list[Tensor]:
    """ViTDet, section 3, on the weights in `state`; transposed convolutions as products per 2x2 window."""

    def norm(name: str, value: Tensor) -> Tensor:
        mean, var = value.mean(1, keepdim=True), value.var(1, keepdim=True, unbiased=False)
        weight, bias = (state[f"{name}.{key}"].view(1, -1, 1, 1) for key in ("weight", "bias"))
        return (value - mean) / (var + 1e-6).sqrt() * weight + bias

    def upsample(name: str, value: Tensor) -> Tensor:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        batch, _, height, width = value.shape
        windows = torch.einsum("bchw,coij->bohiwj", value, weight)
        return windows.reshape(batch, -1, 2 * height, 2 * width) + bias.view(1, -1, 1, 1)

    features = []
    for tap, side in SIDES.items():
        level, position = x, 0
        while reduction // 2**position > side:  # one transposed convolution a step, norm and GELU between them
            if position:
                level = F.gelu(norm(f"{tap}.resample.{3 * position - 2}", level))
            level = upsample(f"{tap}.resample.{3 * position}", level)
            position += 1
        for _ in range(side // reduction // 2):
            batch, channels, height, width = level.shape
            level = level.reshape(batch, channels, height // 2, 2, width // 2, 2).amax((3, 5))
        level = norm(f"{tap}.norm1", torch.einsum("oi,bihw->bohw", state[f"{tap}.conv1.weight"][:, :, 0, 0], level))
        level = norm(f"{tap}.norm2", F.conv2d(level, state[f"{tap}.conv2.weight"], padding=1))
        features.append(level)
    return features


@pytest.mark.parametrize("reduction", [8, 16])
@pytest.mark.parametrize("channels", [4, 40])  # on one side each of where folding the 1x1 convolution pays
def test_levels_by_hand(reduction: int, channels: int) -> None:
    pyramid = SimpleFeaturePyramid(16, reduction, channels=dict.fromkeys(SIDES, channels)).double().eval()
    randomise(pyramid)
    x = torch.randn(2, 16, 4, 8, dtype=torch.float64)
    expected = pyramid_by_hand(dict(pyramid.state_dict()), x, reduction)
    assert [tuple(map_.shape) for map_ in expected] == [
        (2, channels, 4 * reduction // side, 8 * reduction // side) for side in SIDES.values()
    ]
    assert_features(run(pyramid, x), expected, 1e-12)
    fused = fusion.fuse(pyramid)
    assert_features(run(fused, x), expected, 1e-12)
    pointwise = [level.conv1 for tap, level in fused.named_children() if SIDES[tap] < reduction]
    assert all(isinstance(conv, nn.Identity) == (channels == 4) for conv in pointwise)


@pytest.mark.parametrize(("dim", "folds"), [(192, False), (384, False), (512, True), (768, True)])
def test_folding_saves_weights(dim: int, folds: bool) -> None:
    """Counted by hand: 2x2 kernels from `dim` to half of it, and 1x1 from there to 256; after, 2x2 to 256 at once."""
    before, after = 4 * dim * (dim // 2) + (dim // 2) * 256, 4 * dim * 256
    assert folds == (after < before)
    level = fusion.fuse(PyramidLevel(dim, 256, 1))
    assert isinstance(level.get_submodule("conv1"), nn.Identity) == folds


def test_three_steps_up_from_a_map_at_32() -> None:
    pyramid = SimpleFeaturePyramid(16, 32, ("P2", "P5"), {"P2": 4, "P5": 8}).eval()
    randomise(pyramid)
    features = run(pyramid, torch.randn(1, 16, 2, 3))
    assert [tuple(feature.shape) for feature in features] == [(1, 4, 16, 24), (1, 8, 2, 3)]
    state = dict(pyramid.state_dict())
    assert [state[f"P2.resample.{i}.weight"].shape[1] for i in (0, 3, 6)] == [8, 4, 2]
    assert_features(run(fusion.fuse(pyramid), torch.ones(1, 16, 2, 3)), run(pyramid, torch.ones(1, 16, 2, 3)), 1e-5)


def test_vitdet_has_256_channels_and_only_the_taps_that_are_asked_for_are_built() -> None:
    pyramid = SimpleFeaturePyramid(64, 16, ("P3", "P5"))
    assert list(pyramid) == ["P3", "P5"]
    assert [tuple(f.shape) for f in pyramid(torch.zeros(1, 64, 2, 4))] == [(1, 256, 4, 8), (1, 256, 1, 2)]


def test_every_parameter_learns() -> None:
    pyramid = SimpleFeaturePyramid(16, 16, channels=dict.fromkeys(SIDES, 8))
    randomise(pyramid)
    sum(level.square().mean() for level in pyramid(torch.randn(2, 16, 4, 4))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pyramid.parameters())


@pytest.mark.parametrize("taps", [("P1",), ("P4", "P6")])
def test_other_taps_are_refused(taps: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"to make .* from a map at 1/16; it can make P2, P3, P4, P5 from .*1/16"):
        SimpleFeaturePyramid(16, 16, taps)


def test_other_reductions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"from a map at 1/14; it can make .* from a map at 1/8, 1/16, 1/32"):
        SimpleFeaturePyramid(16, 14)


def test_what_a_pyramid_is_made_from() -> None:
    assert check_plain("vit", [16, 16, 16]) == 16
    with pytest.raises(ValueError, match="vit needs none: it has maps at 1/4, 1/8 of the image's side by itself"):
        check_plain("vit", [4, 8])
    with pytest.raises(ValueError, match=r"map of vit is at 1/14 .* from 1/8, 1/16, 1/32. Take a variant with another"):
        check_plain("vit", [14])


@pytest.mark.filterwarnings("ignore:You are using the legacy")
def test_exports_to_onnx(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pyramid = SimpleFeaturePyramid(16, 16, channels=dict.fromkeys(SIDES, 8)).eval()
    randomise(pyramid)
    fused, x = fusion.fuse(pyramid), torch.randn(1, 16, 4, 6)
    torch.onnx.export(fused, (x,), str(tmp_path / "p.onnx"), dynamo=False, opset_version=17)
    session = onnxruntime.InferenceSession(str(tmp_path / "p.onnx"))
    outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_features([torch.from_numpy(out) for out in outputs], run(pyramid, x), 1e-5)

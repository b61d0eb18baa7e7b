"""Fake-quantised models: folding leaves them as they were trained, and quantisers stay away from our norms."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from contract import random_image, randomise, run
from families import SMALLEST
from torch import Tensor, nn

from yolo_lightbackbones import create_backbone, fusion
from yolo_lightbackbones.backbone import Backbone

pytestmark = pytest.mark.usefixtures("one_thread")


class Quantiser(nn.Module):
    """Rounds to 8 bits within a range that was measured before, as `TensorQuantizer` of NVIDIA ModelOpt does."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self.register_buffer("amax", torch.tensor(largest))

    def forward(self, x: Tensor) -> Tensor:
        step = self.get_buffer("amax") / 127
        return (x / step).round().clamp(-127, 127) * step


def quantise(module: nn.Module) -> None:
    """Give the convolutions and linear layers inside quantisers and a class of their own, as ModelOpt does."""
    for layer in [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]:
        layer.input_quantizer = Quantiser(1.0)
        layer.weight_quantizer = Quantiser(layer.weight.abs().max().item())
        kind = type(layer)
        layer.__class__ = type(f"Quant{kind.__name__}", (kind,), {"forward": quantised_forward, "kind": kind})


def quantised_forward(self: Any, x: Tensor) -> Tensor:
    plain = self.weight
    try:
        self._parameters["weight"] = self.weight_quantizer(plain)
        out: Tensor = self.kind.forward(self, self.input_quantizer(x))
        return out
    finally:
        self._parameters["weight"] = plain


def assert_folding_changes_nothing(backbone: Backbone, image: Tensor) -> None:
    expected = run(backbone, image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # quantisers are meant to stay: nothing to tell the user about
        fused = fusion.fuse(backbone)
    for feature, wanted in zip(run(fused, image), expected, strict=True):
        torch.testing.assert_close(feature, wanted, rtol=1e-4, atol=1e-4 * wanted.std().item())
    assert fusion.is_fused(fused)
    names = [name for name, _ in backbone.named_modules() if name.endswith("_quantizer")]
    assert names
    assert [name for name, _ in fused.named_modules() if name.endswith("_quantizer")] == names


def build(name: str, **options: Any) -> Backbone:
    backbone = create_backbone(name, **options)
    randomise(backbone)
    return backbone.eval()


@pytest.mark.parametrize("name", SMALLEST.values())
def test_layers_with_quantisers_are_not_folded(name: str) -> None:
    backbone, image = build(name, taps=("P3", "P5"), normed_taps=("P5",)), random_image(64, 96)
    floats = run(backbone, image)
    quantise(backbone)
    assert not torch.equal(run(backbone, image)[-1], floats[-1])
    assert_folding_changes_nothing(backbone, image)


def test_only_blocks_with_quantisers_are_left() -> None:
    backbone, image = build("repvit_m0_6", taps=("P3",)), random_image(64, 96)
    quantise(backbone.get_submodule("stages.1.blocks.0.channel_mixer"))
    expected = run(backbone, image)
    assert not fusion.is_fused(backbone)
    fused = fusion.fuse(backbone)
    assert fusion.is_fused(fused)
    assert type(fused.get_submodule("stages.0.blocks.0.channel_mixer.conv1")) is nn.Conv2d
    torch.testing.assert_close(run(fused, image), expected, rtol=1e-4, atol=1e-4)


def test_a_detector_with_quantisers_is_fused_once() -> None:
    from ultralytics import YOLO

    model = YOLO("yolov5n_repvit.yaml").model.eval()
    randomise(model.model[0])
    quantise(model.model[0])
    image = random_image(64, 64)
    expected = run(model.model[0], image)
    model.fuse(verbose=False)
    assert model.is_fused()
    first = model.model[0]
    model.fuse(verbose=False)
    assert model.model[0] is first
    torch.testing.assert_close(run(first, image), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SMALLEST.values())
def test_modelopt(name: str) -> None:
    mtq = pytest.importorskip("modelopt.torch.quantization", reason="nvidia-modelopt is not installed (extra `qat`)")
    backbone, image = build(name), random_image(64, 64)
    mtq.quantize(backbone, copy.deepcopy(mtq.INT8_DEFAULT_CFG), lambda model: run(model, image))
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):  # ModelOpt leaves them in float
            quantiser = getattr(module, "input_quantizer", None)
            assert quantiser is None or not quantiser.is_enabled
    assert_folding_changes_nothing(backbone, image)


@pytest.mark.filterwarnings("ignore")
def test_a_detector_trained_with_modelopt() -> None:
    pytest.importorskip("modelopt.torch.quantization", reason="nvidia-modelopt is not installed (extra `qat`)")
    from detectors import awake_detector
    from ultralytics.utils.torch_utils import is_qat, prepare_qat

    net = awake_detector("yolov5n_repvit.yaml").model
    image = random_image(64, 64, batch=2)
    net = prepare_qat(net, [image], lambda batch: batch).eval()
    assert is_qat(net)
    with torch.no_grad():
        expected = net(image)[0]
        fused = copy.deepcopy(net).fuse(verbose=False)
        seen = fused(image)[0]
    assert expected[:, 4:].std() > 0.01
    assert fused.is_fused()
    # Ultralytics folds its own layers: sums in another order may round to a neighbouring step
    assert (seen - expected)[:, 4:].abs().mean() < 0.02 * expected[:, 4:].std()

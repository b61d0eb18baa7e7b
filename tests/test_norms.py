"""LayerNorm over channels, recorded as the elementwise operations of its definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import published
import pytest
import torch
from torch import Tensor, nn

from yolo_lightbackbones import create_backbone, fuse, load_weights, recording
from yolo_lightbackbones.layers import LayerNorm2d
from yolo_lightbackbones.testing import assert_features, randomise, run

pytestmark = pytest.mark.usefixtures("one_thread")


ATTENTION = {"edgevit_xxs": 7, "conv2former_n": 0}
"""Norms in front of attention: its tokens have their channels last as it is."""


def norm(dim: int) -> LayerNorm2d:
    layer = LayerNorm2d(dim).eval()
    randomise(layer)
    return layer


def definition(x: Tensor, layer: LayerNorm2d) -> Tensor:
    """In float64, position by position."""
    tokens = x.double().movedim(1, 3)
    normed = (tokens - tokens.mean(3, keepdim=True)) / (tokens.var(3, correction=0, keepdim=True) + layer.eps).sqrt()
    return (normed * layer.weight.double() + layer.bias.double()).movedim(3, 1)


def traced(module: nn.Module, x: Tensor, *, elementwise: bool) -> Any:
    recording.record_for(module, elementwise_norms=elementwise)
    return torch.jit.trace(module, x, strict=False)


@pytest.mark.parametrize("elementwise", [True, False])
def test_a_recording_has_the_form_that_was_chosen(elementwise: bool) -> None:
    layer = norm(6)
    x = torch.randn(2, 6, 3, 5) * 3 + 10
    recorded = traced(layer, x, elementwise=elementwise)
    assert ("layer_norm" in str(recorded.graph)) != elementwise
    other = torch.randn(2, 6, 3, 5) - 7
    torch.testing.assert_close(recorded(other).double(), definition(other, layer), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(other).double(), definition(other, layer), rtol=1e-5, atol=1e-5)


def test_python_calls_do_not_change() -> None:
    layer, x = norm(6), torch.randn(2, 6, 3, 5)
    before = layer(x)
    recording.record_for(layer, elementwise_norms=True)
    torch.testing.assert_close(layer(x), before, rtol=0, atol=0)


def test_squares_do_not_overflow_float16() -> None:
    layer = norm(6).half()
    x = torch.randn(1, 6, 3, 5).half() * 4000
    recorded = traced(layer, x, elementwise=True)(x)
    assert recorded.dtype == torch.float16
    torch.testing.assert_close(recorded.double(), definition(x, layer), rtol=2e-3, atol=2e-3)


def test_openvino_recognises_a_normalisation_that_moves_no_channels() -> None:
    openvino = pytest.importorskip("openvino")
    layer, x = norm(6), torch.randn(1, 6, 4, 4) * 3 + 10
    model = openvino.convert_model(traced(layer, x, elementwise=True), input=x.shape, example_input=x)
    kinds = {operation.get_type_name() for operation in model.get_ordered_ops()}
    assert "MVN" in kinds
    assert not kinds & {"Transpose", "ReduceMean"}
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    torch.testing.assert_close(
        torch.from_numpy(compiled(x.numpy())[0]).double(), definition(x, layer), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ["edgevit_xxs_96x64", "conv2former_n_96x64"])
def test_published_outputs(name: str, tmp_path: Path) -> None:
    golden = published.golden(name)
    backbone = create_backbone(golden["name"], input_norm="none").eval()
    state = published.make_state(golden["keys"])
    load_weights(backbone, published.save_checkpoint(state, tmp_path / "w.pth", golden["checkpoint_wrapper"]))
    image = published.make_image(golden["input"]["shape"])
    fused = fuse(backbone)
    recorded = traced(fused, image, elementwise=True)
    assert str(recorded.inlined_graph).count("aten::layer_norm") == ATTENTION[golden["name"]]
    outputs = run(recorded, image)
    assert_features(outputs, run(fused, image), 1e-5)
    for output, expected in zip(outputs, golden["taps"].values(), strict=True):
        values = output.flatten()[expected["indices"]]
        torch.testing.assert_close(values, torch.tensor(expected["values"]), rtol=0, atol=1e-4 * expected["std"])

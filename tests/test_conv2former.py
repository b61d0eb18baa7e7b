"""Conv2Former: the family contract, and what is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract import Expected, FamilyContract, imagenet, random_image, randomise, run
from torch import Tensor, nn

from yolo_lightbackbones import fusion
from yolo_lightbackbones.backbones.conv2former import Conv2Former, Conv2FormerConfig, ConvModBlock
from yolo_lightbackbones.registry import create_backbone


class TestConv2Former(FamilyContract):
    family = "conv2former"
    class_name = "Conv2Former"
    smallest = "n"
    # counted on HVision-NKU/Conv2Former 94fd1c4; b_k7 is b without 11 * 11 - 7 * 7 = 72 weights, and as many products a
    # position, in each of the 4 * 96 + 4 * 192 + 34 * 384 + 4 * 768 = 17,280 kernels
    expected = {
        "n": Expected(13_052_640, 2.2969, (64, 128, 256, 512)),
        "t": Expected(24_675_084, 4.3231, (72, 144, 288, 576)),
        "s": Expected(48_010_572, 8.671, (72, 144, 288, 576)),
        "b": Expected(87_761_232, 15.8407, (96, 192, 384, 768)),
        "l": Expected(196_298_176, 35.972, (128, 256, 512, 1024)),
        "b_k7": Expected(87_761_232 - 72 * 17_280, 15.5156, (96, 192, 384, 768)),
    }
    top1 = {"n": 81.5, "t": 83.2, "s": 84.1, "b": 84.4, "l": 87.0}
    others = ("is", "ib")
    weights = {**dict.fromkeys(expected, "by hand"), **dict.fromkeys(others, "none released")}
    row_tap_norm = "batch"

    @staticmethod
    def prepare(image: Tensor) -> Tensor:
        return imagenet(image)

    def test_layer_scales_start_next_to_nothing(self) -> None:
        scales = [p for name, p in create_backbone("conv2former_n").named_parameters() if "layer_scale" in name]
        assert [tuple(scale.shape) for scale in scales[:2]] == [(64,), (64,)]
        assert len(scales) == 2 * (2 + 2 + 8 + 2)
        assert all((scale == 1e-6).all() for scale in scales)

    def test_layer_scales_of_a_start_from_scratch(self) -> None:
        """SGD leaves those that start at 1e-6 below 0.01 in hundreds of updates, see docs/accuracy.md."""
        scratch = create_backbone("conv2former_n", taps=("P3",), init="scratch")
        scales = [p.detach() for name, p in scratch.named_parameters() if "layer_scale" in name]
        assert len(scales) == 2 * (2 + 2)
        for scale in scales:
            torch.testing.assert_close(scale, torch.full_like(scale, 0.1))

    def test_eps_of_layer_norms(self) -> None:
        assert {m.eps for m in self.build().modules() if isinstance(m, nn.LayerNorm)} == {1e-6}

    def test_folding_leaves_no_affine_terms_and_no_layer_scales(self) -> None:
        fused = fusion.fuse(self.build())
        norms = [m for m in fused.modules() if isinstance(m, nn.LayerNorm)]
        assert norms
        assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)
        assert not [name for name, _ in fused.named_parameters() if "layer_scale" in name]

    def test_starts_as_drawn_by_the_authors(self) -> None:
        torch.manual_seed(0)
        for module in create_backbone("conv2former_n", taps=("P3",)).modules():
            if isinstance(module, nn.Conv2d):
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
                assert module.bias is None or not module.bias.any()


def test_block_by_hand() -> None:
    block = ConvModBlock(4, kernel_size=5, mlp_ratio=2).double().eval()
    randomise(block)
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    state: dict[str, Tensor] = dict(block.state_dict())

    def conv(name: str, value: Tensor) -> Tensor:
        """1x1, or depthwise with zeros around the map."""
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"].view(1, -1, 1, 1)
        if weight.shape[2] == 1:
            full: Tensor = torch.einsum("oi,bihw->bohw", weight[:, :, 0, 0], value)
            return full + bias
        border, (height, width) = weight.shape[2] // 2, value.shape[2:]
        padded = nn.functional.pad(value, (border,) * 4)
        out = torch.zeros_like(value) + bias
        for i in range(weight.shape[2]):
            for j in range(weight.shape[3]):
                out += padded[:, :, i : i + height, j : j + width] * weight[:, 0, i, j].view(1, -1, 1, 1)
        return out

    def norm(name: str, value: Tensor) -> Tensor:
        mean, var = value.mean(1, keepdim=True), value.var(1, keepdim=True, unbiased=False)
        weight, bias = (state[f"{name}.{key}"].view(1, -1, 1, 1) for key in ("weight", "bias"))
        return (value - mean) / (var + 1e-6).sqrt() * weight + bias

    def gelu(value: Tensor) -> Tensor:
        return value * (1 + torch.erf(value / 2**0.5)) / 2

    scale1, scale2 = (state[f"layer_scale{i}"].view(1, -1, 1, 1) for i in (1, 2))
    tokens = norm("attn.norm", x)
    weights = conv("attn.depthwise", gelu(conv("attn.query", tokens)))
    y = x + scale1 * conv("attn.proj", weights * conv("attn.value", tokens))
    hidden = gelu(conv("mlp.fc1", norm("mlp.norm", y)))
    y = y + scale2 * conv("mlp.fc2", hidden + gelu(conv("mlp.depthwise", hidden)))
    with torch.no_grad():
        torch.testing.assert_close(block(x), y)
        torch.testing.assert_close(fusion.fuse(block)(x), y)


def test_layer_scale_survives_float16() -> None:
    # 1e-6 has four bits left in float16, and what it scales must not be rounded on top of that
    block = ConvModBlock(4, kernel_size=3).eval()
    torch.nn.init.constant_(block.attn.proj.bias, 5e4)  # type: ignore[arg-type]
    torch.nn.init.zeros_(block.attn.proj.weight)
    torch.nn.init.zeros_(block.mlp.fc2.weight)
    x = torch.zeros(1, 4, 4, 4)
    expected = torch.full_like(x, 0.05)
    torch.testing.assert_close(block(x), expected)
    torch.testing.assert_close(block.half()(x.half()).float(), expected, rtol=0.06, atol=0)


def test_layer_scale_survives_autocast() -> None:
    block = ConvModBlock(4, kernel_size=3).eval()
    torch.nn.init.constant_(block.attn.proj.bias, 100)  # type: ignore[arg-type]
    torch.nn.init.zeros_(block.attn.proj.weight)
    torch.nn.init.zeros_(block.mlp.fc2.weight)
    x = torch.ones(1, 4, 4, 4, dtype=torch.bfloat16)  # as it comes out of a convolution under autocast
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(block(x), torch.full((1, 4, 4, 4), 1.0001))


def test_weights_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the 200 M of conv2former_l a second time would take seconds."""
    drawn = []

    def counting(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def count(tensor: Tensor, *args: Any, **options: Any) -> Tensor:
            drawn.append(tensor.numel())
            return draw(tensor, *args, **options)

        return count

    for name in ("normal_", "trunc_normal_", "uniform_", "kaiming_uniform_", "kaiming_normal_"):
        monkeypatch.setattr(nn.init, name, counting(getattr(nn.init, name)))
    backbone = create_backbone("conv2former_n")
    assert sum(drawn) == sum(m.weight.numel() for m in backbone.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (1,)}, "one entry per stage"),
        ({"depths": (1, 1), "kernel_size": 4}, "kernel_size 4 must be odd"),
        ({"depths": (1, 1), "patch_size": 14}, "patch_size 14 must be 4, 8, 16 or 32"),
    ],
)
def test_config_is_checked(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Conv2FormerConfig(dims=(8, 16), **options)  # type: ignore[arg-type]


def test_custom_config() -> None:
    config = Conv2FormerConfig(dims=(8, 16), depths=(1, 2), kernel_size=5, layer_scale=0.5)
    features = run(Conv2Former(config, taps=("P3",)).eval(), random_image(32, 64))
    assert [tuple(feature.shape) for feature in features] == [(1, 16, 4, 8)]

"""SepNet: residual blocks of depthwise separable convolutions, as an example of a family in a package of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from yolo_lightbackbones import Stage, StagedBackbone
from yolo_lightbackbones.blocks import BlockRow
from yolo_lightbackbones.card import Card
from yolo_lightbackbones.input_norm import IMAGENET
from yolo_lightbackbones.layers import ConvNorm, DropPath, drop_path_rates
from yolo_lightbackbones.options import odd


@dataclass(frozen=True)
class SepNetConfig:
    dims: tuple[int, ...]
    depths: tuple[int, ...]


class SepBlock(nn.Module):
    """A depthwise and a 1x1 convolution as a residual: (B, dim, H, W) -> the same."""

    def __init__(self, dim: int, kernel_size: int = 3, drop_path: float = 0.0) -> None:
        super().__init__()
        self.depthwise = ConvNorm(dim, dim, kernel_size, groups=dim)
        self.act = nn.SiLU()
        self.pointwise = ConvNorm(dim, dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.drop_path(self.pointwise(self.act(self.depthwise(x))))
        return out


class SepBlocks(BlockRow):
    """A row `[-1, 2, SepBlock, [256, {kernel_size: 5}]]` of a model YAML: (B, c1, H, W) -> (B, c2, H, W)."""

    options = {"kernel_size": odd(3, most=31)}

    def build_block(self, dim: int, index: int, options: Mapping[str, Any]) -> nn.Module:
        return SepBlock(dim, options["kernel_size"])


class SepNet(StagedBackbone):
    """Image (B, C, H, W) -> taps P2..P5, each (B, dims[i], H / 2^(i+2), W / 2^(i+2))."""

    family = "sepnet"
    variants = {
        "n": SepNetConfig(dims=(16, 32, 64, 128), depths=(1, 1, 2, 1)),
        "s": SepNetConfig(dims=(32, 64, 128, 256), depths=(1, 2, 4, 1)),
    }
    block_rows = {"SepBlock": SepBlocks}
    input_convention = IMAGENET  # what input_norm="auto" does to RGB in 0..1
    row_tap_norm = "batch"  # a stage ends with a sum that nothing normalises
    card = Card(
        title="SepNet",
        licence="MIT",
        repository="github.com/me/yolo-sepnet",
        letters={"n": "n", "s": "s"},
        weights={"n": "by hand", "s": "by hand"},
        by_hand="SepNet's weights are on request: write to me@example.org.",
        layouts="yolo_sepnet.layouts",
    )

    def build_stem(self, config: SepNetConfig, in_channels: int) -> nn.Module:
        dim = config.dims[0]
        return nn.Sequential(ConvNorm(in_channels, dim, 3, stride=2), nn.SiLU(), ConvNorm(dim, dim, 3, stride=2))

    def build_stages(self, config: SepNetConfig, drop_path_rate: float) -> Iterator[Stage]:
        rates = drop_path_rates(drop_path_rate, config.depths)
        for i, (dim, stage_rates) in enumerate(zip(config.dims, rates, strict=True)):
            downsample = ConvNorm(config.dims[i - 1], dim, 3, stride=2) if i else None  # the stem does the first one
            blocks = [SepBlock(dim, drop_path=rate) for rate in stage_rates]
            yield Stage(blocks, channels=dim, reduction=2 ** (i + 2), downsample=downsample)

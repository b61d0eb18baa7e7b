"""SepNet: residual blocks of depthwise separable convolutions, as an example of a family in a package of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from yolo_lightbackbones import Stage, StagedBackbone
from yolo_lightbackbones.card import Card
from yolo_lightbackbones.input_norm import IMAGENET
from yolo_lightbackbones.layers import ConvNorm, drop_path_rates
from yolo_sepnet.blocks import SepBlock, SepBlocks


@dataclass(frozen=True)
class SepNetConfig:
    dims: tuple[int, ...]
    depths: tuple[int, ...]


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

"""SepNet's block, and rows of such blocks in model YAMLs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from yolo_lightbackbones.blocks import BlockRow
from yolo_lightbackbones.layers import ConvNorm, DropPath
from yolo_lightbackbones.options import odd


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

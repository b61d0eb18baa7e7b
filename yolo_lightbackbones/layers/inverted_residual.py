"""The inverted residual block of MobileNetV2."""

from __future__ import annotations

from torch import Tensor, nn

from yolo_lightbackbones.layers.conv_norm import ConvNorm
from yolo_lightbackbones.layers.drop_path import DropPath


class InvertedResidual(nn.Module):
    """Block of MobileNetV2 (arXiv 1801.04381): (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride)."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, expansion: int = 4, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        self.expand = ConvNorm(in_channels, hidden)
        self.depthwise = ConvNorm(hidden, hidden, 3, stride, groups=hidden)
        self.project = ConvNorm(hidden, out_channels)
        self.act = nn.SiLU()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.act(self.depthwise(self.act(self.expand(x)))))
        return x + self.drop_path(out) if self.residual else out

"""The inverted residual block of MobileNetV2, also with another activation or another layer in its middle."""

from __future__ import annotations

from torch import Tensor, nn

from yolo_lightbackbones.layers.conv_norm import ConvNorm
from yolo_lightbackbones.layers.drop_path import DropPath
from yolo_lightbackbones.layers.recompute import run


class InvertedResidual(nn.Module):
    """Block of MobileNetV2 (arXiv 1801.04381): (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: 1 or 2.
        expansion: channels inside, as a multiple of `in_channels`.
        drop_path: rate of stochastic depth, where there is a residual.
        act: class of the activation.
        middle: layer in the place of the depthwise convolution, with its norm, for a block of stride 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        expansion: int = 4,
        drop_path: float = 0.0,
        *,
        act: type[nn.Module] = nn.SiLU,
        middle: nn.Module | None = None,
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        self.expand = ConvNorm(in_channels, hidden)
        self.depthwise = ConvNorm(hidden, hidden, 3, stride, groups=hidden) if middle is None else middle
        self.project = ConvNorm(hidden, out_channels)
        self.act = act()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out = run(x, self.expand, self.act, self.depthwise, self.act, self.project)
        return x + self.drop_path(out) if self.residual else out

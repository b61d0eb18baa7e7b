"""Convolution and BatchNorm as one layer."""

from __future__ import annotations

from torch import Tensor, nn

from yolo_lightbackbones import fusion
from yolo_lightbackbones.layers.norms import BatchNorm2d


class ConvNorm(fusion.Fusible):
    """Convolution without bias ("same" padding for odd kernels), then BatchNorm; folds into one convolution."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False
        )
        self.norm = BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out

    def fold(self) -> nn.Conv2d:
        return fusion.fold_norm_behind(self.conv, self.norm)

"""Downsampling between stages, as in ConvNeXt."""

from __future__ import annotations

from torch import nn

from yolo_lightbackbones import fusion
from yolo_lightbackbones.layers.norms import LayerNorm2d
from yolo_lightbackbones.layers.recompute import Chained, Layer


class Downsample(Chained, fusion.Fusible):
    """LayerNorm and a 2x2 convolution of stride 2: (B, in_channels, H, W) -> (B, dim, H / 2, W / 2).

    Args:
        in_channels: channels of the input.
        dim: channels of the output.
        conv: class of the convolution, for an initialisation of its own.
    """

    def __init__(self, in_channels: int, dim: int, conv: type[nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__()
        self.norm = LayerNorm2d(in_channels, eps=1e-6)
        self.conv = conv(in_channels, dim, 2, stride=2)

    def layers(self) -> tuple[Layer, ...]:
        return self.norm, self.conv

    def fold(self) -> Downsample:
        self.conv = fusion.scale_inputs(self.conv, *fusion.take_affine(self.norm))
        return self

"""The simple feature pyramid: all taps from the one map of a plain backbone, such as a ViT.

Paper: Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection" (ViTDet), ECCV 2022,
arXiv 2203.16527, section 3. Written from the paper, with its layers, their order and its 256 channels at every level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from yolo_lightbackbones import fusion
from yolo_lightbackbones.layers.norms import LayerNorm2d
from yolo_lightbackbones.options import TAPS

PYRAMID = "pyramid"
"""Name of the pyramid in a backbone, the first part of its names in a state dict; no published file has such names."""

PYRAMID_CHANNELS = 256
"""Channels of every level, as in ViTDet. Necks of YOLO take any number."""

REDUCTIONS = (8, 16, 32)
"""Reductions of the map that a pyramid can be made from."""


class PyramidLevel(fusion.Fusible):
    """One level: resampling, 1x1 convolution, norm, 3x3 convolution, norm.

    (B, dim, H, W) -> (B, channels, H * 2^steps, W * 2^steps). Upwards, each step is a transposed convolution that
    halves the channels, with a norm and GELU between two of them. Downwards, max pooling.

    Args:
        dim: channels of the backbone's map.
        channels: channels of the level.
        steps: how many times the side doubles; negative if it is halved.
    """

    def __init__(self, dim: int, channels: int, steps: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for step in range(steps):
            if step:
                layers += [LayerNorm2d(dim), nn.GELU()]
            layers.append(nn.ConvTranspose2d(dim, dim // 2, 2, stride=2))
            dim //= 2
        if steps < 0:
            layers.append(nn.MaxPool2d(2**-steps))
        self.resample = nn.Sequential(*layers)
        self.conv1: nn.Module = nn.Conv2d(dim, channels, 1, bias=False)
        self.norm1 = LayerNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = LayerNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(self.resample(x)))
        out: Tensor = self.norm2(self.conv2(x))
        return out

    def fold(self) -> PyramidLevel:
        """Fold the 1x1 convolution into the transposed one before it, where this saves weights and multiplications.

        The affine terms of the norms stay: behind `norm1` comes a convolution that pads with zeros, which a shift
        cannot pass, and behind the others comes no linear layer.
        """
        last, conv = (self.resample[-1] if len(self.resample) else None), self.conv1
        if isinstance(last, nn.ConvTranspose2d) and isinstance(conv, nn.Conv2d):
            fusion.expect(last, nn.ConvTranspose2d)
            fusion.expect(conv, nn.Conv2d)
            dim, inner, channels = last.in_channels, last.out_channels, conv.out_channels
            if 4 * dim * channels <= inner * (4 * dim + channels):
                self.resample[-1], self.conv1 = _composed(last, conv), nn.Identity()
        return self


def _composed(first: nn.ConvTranspose2d, second: nn.Conv2d) -> nn.ConvTranspose2d:
    """The transposed 2x2 convolution of stride 2 that computes `second(first(x))`; `second` is 1x1, without bias."""
    matrix = fusion.exact(second.weight)[:, :, 0, 0]  # (channels, inner)
    with torch.device("meta"):
        conv = nn.ConvTranspose2d(first.in_channels, second.out_channels, 2, stride=2)
    weight = torch.einsum("oi,cihw->cohw", matrix, fusion.exact(first.weight)).to(first.weight)
    bias = matrix.new_zeros(len(matrix)) if first.bias is None else matrix @ fusion.exact(first.bias)
    conv.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(first.weight), requires_grad=False)
    return conv


class SimpleFeaturePyramid(nn.ModuleDict):
    """Taps from one map: (B, dim, H / reduction, W / reduction) -> a list with one map per tap, shallow to deep.

    The paper has a map at 1/16, as of a ViT with 16x16 patches: P2 and P3 are upsampled, P4 keeps its size, P5 is
    pooled. For 1/8 and 1/32 we count the same steps from there. Only the levels of `taps` are built.

    Args:
        dim: channels of the map.
        reduction: image side divided by the side of the map; see `REDUCTIONS`.
        taps: levels to build, shallow to deep.
        channels: channels of each tap.

    Raises:
        ValueError: for another reduction, and for a tap that is not one of P2..P5.
    """

    def __init__(
        self, dim: int, reduction: int, taps: Sequence[str] = TAPS, channels: Mapping[str, int] | None = None
    ) -> None:
        if reduction not in REDUCTIONS or not set(taps) <= set(TAPS):
            raise ValueError(
                f"The pyramid is to make {', '.join(taps)} from a map at 1/{reduction}; it can make {', '.join(TAPS)} "
                f"from a map at {_FRACTIONS}."
            )
        channels = pyramid_taps() if channels is None else channels
        own = int(math.log2(reduction))
        super().__init__({tap: PyramidLevel(dim, channels[tap], own - int(tap[1:])) for tap in taps})

    def forward(self, x: Tensor) -> list[Tensor]:
        return [level(x) for level in self.values()]


_FRACTIONS = ", ".join(f"1/{reduction}" for reduction in REDUCTIONS)


def pyramid_taps() -> dict[str, int]:
    """The taps that a pyramid offers, shallow to deep: tap -> channels."""
    return dict.fromkeys(TAPS, PYRAMID_CHANNELS)


def check_plain(name: str, reductions: Sequence[int]) -> int:
    """Check that a backbone has one map only, which a pyramid can be made from; return its reduction.

    Args:
        name: name of the backbone for error messages.
        reductions: reductions of the maps that the backbone has by itself.

    Raises:
        ValueError: for a backbone with maps of several reductions, and for a reduction that no pyramid fits.
    """
    present = sorted(set(reductions))
    if len(present) != 1:
        raise ValueError(
            f"pyramid is 'simple', and {name} needs none: it has maps at {', '.join(f'1/{one}' for one in present)} of "
            "the image's side by itself. Leave the option out."
        )
    if present[0] not in REDUCTIONS:
        raise ValueError(
            f"pyramid is 'simple', and the map of {name} is at 1/{present[0]} of the image's side; taps at 1/4 to 1/32 "
            f"can be made from {_FRACTIONS}. Take a variant with another patch size."
        )
    return present[0]

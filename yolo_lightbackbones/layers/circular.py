"""Circular convolution along the rows or columns of a map, with kernels resized to it; for ParC-Net and its hybrids.

Along an axis of length L: `y[i] = sum over j of kernel[j] * x[(i + j) mod L]`, per channel (ParC-Net, arXiv 2203.03952,
section 3.1). A learned kernel or position embedding has size 1 in every direction except its axis. It is resized to the
map by bilinear interpolation with aligned corners.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_lightbackbones import recording

Axis = Literal[2, 3]
"""Index of the height (2) or the width (3) in (B, C, H, W)."""


def resize(weight: Tensor, axis: Axis, length: int) -> Tensor:
    """Interpolate a learned kernel or embedding to `length` along its axis; in other directions it has size 1."""
    size = [length, 1] if axis == 2 else [1, length]
    return F.interpolate(weight, size, mode="bilinear", align_corners=True)


def circulant(kernel: Tensor) -> Tensor:
    """Make matrices (C, L, L) of kernels of the length L of a map: `matrix[c, i, j] = kernel[c, (j - i) mod L]`."""
    rows = kernel.flatten(1)  # (C, L)
    windows = torch.cat((rows, rows), 1).unfold(1, rows.shape[1], 1)  # (C, L + 1, L): shifted left by 0..L
    return windows[:, 1:].flip(1)


def circular_conv(x: Tensor, kernel: Tensor, axis: Axis) -> Tensor:
    """Compute, per channel, `y[i] = sum over j of kernel[j] * x[(i + j) mod L]`: (B, C, H, W) -> the same."""
    return torch.einsum("cij,bcjw->bciw" if axis == 2 else "cij,bchj->bchi", circulant(kernel), x)


@dataclass(frozen=True)
class FixedConv:
    """A circular convolution on maps of one size, as a kernel and as a matrix, with an offset added behind it."""

    axis: Axis
    kernel: Tensor  # (C, 1, L, 1) or (C, 1, 1, L)
    matrix: Tensor  # (C, L, L): multiplied from the left along the height, from the right along the width
    offset: Tensor | None  # (1, C, 1, 1), or as long as the map along one axis

    @property
    def length(self) -> int:
        return self.kernel.shape[self.axis]

    def __call__(self, x: Tensor, as_matrix: bool = True) -> Tensor:
        if as_matrix:
            x = torch.matmul(self.matrix, x) if self.axis == 2 else torch.matmul(x, self.matrix)
        else:
            rest = self.length - 1
            x = torch.cat((x, x[:, :, :rest] if self.axis == 2 else x[:, :, :, :rest]), self.axis)
            x = F.conv2d(x, self.kernel, groups=self.kernel.shape[0])
        return x if self.offset is None else x + self.offset


def symbolic_resize(weight: Tensor, axis: Axis, x: Tensor) -> Tensor:
    """Do `resize` to the length of `x` as a matrix product, because exporters need a known size for interpolation."""
    places = torch.arange(x.shape[axis], device=x.device)
    places = places / places[-1:].clamp(min=1) * (weight.shape[axis] - 1)  # new entries among the old ones
    distances = places[:, None] - torch.arange(weight.shape[axis], device=x.device)
    shares = (1 - distances.abs()).clamp(min=0).to(weight.dtype)  # (new length, old length)
    return torch.matmul(shares, weight) if axis == 2 else torch.matmul(weight, shares.t())


def symbolic_circular_conv(x: Tensor, weight: Tensor, axis: Axis) -> Tensor:
    """Resize the kernel to the map and convolve; a recording holds for any size. (B, C, H, W) -> the same."""
    rows = symbolic_resize(weight, axis, x).flatten(1)  # (C, L)
    places = torch.arange(x.shape[axis], device=x.device)
    shifts = places[None] - places[:, None] + x.shape[axis]  # j - i + L at [i, j], into the kernel twice in a row
    matrix = torch.cat((rows, rows), 1)[:, shifts if axis == 2 else shifts.t()]  # (C, L, L)
    return torch.matmul(matrix, x) if axis == 2 else torch.matmul(x, matrix)


class CircularConv(recording.SizeBound):
    """Global circular convolution along one axis, depthwise (2203.03952, section 3.1): (B, dim, H, W) -> the same.

    Every position sees its whole row or column. There is no border: behind one end, the map continues with the other.
    """

    def __init__(self, dim: int, length: int, axis: Axis) -> None:
        super().__init__()
        self.axis: Axis = axis
        self.weight = nn.Parameter(torch.empty(dim, 1, *((length, 1) if axis == 2 else (1, length))))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as PyTorch initialises a convolution of this shape

    def forward(self, x: Tensor) -> Tensor:
        if self.any_size and recording.is_recording():
            return symbolic_circular_conv(x, self.weight, self.axis)
        return circular_conv(x, resize(self.weight, self.axis, int(x.shape[self.axis])), self.axis)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, length={max(self.weight.shape[2:])}, axis={'HW'[self.axis - 2]}"

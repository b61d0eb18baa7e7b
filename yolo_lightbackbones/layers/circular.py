"""Circular convolution along the rows or columns of a map, with kernels resized to it; for ParC-Net and its hybrids.

Along an axis of length L: `y[i] = sum over j of kernel[j] * x[(i + j) mod L]`, per channel (ParC-Net, arXiv 2203.03952,
section 3.1), or dense, summed over the input channels as well. A learned kernel or position embedding has size 1 in
every direction except its axis. It is resized to the map by bilinear interpolation with aligned corners.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

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


def circular_conv(x: Tensor, kernel: Tensor, axis: Axis, dense: bool = False) -> Tensor:
    """Compute `y[i] = sum over j of kernel[j] * x[(i + j) mod L]`: (B, C, H, W) -> the same.

    The kernel is (C, 1, L, 1) or (C, 1, 1, L); if `dense`, (out, in, L, 1) or (out, in, 1, L). Depthwise, the product
    with its circulant matrix is faster than a convolution of the continued map. Dense, that matrix would have (C * L)^2
    entries.
    """
    if dense:
        return F.conv2d(continued(x, kernel.shape[axis], axis), kernel)
    return torch.einsum("cij,bcjw->bciw" if axis == 2 else "cij,bchj->bchi", circulant(kernel), x)


def continued(x: Tensor, length: int, axis: Axis) -> Tensor:
    """Append the first `length - 1` rows or columns of a map behind its last: (B, C, L, W) -> (B, C, 2L - 1, W)."""
    return torch.cat((x, x[:, :, : length - 1] if axis == 2 else x[:, :, :, : length - 1]), axis)


@dataclass(frozen=True)
class FixedConv:
    """A circular convolution on maps of one size, as a kernel and as a matrix, with an offset added behind it."""

    axis: Axis
    kernel: Tensor  # (C, 1, L, 1) or (C, 1, 1, L); dense, (out, in, L, 1) or (out, in, 1, L)
    matrix: Tensor | None  # (C, L, L): multiplied from the left along the height, from the right along the width.
    # None if the convolution is dense
    offset: Tensor | None  # (1, C, 1, 1), or as long as the map along one axis

    @classmethod
    def of(cls, axis: Axis, kernel: Tensor, offset: Tensor | None, like: Tensor, dense: bool = False) -> FixedConv:
        """Make the convolution from a float64 kernel of the map's length, in the dtype and on the device of `like`."""
        matrix = None
        if not dense:
            matrix = circulant(kernel).to(like)
            matrix = (matrix if axis == 2 else matrix.transpose(1, 2)).contiguous()
        return cls(axis, kernel.to(like), matrix, None if offset is None else offset.to(like))

    @property
    def length(self) -> int:
        return self.kernel.shape[self.axis]

    def __call__(self, x: Tensor, as_matrix: bool = True) -> Tensor:
        if as_matrix and self.matrix is not None:
            x = torch.matmul(self.matrix, x) if self.axis == 2 else torch.matmul(x, self.matrix)
        else:
            groups = 1 if self.matrix is None else self.kernel.shape[0]
            x = F.conv2d(continued(x, self.length, self.axis), self.kernel, groups=groups)
        return x if self.offset is None else x + self.offset


def symbolic_resize(weight: Tensor, axis: Axis, x: Tensor) -> Tensor:
    """Do `resize` to the length of `x` as a matrix product, because exporters need a known size for interpolation."""
    places = torch.arange(x.shape[axis], device=x.device)
    places = places / places[-1:].clamp(min=1) * (weight.shape[axis] - 1)  # new entries among the old ones
    distances = places[:, None] - torch.arange(weight.shape[axis], device=x.device)
    shares = (1 - distances.abs()).clamp(min=0).to(weight.dtype)  # (new length, old length)
    return torch.matmul(shares, weight) if axis == 2 else torch.matmul(weight, shares.t())


def symbolic_circular_conv(x: Tensor, weight: Tensor, axis: Axis, dense: bool = False) -> Tensor:
    """Resize the kernel to the map and convolve; a recording holds for any size. (B, C, H, W) -> the same."""
    if dense:
        return _symbolic_dense_conv(x, symbolic_resize(weight, axis, x), axis)
    rows = symbolic_resize(weight, axis, x).flatten(1)  # (C, L)
    places = torch.arange(x.shape[axis], device=x.device)
    shifts = places[None] - places[:, None] + x.shape[axis]  # j - i + L at [i, j], into the kernel twice in a row
    matrix = torch.cat((rows, rows), 1)[:, shifts if axis == 2 else shifts.t()]  # (C, L, L)
    return torch.matmul(matrix, x) if axis == 2 else torch.matmul(x, matrix)


def _symbolic_dense_conv(x: Tensor, kernel: Tensor, axis: Axis) -> Tensor:
    """Convolve with a dense kernel of the map's length: a matrix product with the map's L shifted copies.

    Exporters need a kernel of known size for a convolution.
    """
    if axis == 3:
        return _symbolic_dense_conv(x.transpose(2, 3), kernel.transpose(2, 3), 2).transpose(2, 3)
    batch, _, length, width = x.shape
    places = torch.arange(length, device=x.device)
    sources = torch.remainder(places[:, None] + places[None], length)  # i + j at [j, i]
    shifted = x[:, :, sources]  # (B, in, j, i, W)
    products = torch.matmul(kernel.flatten(1), shifted.flatten(3).flatten(1, 2))  # (out, in * j) x (B, in * j, i * W)
    return products.reshape(batch, kernel.shape[0], length, width)


class CircularConv(recording.SizeBound):
    """Global circular convolution along one axis (2203.03952, section 3.1): (B, dim, H, W) -> the same.

    Every position sees its whole row or column. There is no border: behind one end, the map continues with the other.

    Args:
        dim: channels.
        length: length of the learned kernel, before it is resized to the map.
        axis: the axis to convolve along.
        dense: whether every output channel sees all input channels, and not only its own.
        bias: whether a bias is added, as the hybrids do; ParC-Net does not.
    """

    dense = False
    bias: nn.Parameter | None

    def __init__(self, dim: int, length: int, axis: Axis, *, dense: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.axis: Axis = axis
        self.dense = dense
        inputs = dim if dense else 1
        self.weight = nn.Parameter(torch.empty(dim, inputs, *((length, 1) if axis == 2 else (1, length))))
        self.bias = nn.Parameter(torch.empty(dim)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as PyTorch initialises a convolution of this shape."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = self.weight[0].numel() ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        if self.any_size and recording.is_recording():
            x = symbolic_circular_conv(x, self.weight, self.axis, self.dense)
        else:
            x = circular_conv(x, resize(self.weight, self.axis, int(x.shape[self.axis])), self.axis, self.dense)
        return x if self.bias is None else x + self.bias.view(-1, 1, 1)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._parameters.setdefault("bias", None)  # from a pickle that is older than biases

    def extra_repr(self) -> str:
        dense = ", dense" if self.dense else ""
        return f"{self.weight.shape[0]}, length={max(self.weight.shape[2:])}, axis={'HW'[self.axis - 2]}{dense}"

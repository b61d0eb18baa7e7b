"""ParC: position aware circular convolution along the axes of a map, for training and folded for inference.

Paper: Zhang et al., "ParC-Net: Position Aware Circular Convolution with Merits from ConvNets and Transformer",
ECCV 2022, arXiv 2203.03952.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from yolo_lightbackbones import fusion
from yolo_lightbackbones.layers.circular import (
    Axis,
    CircularConv,
    FixedConv,
    circular_conv,
    resize,
    symbolic_circular_conv,
    symbolic_resize,
)
from yolo_lightbackbones.layers.drop_path import DropPath
from yolo_lightbackbones.layers.folded import FoldedCircular
from yolo_lightbackbones.layers.norms import BatchNorm2d
from yolo_lightbackbones.layers.position import PositionEmbedding


class ParCBranch(fusion.Fusible):
    """Circular convolution along one axis, then the other, as a residual (paper, figure 3): (B, dim, H, W) -> the same.

    Args:
        dim: channels.
        length: length of the learned kernels and position embeddings, before they are resized to the map.
        first: axis of the first convolution.
        position: whether position embeddings are added; only the first block of a stage does so.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, dim: int, length: int, first: Axis, position: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        second: Axis = 3 if first == 2 else 2
        self.pos1 = PositionEmbedding(dim, length, first) if position else nn.Identity()
        self.norm = BatchNorm2d(dim)
        self.conv1 = CircularConv(dim, length, first)
        self.pos2 = PositionEmbedding(dim, length, second) if position else nn.Identity()
        self.conv2 = CircularConv(dim, length, second)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv1(self.norm(self.pos1(x)))
        branch = self.conv2(self.pos2(branch))
        out: Tensor = x + self.drop_path(branch)
        return out

    def fold(self) -> FoldedParCBranch:
        return FoldedParCBranch(self)


class FoldedParCBranch(FoldedCircular):
    """A `ParCBranch` for inference: two circular convolutions, each with an offset. (B, dim, H, W) -> the same.

    The scale of the norm is folded into the first kernel. Its shift and the position embeddings are carried through the
    convolutions into the offsets, which is exact because there is no zero padding.
    """

    sources = ("kernel1", "scale1", "shift1", "kernel2", "shift2")
    no_weight_decay_names = ("scale1", "shift1", "shift2")
    shift2: nn.Parameter | None

    def __init__(self, branch: ParCBranch) -> None:
        super().__init__()
        for conv in (branch.conv1, branch.conv2):
            fusion.expect(conv, CircularConv)
        self.axes = branch.conv1.axis, branch.conv2.axis
        self.kernel1 = branch.conv1.weight
        self.kernel2 = branch.conv2.weight
        norm: nn.Module = branch.norm
        if isinstance(norm, nn.Identity):
            shift = fusion.exact(self.kernel1).new_zeros(1, len(self.kernel1), 1, 1)
            scale = torch.ones_like(shift)
        else:
            scale, shift = (values.view(1, -1, 1, 1) for values in fusion.batchnorm_affine(norm))
        self.scale1 = nn.Parameter(scale.to(self.kernel1))
        if not isinstance(branch.pos1, nn.Identity):
            fusion.expect(branch.pos1, PositionEmbedding)
            shift = scale * fusion.exact(branch.pos1.get_parameter("weight")) + shift
        # shift of the first convolution's input: of the kernels' length along its axis, or constant
        self.shift1 = nn.Parameter(shift.to(self.kernel1))
        self.shift2 = None
        if not isinstance(branch.pos2, nn.Identity):
            fusion.expect(branch.pos2, PositionEmbedding)
            self.shift2 = branch.pos2.get_parameter("weight")
        self._settle()

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)

    def _symbolic(self, x: Tensor) -> Tensor:
        x = x * self.scale1 + symbolic_resize(self.shift1, self.axes[0], x)
        x = symbolic_circular_conv(x, self.kernel1, self.axes[0])
        if self.shift2 is not None:
            x = x + symbolic_resize(self.shift2, self.axes[1], x)
        return symbolic_circular_conv(x, self.kernel2, self.axes[1])

    def _fixed_convs(self, sources: Sequence[Tensor | None], height: int, width: int) -> tuple[FixedConv, ...]:
        kernel1, scale1, shift1, kernel2, shift2 = sources
        assert kernel1 is not None
        assert scale1 is not None
        assert shift1 is not None
        assert kernel2 is not None
        like, sizes = kernel1, {2: height, 3: width}
        axis1, axis2 = self.axes
        kernel1 = resize(fusion.exact(kernel1), axis1, sizes[axis1])
        kernel2 = resize(fusion.exact(kernel2), axis2, sizes[axis2])
        shift1 = fusion.exact(shift1)
        offset1 = None
        if shift2 is None and shift1.numel() == len(kernel1):
            # a convolution multiplies a constant by the sum of its kernel; this constant passes both convolutions
            offset2 = shift1 * (kernel1.sum((2, 3)) * kernel2.sum((2, 3))).view(1, -1, 1, 1)
        else:
            offset1 = circular_conv(resize(shift1, axis1, sizes[axis1]), kernel1, axis1)
            shift2 = torch.zeros_like(shift1[:, :, :1, :1]) if shift2 is None else fusion.exact(shift2)
            offset2 = circular_conv(resize(shift2, axis2, sizes[axis2]), kernel2, axis2)
        kernel1 = kernel1 * fusion.exact(scale1).view(-1, 1, 1, 1)
        return FixedConv.of(axis1, kernel1, offset1, like), FixedConv.of(axis2, kernel2, offset2, like)


class PositionAwareConv(fusion.Fusible):
    """Position embedding, then circular convolution with a bias, along one axis: (B, dim, H, W) -> the same.

    Args:
        dim: channels.
        length: length of the learned kernel and position embedding, before they are resized to the map.
        axis: the axis of both.
        position: whether a position embedding is added.
        dense: whether every output channel sees all input channels.
    """

    def __init__(self, dim: int, length: int, axis: Axis, *, position: bool, dense: bool = False) -> None:
        super().__init__()
        self.pos = PositionEmbedding(dim, length, axis) if position else nn.Identity()
        self.conv = CircularConv(dim, length, axis, dense=dense, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.pos(x))
        return out

    def fold(self) -> FoldedPositionAwareConv:
        return FoldedPositionAwareConv(self)


class FoldedPositionAwareConv(FoldedCircular):
    """A `PositionAwareConv` for inference: a circular convolution and an offset. (B, dim, H, W) -> the same."""

    sources = ("kernel", "shift", "bias")
    no_weight_decay_names = ("shift",)
    shift: nn.Parameter | None

    def __init__(self, conv: PositionAwareConv) -> None:
        super().__init__()
        fusion.expect(conv.conv, CircularConv)
        self.axis = conv.conv.axis
        self.dense = conv.conv.dense
        self.kernel = conv.conv.weight
        self.shift = None
        if not isinstance(conv.pos, nn.Identity):
            fusion.expect(conv.pos, PositionEmbedding)
            self.shift = conv.pos.get_parameter("weight")
        bias = conv.conv.bias
        self.bias = nn.Parameter(torch.zeros_like(self.kernel[:, 0, 0, 0])) if bias is None else bias
        self._settle()

    def scale_outputs(self, scale: Tensor, shift: Tensor) -> None:
        """Fold a norm behind it: `scale * y + shift`, both (dim,)."""
        like = self.kernel
        self.kernel = nn.Parameter((fusion.exact(like) * scale.view(-1, 1, 1, 1)).to(like), requires_grad=False)
        self.bias = nn.Parameter((fusion.exact(self.bias) * scale + shift).to(like), requires_grad=False)

    def _symbolic(self, x: Tensor) -> Tensor:
        if self.shift is not None:
            x = x + symbolic_resize(self.shift, self.axis, x)
        return symbolic_circular_conv(x, self.kernel, self.axis, self.dense) + self.bias.view(-1, 1, 1)

    def _fixed_convs(self, sources: Sequence[Tensor | None], height: int, width: int) -> tuple[FixedConv, ...]:
        like, shift, bias = sources
        assert like is not None
        assert bias is not None
        length = height if self.axis == 2 else width
        kernel = resize(fusion.exact(like), self.axis, length)
        offset = fusion.exact(bias).view(1, -1, 1, 1)
        if shift is not None:
            position = resize(fusion.exact(shift), self.axis, length)
            offset = offset + circular_conv(position, kernel, self.axis, self.dense)
        return (FixedConv.of(self.axis, kernel, offset, like, self.dense),)


class ParCConv(nn.Module):
    """The operator of the ParC hybrids: the first half of the channels is convolved along H, the second along W.

    (B, dim, H, W) -> the same. Arguments as in `PositionAwareConv`.
    """

    def __init__(self, dim: int, length: int, *, position: bool, dense: bool = False) -> None:
        super().__init__()
        self.height = PositionAwareConv(dim // 2, length, 2, position=position, dense=dense)
        self.width = PositionAwareConv(dim // 2, length, 3, position=position, dense=dense)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return torch.cat((self.height(first), self.width(second)), 1)


class ParCConvNorm(fusion.Fusible):
    """The operator of the ParC hybrids, then BatchNorm, which folds into it: (B, dim, H, W) -> the same."""

    def __init__(self, dim: int, length: int, *, position: bool, dense: bool = False) -> None:
        super().__init__()
        self.conv = ParCConv(dim, length, position=position, dense=dense)
        self.norm: nn.Module = BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out

    def fold(self) -> nn.Module:
        fusion.expect(self.conv, ParCConv)
        scale, shift = fusion.batchnorm_affine(self.norm)
        halves = (self.conv.height, self.conv.width)
        for half, its_scale, its_shift in zip(halves, scale.chunk(2), shift.chunk(2), strict=True):
            assert isinstance(half, FoldedPositionAwareConv), "children fold first"
            half.scale_outputs(its_scale, its_shift)
        return self.conv

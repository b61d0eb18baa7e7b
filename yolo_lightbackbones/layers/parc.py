"""ParC: position aware circular convolution along both axes of a map, for training and folded for inference.

Paper: Zhang et al., "ParC-Net: Position Aware Circular Convolution with Merits from ConvNets and Transformer",
ECCV 2022, arXiv 2203.03952.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yolo_lightbackbones import fusion, recording
from yolo_lightbackbones.layers.circular import (
    Axis,
    CircularConv,
    FixedConv,
    circulant,
    circular_conv,
    resize,
    symbolic_circular_conv,
    symbolic_resize,
)
from yolo_lightbackbones.layers.drop_path import DropPath
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


class FoldedParCBranch(recording.SizeBound):
    """A `ParCBranch` for inference: two circular convolutions, each with an offset. (B, dim, H, W) -> the same.

    The scale of the norm is folded into the first kernel. Its shift and the position embeddings are carried through the
    convolutions into the offsets, which is exact because there is no zero padding. Kernels and offsets depend on the
    size of the map: they are computed at the first map of a size, and kept until the size or the parameters change. An
    exporter also sees constants, whether or not the module has run before. A compiler sees the parameters, because
    compiled code must follow their changes.
    """

    shift2: nn.Parameter | None
    _sources: tuple[Tensor | None, ...]
    _known: _Known | None

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
        if torch.compiler.is_dynamo_compiling() or (self.any_size and recording.is_recording()):
            return x + self._symbolic_branch(x)
        out = x
        for conv in self._convs(int(x.shape[2]), int(x.shape[3])):
            out = conv(out, as_matrix=not recording.is_recording() or self.records_matrix(conv.length))
        return x + out

    def _symbolic_branch(self, x: Tensor) -> Tensor:
        """Compute the residual branch in operations whose recording holds for any size of the map."""
        x = x * self.scale1 + symbolic_resize(self.shift1, self.axes[0], x)
        x = symbolic_circular_conv(x, self.kernel1, self.axes[0])
        if self.shift2 is not None:
            x = x + symbolic_resize(self.shift2, self.axes[1], x)
        return symbolic_circular_conv(x, self.kernel2, self.axes[1])

    def _convs(self, height: int, width: int) -> tuple[FixedConv, FixedConv]:
        """Return the two convolutions for maps of this size."""
        if recording.is_recording():  # only this thread is recorded: results of another thread become constants
            with ThreadPoolExecutor(max_workers=1) as aside:
                return aside.submit(self._known_convs, height, width).result()
        present = self._folded_parameters()
        if any(one is not other for one, other in zip(present, self._sources, strict=True)):
            return _fixed_convs(self.axes, present, height, width)  # replaced for one call, as by torch.func
        return self._known_convs(height, width)

    def _known_convs(self, height: int, width: int) -> tuple[FixedConv, FixedConv]:
        """Return the convolutions for maps of this size; compute them only if the size or the parameters changed."""
        known = self._known  # read once: another thread may replace it for another size
        if known is None or known.size != (height, width) or not known.is_of(self._sources):
            with torch.inference_mode(False), torch.no_grad():
                convs = _fixed_convs(self.axes, self._sources, height, width)
                self._known = known = _Known((height, width), _state(self._sources), _values(self._sources), convs)
        return known.convs

    # --- the parameters that the convolutions were computed from ---------------------------------------------------

    def _folded_parameters(self) -> tuple[Tensor | None, ...]:
        return tuple(self._parameters.get(name) for name in ("kernel1", "scale1", "shift1", "kernel2", "shift2"))

    def _settle(self) -> None:
        """Remember the parameters, and discard the convolutions that were computed from earlier ones.

        torch.export replaces the parameters by tensors without values while it runs `forward`, so the original ones
        must be remembered. PyTorch counts changes only for ordinary tensors; tensors made in inference mode are copied.
        """
        with torch.inference_mode(False), torch.no_grad():
            for name, parameter in self._parameters.items():
                if parameter is not None and parameter.is_inference():
                    self._parameters[name] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
        self._sources = self._folded_parameters()
        self._known = None

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        super().register_parameter(name, param)
        self._settle()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FoldedParCBranch:
        with torch.inference_mode(False):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._settle()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": None, "_sources": ()}  # neither saved nor copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._settle()


@dataclass(frozen=True)
class _Known:
    """Convolutions for maps of one size, and the parameters that they were computed from."""

    size: tuple[int, int]
    state: tuple[object, ...]
    values: tuple[Tensor, ...]
    convs: tuple[FixedConv, FixedConv]

    def is_of(self, sources: Sequence[Tensor | None]) -> bool:
        """Whether the parameters are unchanged; on an accelerator, changes through `.data` are not detected."""
        if self.state != _state(sources):
            return False
        present = (tensor for tensor in sources if tensor is not None)
        return all(map(torch.equal, self.values, present)) if self.values else True


def _state(sources: Sequence[Tensor | None]) -> tuple[object, ...]:
    """A key that differs after every change of the parameters that PyTorch counts in their version."""
    return tuple(None if tensor is None else (tensor._version, tensor.dtype, tensor.device) for tensor in sources)


def _values(sources: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Copies of the parameters on the CPU, where comparing is fast; on an accelerator it would wait for the device."""
    return tuple(tensor.detach().clone() for tensor in sources if tensor is not None and tensor.device.type == "cpu")


def _fixed_convs(
    axes: tuple[Axis, Axis], sources: Sequence[Tensor | None], height: int, width: int
) -> tuple[FixedConv, FixedConv]:
    """Compute the two convolutions of a `FoldedParCBranch` from its parameters, for maps of this size."""
    kernel1, scale1, shift1, kernel2, shift2 = sources
    assert kernel1 is not None
    assert scale1 is not None
    assert shift1 is not None
    assert kernel2 is not None
    like, sizes = kernel1, {2: height, 3: width}
    axis1, axis2 = axes
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
    convs = []
    for axis, kernel, offset in ((axis1, kernel1, offset1), (axis2, kernel2, offset2)):
        matrix = circulant(kernel).to(like)
        matrix = (matrix if axis == 2 else matrix.transpose(1, 2)).contiguous()
        added = None if offset is None else offset.to(like)
        convs.append(FixedConv(axis, kernel.to(like), matrix, added))
    return convs[0], convs[1]

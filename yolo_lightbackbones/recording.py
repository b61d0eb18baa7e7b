"""What exporters and compilers see of a module: a recording for images of one size, or of any size.

Formats are not known here, only numbers: whoever exports chooses them with `record_for`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MATRIX_FROM = 20
"""Length of a map from which PyTorch itself multiplies matrices faster than it convolves (`benchmarks/circular.py`)."""


def is_recording() -> bool:
    """Whether an exporter or a compiler records the present operations; sizes may be symbolic then."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined, no-untyped-call]


class SizeBound(nn.Module):
    """A module whose constants hold for one size of its input. `record_for` chooses what is recorded of it."""

    any_size = False
    """Whether a recording must hold for any size."""

    matrix_from: int | None = MATRIX_FROM
    """Length of a map from which a recording multiplies by a matrix instead of convolving; None: never."""

    def shape_of(self, x: Tensor) -> Sequence[int]:
        """The shape of `x`; constant in a trace for one size, since NCNN takes no computed shapes."""
        if self.any_size or not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return x.shape
        return [int(side) for side in x.shape]

    def records_matrix(self, length: int) -> bool:
        """Whether a recording multiplies maps of this length by a matrix."""
        return self.matrix_from is not None and length >= self.matrix_from


def is_size_bound(module: nn.Module) -> bool:
    """Whether a recording of `module` holds for one size unless `record_for` asks for any size."""
    return any(isinstance(child, SizeBound) for child in module.modules())


def record_for(module: nn.Module, *, any_size: bool = False, matrix_from: int | None = MATRIX_FROM) -> None:
    """Choose what exporters record of `module`.

    Only what is recorded changes: called from Python, a fused module follows the size of every image.

    Args:
        module: a backbone, or a model with one.
        any_size: for images of any size, which is slower to run, instead of the size at hand.
        matrix_from: see `SizeBound.matrix_from`.
    """
    for child in module.modules():
        if isinstance(child, SizeBound):
            child.any_size = any_size
            child.matrix_from = matrix_from

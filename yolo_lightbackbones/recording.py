"""Settings of a module for exporters and compilers, which record its operations for one image size or for any size.

This module knows no export formats, only numbers. The code that exports a model sets them with `record_for`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

MATRIX_FROM = 20
"""Map length from which a matrix product is faster than a convolution in PyTorch itself (`benchmarks/circular.py`)."""


def is_recording() -> bool:
    """Whether an exporter or a compiler is recording the operations; sizes may be symbolic then."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined, no-untyped-call]


class SizeBound(nn.Module):
    """A module whose recording contains constants for one input size, unless `record_for` asks for any size."""

    any_size = False
    """Whether a recording must hold for any size."""

    matrix_from: int | None = MATRIX_FROM
    """Map length from which a recording uses a matrix product instead of a convolution; None: never."""

    def shape_of(self, x: Tensor) -> Sequence[int]:
        """The shape of `x`; constant in a trace for one size, because NCNN does not support computed shapes."""
        if self.any_size or not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return x.shape
        return [int(side) for side in x.shape]

    def records_matrix(self, length: int) -> bool:
        """Whether a recording uses a matrix product for maps of this length."""
        return self.matrix_from is not None and length >= self.matrix_from


class Normalisation(nn.Module):
    """A normalisation that a recording contains as one operator, or as the elementwise operations of its definition."""

    elementwise = False
    """Whether a recording has elementwise operations."""

    def records_elementwise(self) -> bool:
        """Whether this call is recorded, and as elementwise operations."""
        return self.elementwise and is_recording()


class FixedResizes(SizeBound):
    """Makes resized position embeddings of somebody else's model constants of a trace for one size.

    ONNX has no resize with antialiasing, which Vision Transformers use for images of another size than their own.
    """

    def run(self, model: Callable[[Tensor], Any], x: Tensor) -> Any:
        """Return `model(x)`; in a trace for one size, resizes that do not depend on the image become constants."""
        if self.any_size or not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return model(x)
        shape, like = tuple(self.shape_of(x)), {"dtype": x.dtype, "device": x.device}
        with ThreadPoolExecutor(max_workers=1) as aside:  # only this thread is recorded
            made = aside.submit(_resized, model, torch.zeros, shape, like).result()
            again = aside.submit(_resized, model, torch.ones, shape, like).result()
        if not all(map(torch.equal, made, again)):
            return model(x)
        with _Resizes(made):
            return model(x)


class _Resizes(TorchFunctionMode):
    """Notes the results of all resizes with antialiasing, or gives known ones instead."""

    def __init__(self, known: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.made: list[Tensor] = []
        self._known = None if known is None else iter(known)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is not F.interpolate or not given.get("antialias"):
            return func(*args, **given)
        self.made.append(func(*args, **given) if self._known is None else next(self._known))
        return self.made[-1]


def _resized(model: Callable[[Tensor], Any], image: Callable[..., Tensor], shape: Any, like: Any) -> list[Tensor]:
    with torch.no_grad(), _Resizes() as resizes:
        model(image(shape, **like))
    made: list[Tensor] = resizes.made
    return made


def is_size_bound(module: nn.Module) -> bool:
    """Whether a recording of `module` holds for one size unless `record_for` asks for any size."""
    return any(isinstance(child, SizeBound) for child in module.modules())


def record_for(
    module: nn.Module,
    *,
    any_size: bool = False,
    matrix_from: int | None = MATRIX_FROM,
    elementwise_norms: bool = False,
) -> None:
    """Choose what exporters record of `module`.

    Only recordings change. Called from Python, a fused module accepts any image size in either case.

    Args:
        module: a backbone, or a model with one.
        any_size: whether the recording must hold for images of any size, which runs slower, or only for one size.
        matrix_from: see `SizeBound.matrix_from`.
        elementwise_norms: see `Normalisation.elementwise`.
    """
    for child in module.modules():
        if isinstance(child, SizeBound):
            child.any_size = any_size
            child.matrix_from = matrix_from
        elif isinstance(child, Normalisation):
            child.elementwise = elementwise_norms

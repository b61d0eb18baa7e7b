"""Base class of folded circular convolutions, whose constants depend on the size of the map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from yolo_lightbackbones import recording
from yolo_lightbackbones.layers.circular import FixedConv


class FoldedCircular(recording.SizeBound):
    """Circular convolutions, one after the other, for inference: (B, dim, H, W) -> the same.

    Kernels and offsets depend on the size of the map: they are computed at the first map of a size, and kept until the
    size or the parameters change. An exporter also sees constants, whether or not the module has run before. A compiler
    sees the parameters, because compiled code must follow their changes, and so does a training, for their gradients.

    A subclass registers the parameters in `sources`, calls `_settle` at the end of its constructor, and implements
    `_fixed_convs` and `_symbolic`.
    """

    sources: ClassVar[tuple[str, ...]]
    """Names of the parameters that the convolutions are computed from; a parameter may be None."""

    _sources: tuple[Tensor | None, ...]
    _known: _Known | None

    def _fixed_convs(self, sources: Sequence[Tensor | None], height: int, width: int) -> tuple[FixedConv, ...]:
        """Compute the convolutions for maps of this size from the parameters in `sources`."""
        raise NotImplementedError(f"{type(self).__name__} does not implement _fixed_convs().")

    def _symbolic(self, x: Tensor) -> Tensor:
        """Compute the output in operations whose recording holds for any size of the map."""
        raise NotImplementedError(f"{type(self).__name__} does not implement _symbolic().")

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_dynamo_compiling() or (self.any_size and recording.is_recording()) or self._learns():
            return self._symbolic(x)
        for conv in self._convs(int(x.shape[2]), int(x.shape[3])):
            x = conv(x, as_matrix=not recording.is_recording() or self.records_matrix(conv.length))
        return x

    def _learns(self) -> bool:
        """Whether gradients are wanted for the parameters, as in a training that goes on after folding."""
        return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())

    def _convs(self, height: int, width: int) -> tuple[FixedConv, ...]:
        """Return the convolutions for maps of this size."""
        if recording.is_recording():  # only this thread is recorded: results of another thread become constants
            with ThreadPoolExecutor(max_workers=1) as aside:
                return aside.submit(self._known_convs, height, width).result()
        present = self._folded_parameters()
        if any(one is not other for one, other in zip(present, self._sources, strict=True)):
            return self._fixed_convs(present, height, width)  # replaced for one call, as by torch.func
        return self._known_convs(height, width)

    def _known_convs(self, height: int, width: int) -> tuple[FixedConv, ...]:
        """Return the convolutions for maps of this size; compute them only if the size or the parameters changed."""
        known = self._known  # read once: another thread may replace it for another size
        if known is None or known.size != (height, width) or not known.is_of(self._sources):
            with torch.inference_mode(False), torch.no_grad():
                convs = self._fixed_convs(self._sources, height, width)
                self._known = known = _Known((height, width), _state(self._sources), _values(self._sources), convs)
        return known.convs

    # --- the parameters that the convolutions were computed from ---------------------------------------------------

    def _folded_parameters(self) -> tuple[Tensor | None, ...]:
        return tuple(self._parameters.get(name) for name in self.sources)

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

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FoldedCircular:
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
    convs: tuple[FixedConv, ...]

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

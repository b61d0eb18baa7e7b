"""Observes one forward pass: which layer takes which tensor, and who else uses it. Knows no family and no library.

In somebody else's model, names of layers do not prove that a norm takes the output of the convolution before it, and
that nothing else does. One forward pass proves it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class _Uses(TorchFunctionMode):
    """Counts how often each tensor is an argument of an operation that gives a tensor; keeps all of them alive."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self.kept: list[Tensor] = []  # the id of a tensor that is gone may come again

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if next(_tensors(result), None) is not None:
            for tensor in _tensors((args, kwargs)):
                self.counts[id(tensor)] += 1
                self.kept.append(tensor)
        return result


class Observation:
    """What happened in one forward pass.

    Args:
        run: makes the pass, and returns its outputs.
    """

    def __init__(self, run: Callable[[], Any]) -> None:
        self._calls: Counter[nn.Module | None] = Counter()
        self._taken: dict[nn.Module, Tensor] = {}
        self._made: dict[nn.Conv2d, Tensor] = {}
        uses = _Uses()

        def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._calls[module] += 1
            if len(inputs) == 1 and isinstance(inputs[0], Tensor):
                self._taken[module] = inputs[0]
            if isinstance(module, nn.Conv2d):
                self._made[module] = output

        handle = register_module_forward_hook(note)
        try:
            with torch.no_grad(), uses:
                outputs = run()
        finally:
            handle.remove()
        uses.counts.update(id(tensor) for tensor in _tensors(outputs))
        self._uses = uses

    def behind_convs(self, kind: type[ModuleT]) -> list[tuple[nn.Conv2d, ModuleT]]:
        """Convolutions, each with the layer of a kind that takes its output.

        Both were called once, and nothing else used the output.
        """
        makers = {id(made): conv for conv, made in self._made.items()}
        return [
            (makers[id(taken)], layer)
            for layer, taken in self._taken.items()
            if isinstance(layer, kind) and self._is_single(layer, taken) and self._calls[makers.get(id(taken))] == 1
        ]

    def conv_on(self, tensor: Tensor) -> nn.Conv2d | None:
        """The convolution that takes a tensor; None if it is called again, or if anything else uses the tensor."""
        takers = (layer for layer, taken in self._taken.items() if taken is tensor and isinstance(layer, nn.Conv2d))
        return next((conv for conv in takers if self._is_single(conv, tensor)), None)

    def _is_single(self, layer: nn.Module, taken: Tensor) -> bool:
        return self._calls[layer] == 1 and self._uses.counts[id(taken)] == 1


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)

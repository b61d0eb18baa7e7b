"""Parameters and multiply-adds of a module and of its parts, for an image of one size; torch alone.

Counted are convolutions and matrix products, those of attention included, as torch's own `FlopCounterMode` sees them
run: two floating point operations per multiply-add (MAC). Norms, activations, sums and resampling are not counted; that
is what published figures mean, too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """What a module costs, for one image size.

    Args:
        parameters: their number, each counted once.
        macs: multiply-adds.
        output: shape of the output, where that is one tensor.
    """

    parameters: int
    macs: int
    output: tuple[int, ...] | None = None

    @property
    def flops(self) -> int:
        return 2 * self.macs


@dataclass(frozen=True)
class Costs:
    """The cost of a module, and of the parts of it that were asked for, by their names."""

    total: Cost
    parts: Mapping[str, Cost]


def count(module: nn.Module, shape: tuple[int, int, int, int], parts: Iterable[str] = ()) -> Costs:
    """Count what a module costs, in the mode that it is in (training or eval); the module is left as it is.

    The module is not run itself but a copy on the meta device, where nothing is computed. One that needs values on its
    way, and so cannot run there, is copied with its memory and run on the CPU.

    Args:
        module: takes one image and gives anything.
        shape: of the image, (B, C, H, W).
        parts: names of modules inside, as in `named_modules()`. A part may lie inside another one; of a part that is
            called several times, all calls count.

    Raises:
        AttributeError: if there is no part of such a name.
        ValueError, RuntimeError: whatever the module itself raises for an image of this shape.
    """
    names = list(parts)
    try:
        return _run(on_meta(module), shape, names, "meta")
    except (NotImplementedError, RuntimeError):  # what torch raises where a value would be needed
        return _run(copy.deepcopy(module).float().cpu(), shape, names, "cpu")


def on_meta(module: nn.Module) -> nn.Module:
    """A copy in float32 on the meta device: shapes without values, and without memory."""
    memory: dict[int, Any] = {}  # what deepcopy takes for copied already
    for parameter in module.parameters():
        memory[id(parameter)] = nn.Parameter(_meta_like(parameter), requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memory[id(buffer)] = _meta_like(buffer)
    return copy.deepcopy(module, memory)


def parameter_count(module: nn.Module) -> int:
    """How many parameters it has, each counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _meta_like(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty_like(tensor, device="meta", dtype=dtype)


def _run(module: nn.Module, shape: tuple[int, int, int, int], names: list[str], device: str) -> Costs:
    """Run a copy of ours, on whose parts hooks may stay."""
    flops = dict.fromkeys(names, 0)
    outputs: dict[str, tuple[int, ...] | None] = dict.fromkeys(names)
    # The plain form of attention is two matrix products; not every fused kernel is one that the counter knows.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for name in names:
            part = module.get_submodule(name)
            part.register_forward_pre_hook(_before(name, flops, counter))
            part.register_forward_hook(_after(name, flops, counter, outputs))
        output = module(torch.zeros(shape, device=device))
    total = Cost(parameter_count(module), counter.get_total_flops() // 2, _shape(output))
    costs = {name: Cost(parameter_count(module.get_submodule(name)), flops[name] // 2, outputs[name]) for name in names}
    return Costs(total, costs)


def _before(name: str, flops: dict[str, int], counter: FlopCounterMode) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        flops[name] -= counter.get_total_flops()

    return hook


def _after(
    name: str, flops: dict[str, int], counter: FlopCounterMode, outputs: dict[str, tuple[int, ...] | None]
) -> Callable[..., None]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        flops[name] += counter.get_total_flops()
        outputs[name] = _shape(output)

    return hook


def _shape(output: Any) -> tuple[int, ...] | None:
    return tuple(output.shape) if isinstance(output, Tensor) else None

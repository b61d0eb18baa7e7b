"""Counts parameters and multiply-adds of a module and its parts for one image size; needs only torch.

Convolutions and matrix products are counted, also those of attention, as torch's own `FlopCounterMode` sees them run.
One multiply-add (MAC) is two floating point operations. Norms, activations, sums and resampling are not counted, as in
published figures.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

_aten = torch.ops.aten
_ACTIVATIONS = {
    *(_aten.gelu.default, _aten.silu.default, _aten.relu.default, _aten.sigmoid.default),
    *(_aten.hardswish.default, _aten.hardsigmoid.default),
}
_NORMS = {_aten.native_batch_norm.default, _aten.native_layer_norm.default}


@dataclass(frozen=True)
class Cost:
    """The cost of a module for one image size.

    Args:
        parameters: number of parameters; a shared one counts once.
        macs: number of multiply-adds.
        output: shape of the output, if it is one tensor.
    """

    parameters: int
    macs: int
    output: tuple[int, ...] | None = None

    @property
    def flops(self) -> int:
        """Floating point operations: two per multiply-add."""
        return 2 * self.macs


@dataclass(frozen=True)
class Costs:
    """The cost of a module, and of the requested parts by name."""

    total: Cost
    parts: Mapping[str, Cost]


def count(
    module: nn.Module, shape: tuple[int, int, int, int], parts: Iterable[str] = (), *, in_eval_mode: bool = False
) -> Costs:
    """Count the cost of a module; the module is not changed.

    A copy of the module runs on the meta device, where nothing is computed. A module whose forward reads values cannot
    run there; it is copied with its values and run on the CPU.

    Args:
        module: takes one image; its output can be anything.
        shape: shape of the image, (B, C, H, W).
        parts: names of modules inside, as in `named_modules()`. A part may be inside another one. If a part is called
            several times, all calls count.
        in_eval_mode: whether to count the cost in eval mode, and not in the module's current mode.

    Raises:
        AttributeError: if there is no part of that name.
        ValueError, RuntimeError: whatever the module itself raises for an image of this shape.
    """
    names = list(parts)

    def in_mode(copied: nn.Module) -> nn.Module:
        return copied.eval() if in_eval_mode else copied

    try:
        return _run(in_mode(on_meta(module)), shape, names, "meta")
    except (NotImplementedError, RuntimeError):  # torch raises these if a value is needed
        return _run(in_mode(copy.deepcopy(module).float().cpu()), shape, names, "cpu")


def on_meta(module: nn.Module) -> nn.Module:
    """Copy a module in float32 to the meta device: its tensors keep their shapes, and have no values or memory."""
    memory: dict[int, Any] = {}  # deepcopy's memo: objects in it count as copied already
    for parameter in module.parameters():
        memory[id(parameter)] = nn.Parameter(_meta_like(parameter), requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memory[id(buffer)] = _meta_like(buffer)
    for part in module.modules():  # most of what a module holds are empty tables of hooks, which deepcopy is slow with
        for table in vars(part).values():
            if type(table) in (dict, OrderedDict) and not table:
                memory[id(table)] = type(table)()
    return copy.deepcopy(module, memory)


def parameter_count(module: nn.Module) -> int:
    """Number of parameters of a module; a shared one counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _meta_like(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty_like(tensor, device="meta", dtype=dtype)


class _OnlyShapes(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """On the meta device, give the outputs of norms, activations and resizing by their known shapes.

    None of them is counted. PyTorch works out their shapes in Python, which takes up to two thirds of the time.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            x = args[0]
            if func in _ACTIVATIONS:
                return torch.empty_like(x)
            if func in _NORMS:
                return torch.empty_like(x), x.new_empty(0), x.new_empty(0)  # the statistics, which no layer reads
            if func is _aten.upsample_bilinear2d.default:
                return x.new_empty(*x.shape[:2], *args[1])
        return func(*args, **(kwargs or {}))


def _run(module: nn.Module, shape: tuple[int, int, int, int], names: list[str], device: str) -> Costs:
    """Run `module`, which must be a copy: hooks stay on its parts."""
    flops = dict.fromkeys(names, 0)
    outputs: dict[str, tuple[int, ...] | None] = dict.fromkeys(names)
    shapes = _OnlyShapes()  # type: ignore[no-untyped-call, unused-ignore]
    # The plain form of attention is two matrix products; the counter does not know every fused kernel.
    with FlopCounterMode(display=False) as counter, shapes, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
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

"""Sequences of layers that keep only the outputs of convolutions for the backward pass, and compute the rest again.

Between two convolutions, PyTorch keeps a map three times: before the norm, before the activation and behind it. Norms
and activations are cheap. `run` keeps the first of the three, with the statistics of the norm, and computes the other
two again in the backward pass. The forward pass consists of the same operations as without it, and no convolution is
computed twice.

A block is written as a sequence, `run(x, self.conv1, self.act, self.conv2)`. The modules, their names and their
parameters are what they were. `run` calls one after the other as modules where they must be called: without gradients,
in evaluation, on CUDA (see `DEVICES`), for exporters, compilers, torch.func and torch.fx, and where somebody has put in
hooks, parametrisations, quantisers or layers of another class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_modules

from yolo_lightbackbones import recording
from yolo_lightbackbones.layers import links
from yolo_lightbackbones.layers.conv_norm import ConvNorm
from yolo_lightbackbones.layers.norms import BatchNorm2d, LayerNorm2d

DEVICES = ("cpu",)
"""Devices on which this is switched on. CUDA has the same operations, but its gradients in half precision were not yet
compared with those of the modules, so that layers are called one by one there."""


class Chained(nn.Module):
    """A module that is a sequence of layers, also within another sequence: (B, C, H, W) -> what its last layer gives.

    A subclass implements `layers`.
    """

    def layers(self) -> tuple[Layer, ...]:
        """The layers, first to last."""
        raise NotImplementedError(f"{type(self).__name__} does not implement layers().")

    def forward(self, x: Tensor) -> Tensor:
        return run(x, *self.layers())


class Sum:
    """Sequences of layers on the same map, added, and the map itself; no module, only a way to call modules."""

    def __init__(self, *branches: tuple[Layer, ...]) -> None:
        self.branches = branches

    def __call__(self, x: Tensor) -> Tensor:
        total, *others = (run(x, *layers) for layers in self.branches)
        for y in others:
            total = total + y
        return total + x


class Product:
    """Two sequences of layers on the same map, multiplied; no module, only a way to call modules."""

    def __init__(self, one: tuple[Layer, ...], other: tuple[Layer, ...]) -> None:
        self.branches = one, other

    def __call__(self, x: Tensor) -> Tensor:
        one, other = self.branches
        return run(x, *one) * run(x, *other)


Layer = nn.Module | Sum | Product


def run(x: Tensor, *layers: Layer) -> Tensor:
    """Apply layers one after the other: (B, C, H, W) -> what the last one gives.

    In training, layers without hooks or other changes keep only the outputs of convolutions for the backward pass.
    """
    if not _may_skip_modules(x):
        for layer in layers:
            x = layer(x)
        return x
    for known, group in groupby(_flat(layers), key=_is_known):
        piece = list(group)
        if known and any(not _keeps_output(layer) for layer in piece[:-1]):
            x = _Builder(x).run(piece)
        else:
            for layer in piece:
                x = layer(x)
    return x


def _may_skip_modules(x: Tensor) -> bool:
    """Whether gradients will be asked for, and nobody has to see the modules called."""
    return (
        type(x) is Tensor
        and torch.is_grad_enabled()
        and x.ndim == 4
        and x.device.type in DEVICES
        and not recording.is_recording()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not any(getattr(torch_modules, f"_global_{name}") for name in _HOOKS)
    )


_HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")


def _is_untouched(module: nn.Module) -> bool:
    """Whether calling the module does no more than its class says."""
    return "forward" not in vars(module) and not any(getattr(module, f"_{name}") for name in _HOOKS)


def _flat(layers: Iterable[Layer]) -> Iterator[Layer]:
    """The layers, with those that are sequences themselves taken apart."""
    for layer in layers:
        if not isinstance(layer, nn.Module) or not _is_untouched(layer):
            yield layer
        elif type(layer).forward is Chained.forward:
            yield from _flat(cast(Chained, layer).layers())
        elif type(layer).forward is ConvNorm.forward:
            yield from _flat((cast(ConvNorm, layer).conv, cast(ConvNorm, layer).norm))
        elif type(layer) is not nn.Identity:
            yield layer


def _is_known(layer: Layer) -> bool:
    """Whether there is a link for the layer as it is."""
    if isinstance(layer, Sum | Product):
        return all(_is_known(inner) for branch in layer.branches for inner in _flat(branch))
    if not layer.training or not _is_untouched(layer):
        return False
    names = [name for name in ("weight", "bias") if hasattr(layer, name)]
    tensors = [layer._parameters.get(name, layer) for name in names]  # a parametrisation keeps them elsewhere
    if not all(tensor is None or type(tensor) in (Tensor, nn.Parameter) for tensor in tensors):
        return False
    forward = type(layer).forward
    if isinstance(layer, nn.BatchNorm2d):
        return forward in (BatchNorm2d.forward, nn.BatchNorm2d.forward) and layer.momentum is not None
    if isinstance(layer, nn.LayerNorm):
        return forward is LayerNorm2d.forward and None not in tensors
    return _is_conv(layer) or links.Activation.of(layer) is not None


def _is_conv(layer: Layer) -> bool:
    """Whether the layer is a convolution as PyTorch computes it."""
    return (
        isinstance(layer, nn.Conv2d)
        and type(layer).forward is nn.Conv2d.forward
        and type(layer)._conv_forward is nn.Conv2d._conv_forward
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def _keeps_output(layer: Layer) -> bool:
    """Whether the output of a layer is kept instead of computed again."""
    return isinstance(layer, nn.Conv2d) and not _is_scale(layer)


def _is_scale(conv: nn.Conv2d) -> bool:
    """Whether a convolution multiplies each channel by a number."""
    one = (1, 1)
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    return depthwise and conv.kernel_size == one and conv.stride == one and conv.padding == (0, 0)


class _Builder:
    """Makes a chain of layers, and runs it.

    Args:
        x: the map that the first layer takes.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.tape: list[Tensor | None] = []
        device = x.device.type
        self.half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        self.exact = self.half is not None and device == "cuda"

    def run(self, layers: Iterable[Layer]) -> Tensor:
        made = self._links(layers)
        if isinstance(made[0], links.Convolution):
            made[0].wanted = (self.x.requires_grad, made[0].wanted[1])
        if isinstance(made[-1], links.Convolution):
            made[-1].last = True
        y: Tensor = _Recomputed.apply(links.Chain(made), self.x, *self.tape)
        return y

    def _links(self, layers: Iterable[Layer]) -> list[links.Link]:
        return [self._link(layer) for layer in layers]

    def _link(self, layer: Layer) -> links.Link:
        if isinstance(layer, Sum | Product):
            chains = [links.Chain(self._links(_flat(branch))) for branch in layer.branches]
            return links.Sum(chains) if isinstance(layer, Sum) else links.Product(*chains)
        if activation := links.Activation.of(layer):
            return activation
        place = len(self.tape)
        tensors: list[Tensor | None] = [layer._parameters["weight"], layer._parameters["bias"]]
        if isinstance(layer, nn.Conv2d):
            if self.half is not None:  # with gradients: a cast inside the chain would have none
                tensors = [None if tensor is None else tensor.to(self.half) for tensor in tensors]
            self.tape += tensors
            cast = self.half is not None
            if _is_scale(layer):
                return links.Scale(place, cast)
            assert tensors[0] is not None
            return links.Convolution(layer, place, cast, (True, tensors[0].requires_grad))
        self.tape += tensors
        if isinstance(layer, nn.LayerNorm):
            return links.ChannelNorm(layer, place, self.exact)
        assert isinstance(layer, nn.BatchNorm2d)
        return links.BatchNorm(layer, place)


def _without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Links cast by themselves, as autocast would."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


class _Recomputed(torch.autograd.Function):
    """A chain that keeps its input, parameters and the tensors that its links choose."""

    @staticmethod
    def forward(ctx: Any, chain: links.Chain, x: Tensor, *parameters: Tensor | None) -> Tensor:
        tape: links.Tape = list(parameters)
        with _without_autocast(x):
            y = chain.forward(x, False, tape)
        ctx.chain, ctx.count = chain, len(parameters)
        ctx.save_for_backward(x, *tape)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, *tape = ctx.saved_tensors
        with _without_autocast(x):
            if torch.is_grad_enabled():  # the gradients themselves will be differentiated
                wanted = ctx.needs_input_grad[1:]
                given = [tensor for tensor, is_wanted in zip((x, *tape), wanted, strict=False) if is_wanted]
                y = ctx.chain.plain(x, tape)
                found = iter(torch.autograd.grad(y, given, g, create_graph=True))
                return (None, *(next(found) if is_wanted else None for is_wanted in wanted))
            grads: links.Tape = [None] * ctx.count
            return (None, ctx.chain.backward(g, False, x, tape, grads), *grads)

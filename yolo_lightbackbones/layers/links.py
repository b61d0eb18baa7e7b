"""Layers as links of a chain: what each computes, what it keeps for the backward pass, and its gradients.

`recompute.run` makes links of modules, for one call. A link knows its parameters by their places in a list of tensors,
the tape: first the parameters, then what links have kept in the forward pass. So the backward pass uses the tensors of
the forward pass, whatever a module has by then.

The operations are PyTorch's own, those that autograd calls, so gradients are autograd's. A convolution keeps its
output. Everything between two convolutions is computed again from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

aten = torch.ops.aten

Tape = list[Any]
"""Parameters, then kept tensors; None for a bias that a layer does not have."""


class Link:
    """One link. Maps are (B, C, H, W).

    `own` says that a map belongs to the chain and nobody else needs it, so it may be overwritten.
    """

    def forward(self, x: Tensor, own: bool, tape: Tape) -> Tensor:
        """Compute the output, and append to the tape what the backward pass needs."""
        raise NotImplementedError

    def again(self, x: Tensor, tape: Tape) -> Tensor:
        """Compute the output again, or take it from the tape."""
        raise NotImplementedError

    def backward(self, g: Tensor, own: bool, x: Tensor, tape: Tape, grads: Tape) -> Any:
        """Return the gradient of `x` from that of the output, and write those of parameters to their places.

        Only the first link of a chain may return None, if nobody wants that gradient.
        """
        raise NotImplementedError

    def plain(self, x: Tensor, tape: Tape) -> Tensor:
        """Compute the output in operations that autograd can differentiate twice."""
        raise NotImplementedError


@dataclass
class Convolution(Link):
    """A convolution; it keeps its output, if another link of the chain follows.

    Args:
        conv: its stride, padding, dilation and groups.
        weight: place of the weight on the tape; the bias is behind it.
        cast: whether autocast is on, so that the map takes the dtype of the weight.
        wanted: whether the gradients of the map and of the weight are wanted.
        last: whether no other link needs its output.
    """

    conv: nn.Conv2d
    weight: int
    cast: bool
    wanted: tuple[bool, bool] = (True, True)
    last: bool = False
    output: int = -1

    def _input(self, x: Tensor, tape: Tape) -> Tensor:
        return x.to(tape[self.weight].dtype) if self.cast else x

    def plain(self, x: Tensor, tape: Tape) -> Tensor:
        conv = self.conv
        weight, bias = tape[self.weight : self.weight + 2]
        x = self._input(x, tape)
        return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    def forward(self, x: Tensor, own: bool, tape: Tape) -> Tensor:
        y = self.plain(x, tape)
        if not self.last:
            self.output = len(tape)
            tape.append(y)
        return y

    def again(self, x: Tensor, tape: Tape) -> Tensor:
        y: Tensor = tape[self.output]
        return y

    def backward(self, g: Tensor, own: bool, x: Tensor, tape: Tape, grads: Tape) -> Any:
        conv = self.conv
        weight, bias = tape[self.weight : self.weight + 2]
        grad, *of_parameters = aten.convolution_backward(
            g,
            self._input(x, tape),
            weight,
            None if bias is None else list(bias.shape),
            conv.stride,
            conv.padding,
            conv.dilation,
            False,
            (0, 0),
            conv.groups,
            [*self.wanted, bias is not None],
        )
        grads[self.weight : self.weight + 2] = of_parameters
        return None if grad is None else grad.to(x.dtype)


@dataclass
class Scale(Link):
    """A depthwise 1x1 convolution: one factor and one shift per channel, which PyTorch computes faster elementwise.

    Arguments as in `Convolution`.
    """

    weight: int
    cast: bool

    def plain(self, x: Tensor, tape: Tape) -> Tensor:
        weight, bias = tape[self.weight : self.weight + 2]
        factor = weight.view(-1, 1, 1)
        if self.cast:
            x = x.to(weight.dtype)
        return x * factor if bias is None else torch.addcmul(bias.view(-1, 1, 1), x, factor)

    def forward(self, x: Tensor, own: bool, tape: Tape) -> Tensor:
        return self.plain(x, tape)

    def again(self, x: Tensor, tape: Tape) -> Tensor:
        return self.plain(x, tape)

    def backward(self, g: Tensor, own: bool, x: Tensor, tape: Tape, grads: Tape) -> Any:
        weight, bias = tape[self.weight : self.weight + 2]
        products = g * x.to(g.dtype)
        grads[self.weight] = products.sum((0, 2, 3)).view_as(weight)
        if bias is not None:
            grads[self.weight + 1] = g.sum((0, 2, 3))
        return torch.mul(g, weight.view(-1, 1, 1), out=products).to(x.dtype)


@dataclass
class BatchNorm(Link):
    """BatchNorm in training; it keeps the mean and the inverse deviation of each channel, and counts the batch once.

    Args:
        norm: the module, whose running statistics change in the forward pass.
        weight: place of the weight on the tape; the bias is behind it.
    """

    norm: nn.BatchNorm2d
    weight: int
    statistics: int = -1

    def plain(self, x: Tensor, tape: Tape) -> Tensor:
        weight, bias = tape[self.weight : self.weight + 2]
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, self.norm.eps)

    def forward(self, x: Tensor, own: bool, tape: Tape) -> Tensor:
        norm = self.norm
        weight, bias = tape[self.weight : self.weight + 2]
        if x.numel() == x.shape[1]:
            x = self.norm(x)  # raises PyTorch's error: one value has no variance
        running: tuple[Tensor | None, Tensor | None] = (None, None)
        if norm.track_running_stats:
            running = (norm.running_mean, norm.running_var)
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
        y, mean, inverse = torch.native_batch_norm(x, weight, bias, *running, True, norm.momentum or 0.0, norm.eps)
        self.statistics = len(tape)
        tape += [mean, inverse]
        return y

    def again(self, x: Tensor, tape: Tape) -> Tensor:
        mean, inverse = tape[self.statistics : self.statistics + 2]
        variance = inverse.square().reciprocal_().sub_(self.norm.eps)
        weight, bias = tape[self.weight : self.weight + 2]
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, self.norm.eps)

    def backward(self, g: Tensor, own: bool, x: Tensor, tape: Tape, grads: Tape) -> Any:
        weight = tape[self.weight]
        statistics = tape[self.statistics : self.statistics + 2]
        learned = weight is not None
        grad, *of_parameters = aten.native_batch_norm_backward(
            g, x, weight, None, None, *statistics, True, self.norm.eps, [True, learned, learned]
        )
        grads[self.weight : self.weight + 2] = of_parameters if learned else [None, None]
        return grad


@dataclass
class ChannelNorm(Link):
    """LayerNorm over channels; it keeps the mean and the inverse deviation of each position.

    Args:
        norm: the module.
        weight: place of the weight on the tape; the bias is behind it.
        exact: whether half precision is computed in float32, as autocast does on a GPU.
    """

    norm: nn.LayerNorm
    weight: int
    exact: bool
    statistics: int = -1

    def _input(self, x: Tensor) -> Tensor:
        return x.float() if self.exact else x

    def plain(self, x: Tensor, tape: Tape) -> Tensor:
        weight, bias = tape[self.weight : self.weight + 2]
        x = self._input(x).permute(0, 2, 3, 1)  # (B, H, W, C)
        x = F.layer_norm(x, self.norm.normalized_shape, weight, bias, self.norm.eps)
        return x.permute(0, 3, 1, 2)  # (B, C, H, W)

    def forward(self, x: Tensor, own: bool, tape: Tape) -> Tensor:
        x = self._input(x).permute(0, 2, 3, 1)
        weight, bias = tape[self.weight : self.weight + 2]
        y, mean, inverse = torch.native_layer_norm(x, self.norm.normalized_shape, weight, bias, self.norm.eps)
        self.statistics = len(tape)
        tape += [mean, inverse]
        return y.permute(0, 3, 1, 2)

    def again(self, x: Tensor, tape: Tape) -> Tensor:
        mean, inverse = (values.permute(0, 3, 1, 2) for values in tape[self.statistics : self.statistics + 2])
        weight, bias = (values.view(-1, 1, 1) for values in tape[self.weight : self.weight + 2])
        x = self._input(x)
        y = torch.sub(x, mean).mul_(inverse)  # in the memory order of x; layer_norm would need a copy
        return y.mul_(weight).add_(bias).to(x.dtype)  # half precision without autocast has statistics in float32

    def backward(self, g: Tensor, own: bool, x: Tensor, tape: Tape, grads: Tape) -> Any:
        weight, bias = tape[self.weight : self.weight + 2]
        grad, *of_parameters = aten.native_layer_norm_backward(
            g.permute(0, 2, 3, 1),
            self._input(x).permute(0, 2, 3, 1),
            self.norm.normalized_shape,
            *tape[self.statistics : self.statistics + 2],
            weight,
            bias,
            [True, True, True],
        )
        grads[self.weight : self.weight + 2] = of_parameters
        return grad.permute(0, 3, 1, 2).to(x.dtype)


@dataclass
class Activation(Link):
    """An activation; it keeps nothing.

    Args:
        function: the operation, which takes the map; `into` is the same, and takes the map to write to as well.
        gradient: the operation of its gradient, which takes the gradient of the output and the map; and so for `into`.
    """

    function: Callable[[Tensor], Tensor]
    function_into: Callable[[Tensor, Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]
    gradient_into: Callable[[Tensor, Tensor, Tensor], Tensor]

    def plain(self, x: Tensor, tape: Tape) -> Tensor:
        return self.function(x)

    def forward(self, x: Tensor, own: bool, tape: Tape) -> Tensor:
        return self.function_into(x, x) if own else self.function(x)

    def again(self, x: Tensor, tape: Tape) -> Tensor:
        return self.function(x)

    def backward(self, g: Tensor, own: bool, x: Tensor, tape: Tape, grads: Tape) -> Any:
        return self.gradient_into(g, x, g) if own else self.gradient(g, x)

    @classmethod
    def of(cls, module: nn.Module) -> Activation | None:
        """Make a link of an activation; None if it is not one of these."""
        if type(module) is nn.GELU:
            how = module.approximate
            return cls(
                lambda x: F.gelu(x, approximate=how),
                lambda x, out: aten.gelu.out(x, approximate=how, out=out),
                lambda g, x: aten.gelu_backward(g, x, approximate=how),
                lambda g, x, out: aten.gelu_backward.grad_input(g, x, approximate=how, grad_input=out),
            )
        return _PLAIN_ACTIVATIONS.get(type(module))


_PLAIN_ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.SiLU: Activation(
        F.silu,
        lambda x, out: aten.silu.out(x, out=out),
        aten.silu_backward,
        lambda g, x, out: aten.silu_backward.grad_input(g, x, grad_input=out),
    ),
    nn.ReLU: Activation(
        F.relu,
        lambda x, out: aten.relu_(x),
        lambda g, x: aten.threshold_backward(g, x, 0),
        lambda g, x, out: aten.threshold_backward.grad_input(g, x, 0, grad_input=out),
    ),
    nn.ReLU6: Activation(
        F.relu6,
        lambda x, out: aten.hardtanh_(x, 0, 6),
        lambda g, x: aten.hardtanh_backward(g, x, 0, 6),
        lambda g, x, out: aten.hardtanh_backward.grad_input(g, x, 0, 6, grad_input=out),
    ),
    nn.Hardswish: Activation(
        F.hardswish,
        lambda x, out: aten.hardswish_(x),
        aten.hardswish_backward,
        lambda g, x, out: aten.hardswish_backward.out(g, x, out=out),
    ),
}


def add(x: Tensor, own: bool, y: Tensor) -> Tensor:
    """`x + y`, in the memory of `x` if it may be overwritten."""
    return x.add_(y) if own and x.dtype == torch.promote_types(x.dtype, y.dtype) else x + y


@dataclass
class Chain(Link):
    """Links, one behind the other. Only the outputs of convolutions are kept."""

    links: Sequence[Link]

    def plain(self, x: Tensor, tape: Tape) -> Tensor:
        for link in self.links:
            x = link.plain(x, tape)
        return x

    def forward(self, x: Tensor, own: bool, tape: Tape) -> Tensor:
        for link in self.links:
            x = link.forward(x, own, tape)
            own = not isinstance(link, Convolution) or link.last
        return x

    def again(self, x: Tensor, tape: Tape) -> Tensor:
        kept = [i for i, link in enumerate(self.links) if isinstance(link, Convolution)]
        for link in self.links[kept[-1] if kept else 0 :]:
            x = link.again(x, tape)
        return x

    @property
    def owns(self) -> bool:
        """Whether the output is nobody else's, and not on the tape."""
        return not isinstance(self.links[-1], Convolution)

    def backward(self, g: Tensor, own: bool, x: Tensor, tape: Tape, grads: Tape) -> Any:
        end = len(self.links)
        for start in reversed(self._starts()):
            inputs = [x if start == 0 else self.links[start - 1].again(x, tape)]
            for link in self.links[start : end - 1]:
                inputs.append(link.again(inputs[-1], tape))
            for link in reversed(self.links[start:end]):
                g = link.backward(g, own, inputs.pop(), tape, grads)
                own = True
            end = start
        return g

    def _starts(self) -> list[int]:
        """Numbers of the links whose input is on the tape."""
        return [0, *(i for i, link in enumerate(self.links[:-1], start=1) if isinstance(link, Convolution))]


@dataclass
class Sum(Link):
    """Chains on the same map, added, and the map itself."""

    chains: Sequence[Chain]
    dtypes: list[torch.dtype] = field(default_factory=list)

    def _sum(self, x: Tensor, compute: Callable[[Chain], Tensor]) -> Tensor:
        first, *others = self.chains
        total, own = compute(first), first.owns
        for chain in others:
            total, own = add(total, own, compute(chain)), True
        return add(total, own, x)

    def plain(self, x: Tensor, tape: Tape) -> Tensor:
        return sum(chain.plain(x, tape) for chain in self.chains) + x

    def forward(self, x: Tensor, own: bool, tape: Tape) -> Tensor:
        self.dtypes = []

        def compute(chain: Chain) -> Tensor:
            y = chain.forward(x, False, tape)
            self.dtypes.append(y.dtype)
            return y

        return self._sum(x, compute)

    def again(self, x: Tensor, tape: Tape) -> Tensor:
        return self._sum(x, lambda chain: chain.again(x, tape))

    def backward(self, g: Tensor, own: bool, x: Tensor, tape: Tape, grads: Tape) -> Any:
        total = g.to(x.dtype)
        for chain, dtype in zip(self.chains, self.dtypes, strict=True):
            total = add(chain.backward(g.to(dtype), False, x, tape, grads), True, total)
        return total


@dataclass
class Product(Link):
    """Two chains on the same map, multiplied."""

    one: Chain
    other: Chain

    def plain(self, x: Tensor, tape: Tape) -> Tensor:
        return self.one.plain(x, tape) * self.other.plain(x, tape)

    def forward(self, x: Tensor, own: bool, tape: Tape) -> Tensor:
        return self.one.forward(x, False, tape) * self.other.forward(x, False, tape)

    def again(self, x: Tensor, tape: Tape) -> Tensor:
        return self.one.again(x, tape) * self.other.again(x, tape)

    def backward(self, g: Tensor, own: bool, x: Tensor, tape: Tape, grads: Tape) -> Any:
        one, other = self.one.again(x, tape), self.other.again(x, tape)
        of_one, of_other = (g * other).to(one.dtype), (g.mul_(one) if own else g * one).to(other.dtype)
        total = self.one.backward(of_one, True, x, tape, grads)
        return add(total, True, self.other.backward(of_other, True, x, tape, grads))

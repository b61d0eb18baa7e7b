"""Folding algebra for inference and the walker that applies it; knows no family.

A module that can be made cheaper without changing its output derives from `Fusible` and says how in `fold()`. The
walker `fuse()` copies a module tree and lets every `Fusible` in it fold itself, children first, so that a block only
has to deal with its own direct relations: by the time it is asked, its conv+BN pairs are plain convolutions already.

All folding is computed in float64 and stored in the dtype of the layer, so that a fused float32 model is as close to
the unfused one as float32 allows.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)
LinearT = TypeVar("LinearT", bound="nn.Conv2d | nn.Linear")


class Fusible(nn.Module):
    """A module that knows an equal, cheaper form of itself for inference."""

    folded = False
    """Set by the walker on the result: a folded module is not folded again."""

    def fold(self) -> nn.Module:
        """Return the inference form.

        Called by `fuse()` on a private copy in eval mode whose children are folded already: it may change itself and
        return itself, or return a replacement.
        """
        raise NotImplementedError(f"{type(self).__name__} derives from Fusible but does not define fold().")


def fuse(module: nn.Module) -> nn.Module:
    """Return an equal module for inference: folded, in eval mode, without gradients.

    The argument and its weights are untouched; device and dtype are kept; fusing a fused module changes nothing.
    """
    fused = _fold_tree(copy.deepcopy(module).eval(), {})
    return fused.eval().requires_grad_(False)


def is_fused(module: nn.Module) -> bool:
    """Whether `fuse()` would leave `module` as it is."""
    return all(m.folded for m in module.modules() if isinstance(m, Fusible))


def has_folded(module: nn.Module) -> bool:
    """Whether anything in `module` is folded, so that weights of training do not fit it."""
    return any(m.folded for m in module.modules() if isinstance(m, Fusible))


def is_recording() -> bool:
    """Whether the operations at hand are recorded by an exporter or a compiler, where sizes may be symbolic."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined, no-untyped-call]


class SizeBound(nn.Module):
    """A module whose constants hold for one size of its input. What is recorded of it is chosen by `record_for`."""

    any_size = False
    """Whether a recording must hold for any size."""

    format = "torchscript"
    """What the recording becomes, in Ultralytics' names of export formats, with "-int8" behind it where weights become
    integers: a family may know what is fast there, or does not work."""

    def shape_of(self, x: Tensor) -> Sequence[int]:
        """The shape of `x`; constant in a trace for one size, since NCNN takes no computed shapes."""
        if self.any_size or not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return x.shape
        return [int(side) for side in x.shape]


def is_size_bound(module: nn.Module) -> bool:
    """Whether a recording of `module` holds for one size unless `record_for` says otherwise."""
    return any(isinstance(child, SizeBound) for child in module.modules())


def record_for(module: nn.Module, format: str = "torchscript", *, any_size: bool = False) -> None:
    """Have exporters record `module` for this format, and for images of any size (slower where it is run) or of one.

    Only what is recorded changes: called from Python, a fused module follows the size of every image.
    """
    for child in module.modules():
        if isinstance(child, SizeBound):
            child.any_size = any_size
            child.format = format


def _fold_tree(module: nn.Module, seen: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in seen:  # the same module may be registered in two places
        return seen[module]
    if isinstance(module, Fusible) and module.folded:
        return module
    for name, child in module._modules.items():
        if child is not None:
            module._modules[name] = _fold_tree(child, seen)
    folded = module.fold() if isinstance(module, Fusible) else module
    if isinstance(folded, Fusible):
        folded.folded = True
    seen[module] = folded
    return folded


# --- algebra ----------------------------------------------------------------------------------------------------------


def exact(values: Tensor) -> Tensor:
    """The values in float64 for computing with them, without gradient; on the CPU where the device has no float64."""
    return values.detach().to("cpu" if values.device.type == "mps" else values.device, torch.float64)


def batchnorm_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,), float64, that a BatchNorm with running statistics applies: `y = scale * x + shift`."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("A BatchNorm without running statistics cannot be folded: it normalises by the batch at hand.")
    scale = torch.rsqrt(exact(norm.running_var) + norm.eps)
    if norm.weight is not None:
        scale = scale * exact(norm.weight)
    shift = -exact(norm.running_mean) * scale
    if norm.bias is not None:
        shift = shift + exact(norm.bias)
    return scale, shift


def batchnorm_to_conv(norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A BatchNorm that no neighbour can take as a depthwise 1x1 convolution, which every runtime can quantise."""
    scale, shift = batchnorm_affine(norm)
    with torch.device("meta"):
        conv = nn.Conv2d(norm.num_features, norm.num_features, 1, groups=norm.num_features)
    conv._parameters = {
        "weight": nn.Parameter(scale.view(-1, 1, 1, 1).to(norm.running_mean), requires_grad=False),
        "bias": nn.Parameter(shift.to(norm.running_mean), requires_grad=False),
    }
    return conv


def transposed_to_shuffle(conv: nn.ConvTranspose2d) -> nn.Sequential:
    """A depthwise transposed convolution with kernel = stride = r as a 1x1 convolution and a pixel shuffle by r."""
    (rate, other), dim = conv.stride, conv.in_channels
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    if not (depthwise and rate == other and conv.kernel_size == conv.stride and conv.padding == (0, 0)):
        raise ValueError(f"Only a depthwise transposed convolution without overlap is a pixel shuffle, unlike {conv}.")
    with torch.device("meta"):
        pointwise = nn.Conv2d(dim, dim * rate**2, 1, groups=dim, bias=conv.bias is not None)
    # One output channel per place in the window, in the order of a pixel shuffle: rows, then columns.
    weight = conv.weight.detach().reshape(dim * rate**2, 1, 1, 1)
    pointwise.weight = nn.Parameter(weight, requires_grad=False)
    if conv.bias is not None:
        pointwise.bias = nn.Parameter(conv.bias.detach().repeat_interleave(rate**2), requires_grad=False)
    return nn.Sequential(pointwise, nn.PixelShuffle(rate))


def take_affine(norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Take scale and shift (C,) out of a LayerNorm for the linear layer behind it; ones and zeros are left in it.

    Not None: exporters write ones and zeros for it anyway, and x2paddle fails on a norm that has none.
    """
    scale, shift = norm.weight, norm.bias
    norm._parameters = {
        "weight": nn.Parameter(torch.ones_like(scale), requires_grad=False),
        "bias": nn.Parameter(torch.zeros_like(shift), requires_grad=False),
    }
    return scale, shift


def scale_outputs(layer: LinearT, scale: Tensor, shift: Tensor | None = None) -> LinearT:
    """The layer that computes `scale * layer(x) + shift`, both (out_channels,): a norm or layer scale behind it."""
    weight, bias = _weight_and_bias(layer)
    weight = weight * exact(scale).view(-1, *[1] * (weight.ndim - 1))
    bias = bias * exact(scale)
    if shift is not None:
        bias = bias + exact(shift)
    return _with_parameters(layer, weight, bias)


def scale_inputs(layer: LinearT, scale: Tensor, shift: Tensor | None = None) -> LinearT:
    """The layer that computes `layer(scale * x + shift)`, both (in_channels,): a norm in front of it.

    Raises:
        ValueError: for a shift before a zero-padded convolution. The padding would have to be shifted as well.
    """
    weight, bias = _weight_and_bias(layer)
    if shift is not None and isinstance(layer, nn.Conv2d) and layer.padding not in ((0, 0), 0, "valid"):
        raise ValueError(f"A shift cannot be folded into a convolution with padding {layer.padding}.")
    if shift is not None:
        bias = bias + (weight * _per_weight(layer, exact(shift))).flatten(1).sum(1)
    return _with_parameters(layer, weight * _per_weight(layer, exact(scale)), bias)


def permute_inputs(conv: nn.Conv2d, order: list[int]) -> nn.Conv2d:
    """The convolution that computes `conv(x[:, order])`, for one without groups."""
    if conv.groups != 1:
        raise ValueError(f"Input channels can be permuted only in a convolution without groups, not in {conv}.")
    weight, bias = _weight_and_bias(conv)
    permuted = torch.empty_like(weight)
    permuted[:, order] = weight
    return _with_parameters(conv, permuted, bias)


def add_identity(conv: nn.Conv2d) -> nn.Conv2d:
    """The depthwise convolution that computes `x + conv(x)`: one in the centre of every kernel."""
    _, bias = _weight_and_bias(conv)
    return _add_to_centre(conv, torch.ones_like(bias), torch.zeros_like(bias))


def add_pointwise(conv: nn.Conv2d, pointwise: nn.Conv2d) -> nn.Conv2d:
    """The depthwise convolution that computes `conv(x) + pointwise(x)`, `pointwise` being depthwise 1x1."""
    if pointwise.kernel_size != (1, 1) or pointwise.stride != (1, 1) or pointwise.groups != pointwise.in_channels:
        raise ValueError(f"Only a depthwise 1x1 convolution fits into the centre of another, not {pointwise}.")
    return _add_to_centre(conv, *_weight_and_bias(pointwise))


def _add_to_centre(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """The depthwise convolution `conv(x) + weight * x + bias`, both (C,) but for the shape of a 1x1 convolution's."""
    kernel_h, kernel_w = conv.kernel_size
    same = conv.padding == (kernel_h // 2, kernel_w // 2) and conv.stride == (1, 1) and conv.dilation == (1, 1)
    if not (conv.groups == conv.in_channels == conv.out_channels and kernel_h % 2 and kernel_w % 2 and same):
        raise ValueError(f"Only a depthwise, odd, same-size convolution has a centre to add to, unlike {conv}.")
    own_weight, own_bias = _weight_and_bias(conv)
    centre = own_weight[:, :, kernel_h // 2, kernel_w // 2]
    centre += weight.view(-1, 1)
    return _with_parameters(conv, own_weight, own_bias + bias)


def _weight_and_bias(layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor]:
    weight = exact(layer.weight).clone()
    bias = weight.new_zeros(weight.shape[0]) if layer.bias is None else exact(layer.bias).clone()
    return weight, bias


def _per_weight(layer: nn.Conv2d | nn.Linear, values: Tensor) -> Tensor:
    """Values per input channel (in_channels,) shaped to multiply the layer's weight."""
    if isinstance(layer, nn.Linear):
        return values.view(1, -1)
    groups, out_channels = layer.groups, layer.out_channels
    per_group = values.view(groups, 1, -1).expand(groups, out_channels // groups, -1)
    return per_group.reshape(out_channels, -1, 1, 1)


def _with_parameters(layer: LinearT, weight: Tensor, bias: Tensor) -> LinearT:
    """A copy of `layer` with these parameters, in its dtype and on its device."""
    new = copy.copy(layer)  # shallow: the parameters are replaced, never written to
    new._parameters = {
        "weight": nn.Parameter(weight.to(layer.weight), requires_grad=False),
        "bias": nn.Parameter(bias.to(layer.weight), requires_grad=False),
    }
    return new

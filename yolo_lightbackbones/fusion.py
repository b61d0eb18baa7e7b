"""Folding for inference: the algebra, and the walker that applies it. This module knows no family.

A module that has a cheaper form with the same output derives from `Fusible` and implements `fold()`. The walker
`fuse()` copies a module tree and folds every `Fusible` in it, children first. So a block folds only its direct parts:
when its `fold()` runs, its conv+BN pairs are plain convolutions already.

All folding is computed in float64 and stored in the dtype of the layer, so that a fused float32 model is as close to
the unfused one as float32 allows.

A layer may have more than a weight and a bias: fake quantisers, pruning masks, parametrizations, hooks. Folding would
lose them, so a `Fusible` with such a layer inside is not folded (see `obstacle`). A kind of layer that the algebra does
not know raises a `FoldError`. Nothing is silently dropped.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

ModuleT = TypeVar("ModuleT", bound=nn.Module)
LinearT = TypeVar("LinearT", bound="nn.Conv2d | nn.Linear")


class Fusible(nn.Module):
    """A module with a cheaper form for inference that gives the same output."""

    folded = False
    """Whether this is a folded form, which is not folded again; set by the walker."""

    def fold(self) -> nn.Module:
        """Return the inference form.

        `fuse()` calls this on a private copy in eval mode whose children are folded already. It may change itself and
        return itself, or return a replacement.
        """
        raise NotImplementedError(f"{type(self).__name__} derives from Fusible but does not define fold().")

    def folds(self) -> Iterable[nn.Module]:
        """The modules that `fold()` changes, replaces or leaves out; an `obstacle` in one of them prevents folding.

        By default these are all modules inside, because a hook on any of them would see other values after folding.
        """
        return self.modules()


class FoldError(ValueError):
    """Raised for a module that folding does not know.

    Args:
        module: the module.
        problem: the rest of a sentence that starts with the name of the module: "is a GroupNorm, ...".
        name: name of the module in this sentence.
    """

    def __init__(self, module: nn.Module, problem: str, name: str = "This layer") -> None:
        super().__init__(f"{name} {problem}")
        self.module = module
        self.problem = problem


@dataclass(frozen=True)
class Obstacle:
    """Something on a module that folding would lose.

    Args:
        what: name of the obstacle: "a pruning mask".
        remedy: how to remove it, in the imperative: "make the mask permanent". Empty if it must stay.
    """

    what: str
    remedy: str = ""


def fuse(module: nn.Module) -> nn.Module:
    """Return an equivalent module for inference: folded, in eval mode, without gradients.

    The argument and its weights are not changed. Device and dtype are kept. Fusing a fused module changes nothing.
    Blocks with fake quantisers inside are not folded. Blocks with pruning masks, parametrizations or hooks are not
    folded either, and one warning names the first such layer.

    Raises:
        FoldError: (a `ValueError`) for a kind of layer that folding does not know, such as a GroupNorm in the place of
            a BatchNorm; the message names the layer.
    """
    fused = _copy(module).eval()
    names = {child: name for name, child in fused.named_modules() if name}
    left = [found for m in fused.modules() if isinstance(m, Fusible) and not m.folded and (found := _first_obstacle(m))]
    try:
        fused = _fold_tree(fused, {})
    except FoldError as error:
        raise FoldError(error.module, error.problem, names.get(error.module, type(error.module).__name__)) from error
    _warn_of(left, names)
    return fused.eval().requires_grad_(False)


def is_fused(module: nn.Module) -> bool:
    """Whether `fuse()` would fold nothing in `module`."""
    return all(m.folded or _first_obstacle(m) is not None for m in module.modules() if isinstance(m, Fusible))


def is_folded(module: nn.Module) -> bool:
    """Whether every part of `module` that can be folded is folded; quantisers and the like are no excuse."""
    return all(m.folded for m in module.modules() if isinstance(m, Fusible))


def has_folded(module: nn.Module) -> bool:
    """Whether anything in `module` is folded, so that weights from training do not fit it."""
    return any(m.folded for m in module.modules() if isinstance(m, Fusible))


def _copy(module: nn.Module) -> nn.Module:
    """Make a deep copy, which includes weights that pruning or a normalisation computes from others."""
    held = (value for child in module.modules() for value in vars(child).values())
    computed = [value for value in held if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(module, {id(value): value.detach().clone() for value in computed})


def obstacle(module: nn.Module) -> Obstacle | None:
    """Find something on this module itself that folding would lose; None for an ordinary module."""
    if any(name.endswith(_QUANTISERS) for name in module._modules):
        return Obstacle("fake quantisers")  # of NVIDIA ModelOpt, torch.ao or Brevitas
    if parametrize.is_parametrized(module):
        return Obstacle("a parametrization", "remove it with torch.nn.utils.parametrize.remove_parametrizations")
    pre_hooks = module._forward_pre_hooks.values()
    hooked = pre_hooks or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks
    if any(isinstance(hook, prune.BasePruningMethod) for hook in pre_hooks):
        found = Obstacle("a pruning mask", "make it permanent with torch.nn.utils.prune.remove")
    elif any(type(hook).__module__.startswith("torch.nn.utils.") for hook in pre_hooks):
        found = Obstacle("a normalised weight", "make it plain with remove_weight_norm or remove_spectral_norm")
    elif hooked:
        found = Obstacle("hooks", "remove them, and register them on the fused module")
    elif "forward" in vars(module):
        found = Obstacle("a forward of its own", "delete the attribute `forward`")
    elif isinstance(module, Fusible) and (stranger := _stranger(module)) is not None:
        found = Obstacle(f"the forward of {stranger.__name__}", f"define fold() in {stranger.__name__} as well")
    else:
        return None
    return found


def _stranger(fusible: Fusible) -> type | None:
    """Return the class that defines `forward`, if `fold` is inherited from a class that does not know this forward."""
    fold, forward = (next(c for c in type(fusible).__mro__ if name in vars(c)) for name in ("fold", "forward"))
    return None if fold is Fusible or issubclass(fold, forward) else forward


_QUANTISERS = ("_quantizer", "_fake_quant", "_quant", "activation_post_process")
"""Endings of the names of fake quantisers; each is a child of the layer that it acts on."""


def _first_obstacle(fusible: Fusible) -> tuple[nn.Module, Obstacle] | None:
    found = ((module, obstacle(module)) for module in fusible.folds())
    return next(((module, what) for module, what in found if what is not None), None)


def _warn_of(left: Sequence[tuple[nn.Module, Obstacle]], names: Mapping[nn.Module, str]) -> None:
    """Warn about blocks that are not folded, except those with quantisers, which must stay."""
    removable = [(module, found) for module, found in left if found.remedy]
    if removable:
        module, found = removable[0]
        warnings.warn(
            f"Not everything is folded, which is right but slower: {names.get(module, type(module).__name__)} has "
            f"{found.what} (the first of {len(removable)} reasons). To fold it, {found.remedy}.",
            stacklevel=3,
        )


def _fold_tree(module: nn.Module, seen: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in seen:  # the same module may be registered in two places
        return seen[module]
    if isinstance(module, Fusible) and module.folded:
        return module
    blocked = isinstance(module, Fusible) and _first_obstacle(module) is not None  # asked before a child is replaced
    for name, child in module._modules.items():
        if child is not None:
            module._modules[name] = _fold_tree(child, seen)
    folded = module.fold() if isinstance(module, Fusible) and not blocked else module
    if isinstance(folded, Fusible) and not blocked:
        folded.folded = True
    seen[module] = folded
    return folded


# --- algebra ----------------------------------------------------------------------------------------------------------


def exact(values: Tensor) -> Tensor:
    """Convert values to float64 for computing, without gradient; on the CPU if the device has no float64."""
    return values.detach().to("cpu" if values.device.type == "mps" else values.device, torch.float64)


def expect(module: nn.Module, *classes: type[nn.Module]) -> None:
    """Refuse a module that does not compute what one of these classes computes: folding would change the output.

    Raises:
        FoldError: for another class, and for a subclass whose own forward is neither PyTorch's nor ours.
    """
    if not isinstance(module, classes) or not _has_known_forward(module):
        allowed = " or ".join(cls.__name__ for cls in classes)
        raise FoldError(
            module,
            f"is a {_full_name(type(module))}, and folding needs a {allowed} with its own forward there. Put one in "
            "its place, or use the model without fuse().",
        )


def _has_known_forward(module: nn.Module) -> bool:
    """Whether the forward of the class is PyTorch's or ours, and not overridden in a subclass of somebody else."""
    methods = (getattr(type(module), name, None) for name in ("forward", "_conv_forward"))
    return all(
        method is None or method.__module__.startswith(("torch.nn.modules.", f"{__package__}.")) for method in methods
    )


def _full_name(cls: type) -> str:
    return cls.__name__ if cls.__module__.startswith("torch.nn.modules") else f"{cls.__module__}.{cls.__qualname__}"


def batchnorm_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,), float64, that a norm with running statistics applies: `y = scale * x + shift`.

    This holds for every norm that is such a map in eval mode: BatchNorm2d, SyncBatchNorm, and frozen norms that derive
    from neither. If the class is not PyTorch's or ours, the norm is run on a few values, and the results must agree.

    Raises:
        FoldError: for a norm that depends on the batch or the image at hand, or that does more than scale and shift.
    """
    mean, var, eps = (getattr(norm, name, None) for name in ("running_mean", "running_var", "eps"))
    if not (isinstance(mean, Tensor) and isinstance(var, Tensor) and isinstance(eps, float)):
        raise FoldError(
            norm,
            f"is a {_full_name(type(norm))} without running statistics: it normalises by what it sees, and cannot be "
            "folded as a BatchNorm2d can. Use the model without fuse(), or put a BatchNorm2d in its place.",
        )
    scale = torch.rsqrt(exact(var) + eps)
    if isinstance(weight := getattr(norm, "weight", None), Tensor):
        scale = scale * exact(weight)
    shift = -exact(mean) * scale
    if isinstance(bias := getattr(norm, "bias", None), Tensor):
        shift = shift + exact(bias)
    trusted = isinstance(norm, nn.modules.batchnorm._BatchNorm) and _has_known_forward(norm)
    if not trusted and not mean.is_meta and not _agrees(norm, scale, shift, mean):
        raise FoldError(
            norm,
            f"is a {_full_name(type(norm))}, which does more than scale and shift by its running statistics, and "
            "cannot be folded as a BatchNorm2d can. Use the model without fuse(), or put a BatchNorm2d in its place.",
        )
    return scale, shift


def _agrees(norm: nn.Module, scale: Tensor, shift: Tensor, like: Tensor) -> bool:
    """Whether the norm maps numbers of both signs, small and large, to `scale * x + shift`."""
    x = torch.tensor([-100.0, -1.0, 0.0, 1.0, 100.0]).to(like).view(1, 1, 1, -1).expand(2, len(scale), 1, -1)
    wanted = exact(x) * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    tolerance = 100 * torch.finfo(like.dtype).eps
    with torch.no_grad():
        return torch.allclose(exact(norm(x)), wanted, rtol=tolerance, atol=tolerance * wanted.abs().max().item())


def fold_norm_behind(layer: LinearT, norm: nn.Module) -> LinearT:
    """Return the layer that computes `norm(layer(x))`; the norm may be an Identity."""
    return layer if isinstance(norm, nn.Identity) else scale_outputs(layer, *batchnorm_affine(norm))


def fold_norm_before(layer: LinearT, norm: nn.Module) -> LinearT:
    """Return the layer that computes `layer(norm(x))`; the norm may be an Identity."""
    return layer if isinstance(norm, nn.Identity) else scale_inputs(layer, *batchnorm_affine(norm))


def batchnorm_to_conv(norm: nn.Module) -> nn.Conv2d:
    """Convert a norm that cannot fold into a neighbour to a depthwise 1x1 convolution, for runtimes to quantise."""
    scale, shift = batchnorm_affine(norm)
    like = norm.get_buffer("running_mean")
    with torch.device("meta"):
        conv = nn.Conv2d(len(scale), len(scale), 1, groups=len(scale))
    conv._parameters = {
        "weight": nn.Parameter(scale.view(-1, 1, 1, 1).to(like), requires_grad=False),
        "bias": nn.Parameter(shift.to(like), requires_grad=False),
    }
    return conv


def transposed_to_shuffle(conv: nn.Module) -> nn.Sequential:
    """Convert a depthwise transposed convolution with kernel = stride = r to a 1x1 convolution and a pixel shuffle."""
    expect(conv, nn.ConvTranspose2d)
    assert isinstance(conv, nn.ConvTranspose2d)
    (rate, other), dim = conv.stride, conv.in_channels
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    if not (depthwise and rate == other and conv.kernel_size == conv.stride and conv.padding == (0, 0)):
        raise ValueError(f"Only a depthwise transposed convolution without overlap is a pixel shuffle, unlike {conv}.")
    with torch.device("meta"):
        pointwise = nn.Conv2d(dim, dim * rate**2, 1, groups=dim, bias=conv.bias is not None)
    # One output channel per position in the window, in the order of a pixel shuffle: rows, then columns.
    weight = conv.weight.detach().reshape(dim * rate**2, 1, 1, 1)
    pointwise.weight = nn.Parameter(weight, requires_grad=False)
    if conv.bias is not None:
        pointwise.bias = nn.Parameter(conv.bias.detach().repeat_interleave(rate**2), requires_grad=False)
    return nn.Sequential(pointwise, nn.PixelShuffle(rate))


def take_affine(norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Take scale and shift (C,) out of a LayerNorm for the linear layer behind it, and leave ones and zeros.

    They are not replaced by None: exporters would write ones and zeros anyway, and x2paddle fails on a norm without
    weights.

    Raises:
        FoldError: for another norm, and for a LayerNorm without a weight or a bias.
    """
    expect(norm, nn.LayerNorm)
    scale, shift = norm.weight, norm.bias
    if scale is None or shift is None:
        raise FoldError(norm, "is a LayerNorm without a weight or a bias. Give it ones and zeros before fuse().")
    norm._parameters = {
        "weight": nn.Parameter(torch.ones_like(scale), requires_grad=False),
        "bias": nn.Parameter(torch.zeros_like(shift), requires_grad=False),
    }
    return scale, shift


def scale_outputs(layer: LinearT, scale: Tensor, shift: Tensor | None = None) -> LinearT:
    """Fold a norm or layer scale behind a layer: `scale * layer(x) + shift`, scale and shift being (out_channels,)."""
    weight, bias = _weight_and_bias(layer)
    weight = weight * exact(scale).view(-1, *[1] * (weight.ndim - 1))
    bias = bias * exact(scale)
    if shift is not None:
        bias = bias + exact(shift)
    return _with_parameters(layer, weight, bias)


def scale_inputs(layer: LinearT, scale: Tensor, shift: Tensor | None = None) -> LinearT:
    """Fold a norm in front of a layer: `layer(scale * x + shift)`, scale and shift being (in_channels,).

    Raises:
        ValueError: for a shift before a zero-padded convolution, because the padding would have to be shifted, too.
    """
    weight, bias = _weight_and_bias(layer)
    if shift is not None and isinstance(layer, nn.Conv2d) and layer.padding not in ((0, 0), 0, "valid"):
        raise ValueError(f"A shift cannot be folded into a convolution with padding {layer.padding}.")
    if shift is not None:
        bias = bias + (weight * _per_weight(layer, exact(shift))).flatten(1).sum(1)
    return _with_parameters(layer, weight * _per_weight(layer, exact(scale)), bias)


def permute_inputs(conv: nn.Conv2d, order: list[int]) -> nn.Conv2d:
    """Return the convolution that computes `conv(x[:, order])`; `conv` must have no groups."""
    if conv.groups != 1:
        raise ValueError(f"Input channels can be permuted only in a convolution without groups, not in {conv}.")
    weight, bias = _weight_and_bias(conv)
    permuted = torch.empty_like(weight)
    permuted[:, order] = weight
    return _with_parameters(conv, permuted, bias)


def add_identity(conv: nn.Conv2d) -> nn.Conv2d:
    """Return the depthwise convolution that computes `x + conv(x)`: 1 is added to the centre of every kernel."""
    _, bias = _weight_and_bias(conv)
    return _add_to_centre(conv, torch.ones_like(bias), torch.zeros_like(bias))


def add_pointwise(conv: nn.Conv2d, pointwise: nn.Conv2d) -> nn.Conv2d:
    """Return the depthwise convolution that computes `conv(x) + pointwise(x)`; `pointwise` is depthwise 1x1."""
    if pointwise.kernel_size != (1, 1) or pointwise.stride != (1, 1) or pointwise.groups != pointwise.in_channels:
        raise ValueError(f"Only a depthwise 1x1 convolution fits into the centre of another, not {pointwise}.")
    return _add_to_centre(conv, *_weight_and_bias(pointwise))


def _add_to_centre(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Return the depthwise convolution `conv(x) + weight * x + bias`; weight (C,) or (C, 1, 1, 1), bias (C,)."""
    kernel_h, kernel_w = conv.kernel_size
    dilation_h, dilation_w = conv.dilation
    same = conv.padding == (kernel_h // 2 * dilation_h, kernel_w // 2 * dilation_w) and conv.stride == (1, 1)
    if not (conv.groups == conv.in_channels == conv.out_channels and kernel_h % 2 and kernel_w % 2 and same):
        raise ValueError(f"Only a depthwise, odd, same-size convolution has a centre to add to, unlike {conv}.")
    own_weight, own_bias = _weight_and_bias(conv)
    centre = own_weight[:, :, kernel_h // 2, kernel_w // 2]
    centre += weight.view(-1, 1)
    return _with_parameters(conv, own_weight, own_bias + bias)


def _weight_and_bias(layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor]:
    expect(layer, nn.Conv2d, nn.Linear)
    weight = exact(layer.weight).clone()
    bias = weight.new_zeros(weight.shape[0]) if layer.bias is None else exact(layer.bias).clone()
    return weight, bias


def _per_weight(layer: nn.Conv2d | nn.Linear, values: Tensor) -> Tensor:
    """Reshape values per input channel (in_channels,) to multiply the weight of the layer."""
    if isinstance(layer, nn.Linear):
        return values.view(1, -1)
    groups, out_channels = layer.groups, layer.out_channels
    per_group = values.view(groups, 1, -1).expand(groups, out_channels // groups, -1)
    return per_group.reshape(out_channels, -1, 1, 1)


def _with_parameters(layer: LinearT, weight: Tensor, bias: Tensor) -> LinearT:
    """Copy `layer` with new parameters, in its dtype and on its device."""
    new = copy.copy(layer)  # shallow: the parameters are replaced, never written to
    new._parameters = {
        "weight": nn.Parameter(weight.to(layer.weight), requires_grad=False),
        "bias": nn.Parameter(bias.to(layer.weight), requires_grad=False),
    }
    return new

"""Applies what layers declare about their parameters: no weight decay, other initial values from scratch."""

from __future__ import annotations

from torch import nn


def no_weight_decay(module: nn.Module) -> set[str]:
    """Names of parameters in `module` without weight decay, besides those of norms and biases; as in timm.

    Every module, also `module` itself, lists its own parameters in the class attribute `no_weight_decay_names`.
    """
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, child in module.named_modules()
        for name in getattr(child, "no_weight_decay_names", ())
    }


def init_for_scratch(module: nn.Module) -> None:
    """Initialise again all layers in `module` that learn late with the published initialisation.

    Such a layer has a method `init_for_scratch`, mostly with PyTorch's default initialisation. The method does not
    touch children that have their own.
    """
    for child in module.modules():
        if (method := getattr(child, "init_for_scratch", None)) is not None:
            method()

"""Collects what the layers of a module declare about their parameters: no weight decay, another start from scratch."""

from __future__ import annotations

from torch import nn


def no_weight_decay(module: nn.Module) -> set[str]:
    """Names of parameters in `module` that weight decay should spare besides norms and biases, as in timm.

    Every module lists its own in the class attribute `no_weight_decay_names`, `module` itself too.
    """
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, child in module.named_modules()
        for name in getattr(child, "no_weight_decay_names", ())
    }


def init_for_scratch(module: nn.Module) -> None:
    """Start everything in `module` otherwise that would learn late as published, mostly as PyTorch's layers start.

    Such a module has a method `init_for_scratch`, which sets its own weights, not those of children that have one.
    """
    for child in module.modules():
        if (method := getattr(child, "init_for_scratch", None)) is not None:
            method()

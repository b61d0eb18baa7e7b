"""Activation checkpointing of parts of a backbone: in training, a part keeps its input only, and runs twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from yolo_lightbackbones import recording


def checkpointed(module: nn.Module, x: Tensor) -> Tensor:
    """Return `module(x)`; the backward pass runs the module again instead of keeping its maps (arXiv 1604.06174).

    The second run has the random numbers, the autocast and the modes of the first, and leaves running statistics as
    they are. Recordings, torch.func and torch.fx get the module without checkpointing, and so does a pass without
    gradients.
    """
    plain = not torch.is_grad_enabled() or recording.is_recording() or torch._C._are_functorch_transforms_active()
    if plain or type(x) is not Tensor:
        out: Tensor = module(x)
        return out
    modes = [(child, child.training) for child in module.modules()]
    again: Tensor = checkpoint(module, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _second_run(modes)))
    return again


@contextmanager
def _second_run(modes: list[tuple[nn.Module, bool]]) -> Iterator[None]:
    """Give modules the modes of the first run, and have norms count in copies of their running statistics."""
    before = [(module, module.training, dict(module._buffers)) for module, _ in modes]
    try:
        for module, training in modes:
            module.training = training
            if training and isinstance(module, nn.modules.batchnorm._BatchNorm):
                for name, buffer in module._buffers.items():
                    module._buffers[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for module, training, buffers in before:
            module.training = training
            module._buffers.update(buffers)

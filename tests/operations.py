"""Counts what a module really runs, with the same result whichever torch is installed; and runs it for its shapes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode


def operations(module: nn.Module, image: Tensor) -> int:
    """Floating point operations of convolutions and matrix products, attention included, for this image.

    Attention runs as two matrix products: some releases of torch take a fused kernel on the CPU that the counter does
    not know, and would count less.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(image)
    return int(counter.get_total_flops())


class KnownShapes(TorchFunctionMode):
    """On the meta device: norms and activations give a tensor of their argument's shape.

    Torch works these shapes out in Python, which takes more time than everything else that runs there.
    """

    KEEP_THEIRS = frozenset({F.batch_norm, F.layer_norm, F.silu, F.gelu, F.hardswish, F.relu})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.KEEP_THEIRS and args[0].is_meta:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))

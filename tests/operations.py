"""Counts what a module really runs, with the same result whichever torch is installed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def operations(module: nn.Module, image: Tensor) -> int:
    """Floating point operations of convolutions and matrix products, attention included, for this image.

    Attention runs as two matrix products: some releases of torch take a fused kernel on the CPU that the counter does
    not know, and would count less.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(image)
    return int(counter.get_total_flops())

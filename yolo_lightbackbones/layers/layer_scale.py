"""Layer scale: a learned factor per channel of a residual branch (CaiT, arXiv 2103.17239)."""

from __future__ import annotations

import torch
from torch import Tensor

LAYER_SCALE_FOR_SCRATCH = 0.1
"""From 1e-6, SGD leaves most layer scales below 0.01 for hundreds of updates: their blocks do almost nothing."""


def add_scaled(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    """`x + scale * branch` with `scale` (dim,), computed in float32 at least; None stands for 1.

    Under autocast, where parameters are float32, the sum stays in float32: rounded to half precision, it would not
    differ from `x` until the layer scale has grown a thousandfold. A half precision model gets its own dtype back.
    """
    if scale is None:
        return x + branch
    exact = torch.promote_types(x.dtype, torch.float32)
    out = x.to(exact) + scale.to(exact).view(1, -1, 1, 1) * branch.to(exact)
    return out.to(torch.promote_types(x.dtype, scale.dtype))

"""Norms: BatchNorm with its published eps, and LayerNorm over the channels of a map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that keeps its published eps (1e-5).

    Ultralytics' `initialize_weights` sets eps=1e-3 and momentum=0.03 on every module whose type *is* `nn.BatchNorm2d`.
    Published backbones were trained with 1e-5, and where a running variance is small that changes their output a lot; a
    subclass is left alone, and is still a BatchNorm2d for optimisers and for SyncBatchNorm.

    Tools that treat `nn.BatchNorm2d` by its exact class have to meet the subclass as well. NVIDIA ModelOpt spares
    `nn.BatchNorm2d` and quantises the input of subclasses that inherit its forward, but not of those that define one.
    torch.fx records `nn.BatchNorm2d` as one operation and traces through a subclass, where the check of the input's
    dimensions cannot be traced. Plain `nn.BatchNorm2d` would need its eps put back after every `initialize_weights`,
    and would lose it in silence wherever that was missed.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)

    def _check_input_dim(self, x: Tensor) -> None:
        if isinstance(x, Tensor):  # torch.fx traces with a proxy
            super()._check_input_dim(x)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W), one position at a time.

    `F.layer_norm` computes its statistics in float32 whatever the input's dtype, and permute + layer_norm + permute
    converts to every export format.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__(num_channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)  # (B, C, H, W)

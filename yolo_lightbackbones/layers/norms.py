"""Norms: BatchNorm that keeps its published eps, and LayerNorm over the channels of a map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_lightbackbones import recording


class BatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that keeps its published eps (1e-5).

    Ultralytics' `initialize_weights` sets eps=1e-3 and momentum=0.03 on every module whose type *is* `nn.BatchNorm2d`.
    Published backbones were trained with 1e-5, and another eps changes their output a lot where a running variance is
    small. A subclass is not changed, and is still a BatchNorm2d for optimisers and for SyncBatchNorm.

    Tools that check for the exact class `nn.BatchNorm2d` treat a subclass differently. NVIDIA ModelOpt quantises the
    input of subclasses that inherit the forward, but not of subclasses that define one, nor of `nn.BatchNorm2d` itself.
    torch.fx records `nn.BatchNorm2d` as one operation, but traces through a subclass, in which the check of the input's
    dimensions cannot be traced. With a plain `nn.BatchNorm2d`, eps would have to be restored after every
    `initialize_weights`, and would silently be wrong wherever this was forgotten.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)

    def _check_input_dim(self, x: Tensor) -> None:
        if isinstance(x, Tensor):  # torch.fx traces with a proxy
            super()._check_input_dim(x)


class LayerNorm2d(nn.LayerNorm, recording.Normalisation):
    """LayerNorm over the channels of (B, C, H, W), at each position separately.

    `F.layer_norm` computes its statistics in float32 for every input dtype. The sequence permute, layer_norm, permute
    works in every export format; some runtimes are faster with the arithmetic of its definition, which does not move
    the channels (`recording.record_for`).
    """

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__(num_channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        if self.records_elementwise():
            return self._elementwise(x)
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)  # (B, C, H, W)

    def _elementwise(self, x: Tensor) -> Tensor:
        """Compute the same in elementwise operations, in float32 at least: float16 cannot hold squares above 65504.

        Divided by a square root, and not multiplied by its inverse: converters recognise this as a normalisation, which
        they keep in float32 when the rest of a model becomes float16.
        """
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        centred = exact - exact.mean(1, keepdim=True)
        normed = centred / torch.sqrt((centred * centred).mean(1, keepdim=True) + self.eps)
        return (normed * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)

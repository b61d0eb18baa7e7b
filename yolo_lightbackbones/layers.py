"""Layers that two or more families use."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from yolo_lightbackbones import fusion


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


class ConvNorm(fusion.Fusible):
    """Convolution without bias, "same" padding for odd kernels, then BatchNorm; folds into one convolution."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False
        )
        self.norm = BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out

    def fold(self) -> nn.Conv2d:
        return fusion.fold_norm_behind(self.conv, self.norm)


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


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, drops a residual branch for a whole sample with `rate`."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep)
        return x * mask / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate}"

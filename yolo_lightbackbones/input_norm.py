"""From the RGB image in 0..1 that Ultralytics feeds to what a family's published weights were trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yolo_lightbackbones import fusion


@dataclass(frozen=True)
class InputConvention:
    """How a family's published weights expect an RGB image in 0..1 to be prepared."""

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    bgr: bool = False


IMAGENET = InputConvention(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class InputNorm(nn.Module):
    """Turns the RGB image in 0..1 that Ultralytics feeds into what the published weights were trained on.

    `mean` and `std` are in the channel order that comes out. They are constants, not weights: no checkpoint holds them,
    and whatever happens to the module's memory, they are made anew from `values`.
    """

    mean: Tensor | None
    std: Tensor | None
    values: dict[str, tuple[float, ...] | None]

    def __init__(self, convention: InputConvention) -> None:
        super().__init__()
        self.bgr = convention.bgr
        self.values = {"mean": convention.mean, "std": convention.std}
        for name in self.values:
            self.register_buffer(name, None, persistent=False)
        default = torch.empty(0)
        self._fill(default.dtype, default.device)

    def forward(self, x: Tensor) -> Tensor:
        if self.bgr:
            x = x.flip(1)
        if self.mean is not None:
            x = x - self.mean
        if self.std is not None:
            x = x / self.std
        return x

    def fold_into(self, conv: nn.Conv2d) -> tuple[nn.Module, nn.Conv2d]:
        """What is left of this norm, and the first convolution with the rest folded into its weights.

        Channel order and std always fold. The mean folds only into a convolution without padding: a padded one sees
        zeros *after* normalisation, which is a border of mean-coloured pixels before it.
        """
        mean, std = (
            None if values is None else fusion.exact(conv.weight).new_tensor(values) for values in self.values.values()
        )
        if std is not None:
            conv = fusion.scale_inputs(conv, 1 / std)
        if mean is not None and conv.padding == (0, 0):
            conv = fusion.scale_inputs(conv, torch.ones_like(mean), -mean)
            mean = None
        if self.bgr:
            conv = fusion.permute_inputs(conv, list(reversed(range(conv.in_channels))))
            mean = None if mean is None else mean.flip(0)
        if mean is None:
            return nn.Identity(), conv
        self.bgr, self.values = False, {"mean": tuple(mean.tolist()), "std": None}
        self._fill(conv.weight.dtype, conv.weight.device)
        return self, conv

    def _fill(self, dtype: torch.dtype, device: torch.device) -> None:
        for name, values in self.values.items():
            tensor = None if values is None else torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1)
            setattr(self, name, tensor)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> InputNorm:
        """Follow to a device and dtype; a rounded or emptied constant is not kept."""
        before = list(self.buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for old, new in zip(before, list(self.buffers()), strict=True):
            if new is not old:
                self._fill(new.dtype, new.device)
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "values" in state:
            return
        self.values = {}
        for name in ("mean", "std"):  # pickled before there were any; best.pt files have been through half precision
            held = self._buffers[name]
            published: tuple[float, ...] = getattr(IMAGENET, name)
            given = None if held is None else tuple(held.flatten().tolist())
            near = given is not None and all(abs(a - b) < 1e-3 for a, b in zip(given, published, strict=True))
            self.values[name] = published if near else given
        for held in list(self.buffers()):
            self._fill(held.dtype, held.device)

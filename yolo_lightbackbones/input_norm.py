"""Preprocessing of the image: from RGB in 0..1, as Ultralytics feeds it, to the input of the published weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yolo_lightbackbones import fusion


@dataclass(frozen=True)
class InputConvention:
    """Preprocessing of an RGB image in 0..1 that the published weights of a family expect."""

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    bgr: bool = False


IMAGENET = InputConvention(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class InputNorm(nn.Module):
    """Normalises the image: RGB in 0..1 -> the channel order, mean and std that the published weights were trained on.

    `mean` and `std` are in the channel order of the output. They are constants, not weights: they are not saved in
    checkpoints, and are computed again from `values` whenever dtype, device or memory of the module change.
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
        """Fold this norm into the first convolution; return the part that remains, and the convolution.

        Channel order and std always fold. The mean folds only into a convolution without padding: padding adds zeros
        *after* normalisation, and these correspond to pixels of the mean colour before it.
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
        """Move to a device or dtype; the constants are computed again, so that they are never rounded or left empty."""
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
        for name in ("mean", "std"):  # from a pickle older than `values`; best.pt files were rounded to half precision
            held = self._buffers[name]
            published: tuple[float, ...] = getattr(IMAGENET, name)
            given = None if held is None else tuple(held.flatten().tolist())
            near = given is not None and all(abs(a - b) < 1e-3 for a, b in zip(given, published, strict=True))
            self.values[name] = published if near else given
        for held in list(self.buffers()):
            self._fill(held.dtype, held.device)

"""Norms behind the taps of a backbone, for necks that join a tap with their own feature maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from yolo_lightbackbones import fusion
from yolo_lightbackbones.layers import BatchNorm2d

TAP_NORMS = "tap_norms"
"""First part of the names of their parameters in a state dict; no published file has such names."""

TAP_SHARE = 1 / 16
"""The factor that a tap is multiplied by before its norm.

The running statistics are those of the scaled map. Checkpoints store them in half precision, whose largest value is
65504, the variance for a standard deviation of 256. Without the factor, taps that are sums without a norm come near
this limit within a few hundred updates.
"""


class TapNorm(BatchNorm2d):
    """BatchNorm behind a tap that is scaled by `TAP_SHARE`; both are the identity until they see a training batch."""

    def reset_running_stats(self) -> None:
        super().reset_running_stats()
        assert self.running_var is not None
        self.running_var.fill_(TAP_SHARE**2 - self.eps)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> TapNorm:
        """Initialise the norm when it leaves the meta device, because files of published weights do not contain it."""
        was_meta = self.weight.is_meta
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if was_meta and not self.weight.is_meta:
            self.reset_parameters()
        return self


class TapNorms(nn.ModuleDict):
    """Tap -> its norm (a TapNorm, the class that a conversion made of it, or a convolution after folding).

    Norms for other taps in a state dict are ignored. A norm that is missing there keeps its values.
    """

    def norm(self, tap: str, x: Tensor) -> Tensor:
        """Return the feature map of this tap (B, C, H, W), normalised if the tap has a norm."""
        if tap not in self:
            return x
        norm = self[tap]
        out: Tensor = norm(x if isinstance(norm, nn.Conv2d) else x * TAP_SHARE)
        return out

    def fold(self) -> None:
        """Replace every norm, with `TAP_SHARE`, by a depthwise 1x1 convolution."""
        for tap, norm in self.items():
            conv = fusion.batchnorm_to_conv(norm)
            self[tap] = fusion.scale_inputs(conv, conv.weight.new_full((conv.in_channels,), TAP_SHARE))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *_: Any) -> None:
        """Add the present values of the norms that are missing in `state_dict`, for example in published weights.

        This module has no tensors of its own to load, and reports no keys as unexpected.
        """
        for tap, norm in self.items():
            if not any(key.startswith(f"{prefix}{tap}.") for key in state_dict):
                state_dict.update(norm.state_dict(prefix=f"{prefix}{tap}."))

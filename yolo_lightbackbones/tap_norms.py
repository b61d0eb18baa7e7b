"""Norms behind the taps of a backbone, for necks that join a tap with maps of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from yolo_lightbackbones import fusion
from yolo_lightbackbones.layers import BatchNorm2d

TAP_NORMS = "tap_norms"
"""What the names of their parameters begin with; no published file has any."""

TAP_SHARE = 1 / 16
"""The factor that a tap is multiplied by in front of its norm.

The norm's statistics are of that share of the map. Checkpoints have them in half precision, which ends at a variance of
65504, a standard deviation of 256, and sums that nothing normalises come near that within a few hundred updates.
"""


class TapNorm(BatchNorm2d):
    """BatchNorm behind a tap, of the `TAP_SHARE` of it. Together they are the identity until they see a batch."""

    def reset_running_stats(self) -> None:
        super().reset_running_stats()
        assert self.running_var is not None
        self.running_var.fill_(TAP_SHARE**2 - self.eps)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> TapNorm:
        """Start anew where memory is given to a norm without any: files of published weights do not fill it."""
        was_meta = self.weight.is_meta
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if was_meta and not self.weight.is_meta:
            self.reset_parameters()
        return self


class TapNorms(nn.ModuleDict):
    """Tap -> its norm, of any class that a conversion has put there; a convolution after folding.

    Weights for taps that have no norm here may be loaded, and are left out; norms without weights keep their values.
    """

    def norm(self, tap: str, x: Tensor) -> Tensor:
        """The feature map of this tap (B, C, H, W), normalised if the tap has a norm."""
        if tap not in self:
            return x
        norm = self[tap]
        out: Tensor = norm(x if isinstance(norm, nn.Conv2d) else x * TAP_SHARE)
        return out

    def fold(self) -> None:
        """Make every norm a depthwise 1x1 convolution, the share included."""
        for tap, norm in self.items():
            conv = fusion.batchnorm_to_conv(norm)
            self[tap] = fusion.scale_inputs(conv, conv.weight.new_full((conv.in_channels,), TAP_SHARE))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *_: Any) -> None:
        """Fill in the present values of norms of which the weights to be loaded have none, as published ones.

        Nothing else: it has no tensors of its own, and calls none unexpected.
        """
        for tap, norm in self.items():
            if not any(key.startswith(f"{prefix}{tap}.") for key in state_dict):
                state_dict.update(norm.state_dict(prefix=f"{prefix}{tap}."))

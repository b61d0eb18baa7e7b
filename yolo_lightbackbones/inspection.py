"""Questions about a backbone from tables, transfers and checkpoints, with defaults that fit a backbone of any kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from yolo_lightbackbones.input_norm import InputConvention


class Part(NamedTuple):
    """A part of a backbone, for tables of its parts; parts with the same title are added up.

    Args:
        path: name of the part in `named_modules()`.
        title: name of the part in the table.
        blocks: number of blocks in it.
        channels: channels of its output.
        reduction: image side divided by the side of its output.
        tapped: whether its output is the tap of that reduction, if the backbone has such a tap.
    """

    path: str
    title: str
    blocks: int | None = None
    channels: int | None = None
    reduction: int | None = None
    tapped: bool = True


class Inspectable(nn.Module):
    """A module that describes its parts, its first convolution and its settings; base class of `Backbone`."""

    def image_conv(self) -> tuple[str, nn.Conv2d] | None:
        """Name and module of the first convolution, which takes the image; None if there is none."""
        return next(((name, module) for name, module in self.named_modules() if isinstance(module, nn.Conv2d)), None)

    def fold_input(self) -> tuple[nn.Module, nn.Conv2d]:
        """Fold the preprocessing of the image into the first convolution, as far as possible.

        Returns:
            The rest of the preprocessing as a module, and the convolution. This backbone is not changed.

        Raises:
            ValueError: if there is no convolution.
        """
        found = self.image_conv()
        if found is None:
            raise ValueError(f"{type(self).__name__} has no convolution that takes the image.")
        return nn.Identity(), found[1]

    def applied_convention(self) -> InputConvention:
        """The image preprocessing in this backbone; the default convention changes nothing."""
        return InputConvention()

    def parts(self) -> list[Part]:
        """List the parts of the backbone for a table, in the order of the forward pass."""
        lists = (nn.ModuleList, nn.ModuleDict)  # containers that are never called
        inside = [
            [f"{name}.{within}" for within, _ in child.named_children()] if isinstance(child, lists) else [name]
            for name, child in self.named_children()
        ]
        return [Part(name, name) for names in inside for name in names]

    # --- names in a state dict: weights, settings, and norms that no published file has -------------------------------

    @classmethod
    def stage_of(cls, name: str) -> int:
        """Index of the stage that a name in the state dict belongs to; -1 if it belongs to none."""
        return -1

    @classmethod
    def is_setting(cls, name: str) -> bool:
        """Whether an entry of a state dict is a setting, not a weight; for example the position of a tap."""
        return False

    @classmethod
    def is_extra(cls, name: str) -> bool:
        """Whether an entry of a state dict is a weight that no published file has, so that it may be missing there."""
        return False

    def is_unbuilt(self, name: str) -> bool:
        """Whether a name belongs to a stage that this backbone did not build, because its taps do not need it."""
        return False

    def check_setting(self, name: str, value: Tensor) -> None:
        """Refuse a value of a setting that is not possible in this backbone.

        Raises:
            ValueError: with the allowed values.
        """

    def load_settings(self, settings: Mapping[str, Tensor], blocks_behind_tap: int = 0) -> None:
        """Take over the settings of a checkpoint.

        Args:
            settings: name in the state dict -> value; missing settings get their default.
            blocks_behind_tap: default for the position of a tap, see `checkpoints.rules.Layout`.
        """

    def copy_settings(self, other: Inspectable) -> None:
        """Take over the settings of another backbone, where both have the same tensors."""

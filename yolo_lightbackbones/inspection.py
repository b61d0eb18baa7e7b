"""What tables, transfers and checkpoints ask of a backbone; the answers here hold for one that is any module inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from yolo_lightbackbones.input_norm import InputConvention


class Part(NamedTuple):
    """A part of a backbone in tables of what it is made of; parts of one title are added up.

    Args:
        path: its name in `named_modules()`.
        title: its name in the table.
        blocks: how many blocks it has.
        channels: of its output.
        reduction: image side over side of its output.
    """

    path: str
    title: str
    blocks: int | None = None
    channels: int | None = None
    reduction: int | None = None


class Inspectable(nn.Module):
    """A module that answers them; `Backbone` derives from it."""

    def image_conv(self) -> tuple[str, nn.Conv2d] | None:
        """The first convolution, which sees the image, and its name; None if there is none."""
        return next(((name, module) for name, module in self.named_modules() if isinstance(module, nn.Conv2d)), None)

    def fold_input(self) -> tuple[nn.Module, nn.Conv2d]:
        """What is done to the image before the first convolution, and that convolution.

        As much as possible of the former is in the weights of the latter. Nothing of this backbone is changed.

        Raises:
            ValueError: if there is no convolution.
        """
        found = self.image_conv()
        if found is None:
            raise ValueError(f"{type(self).__name__} has no convolution that sees the image.")
        return nn.Identity(), found[1]

    def applied_convention(self) -> InputConvention:
        """How the image is prepared in this backbone; the default convention changes nothing."""
        return InputConvention()

    def parts(self) -> list[Part]:
        """The parts to list in a table, in the order in which the image goes through them."""
        lists = (nn.ModuleList, nn.ModuleDict)  # which are never called themselves
        inside = [
            [f"{name}.{within}" for within, _ in child.named_children()] if isinstance(child, lists) else [name]
            for name, child in self.named_children()
        ]
        return [Part(name, name) for names in inside for name in names]

    # --- names in a state dict: published weights, settings, and norms that only we have ------------------------------

    @classmethod
    def stage_of(cls, name: str) -> int:
        """The stage that a name in the state dict belongs to, counted from 0; -1 if it belongs to none."""
        return -1

    @classmethod
    def is_setting(cls, name: str) -> bool:
        """Whether a name in a state dict is of a number that is no weight, such as the place of a tap."""
        return False

    @classmethod
    def is_extra(cls, name: str) -> bool:
        """Whether a name in a state dict is of weights that no published file has, and that loading may leave alone."""
        return False

    def is_unbuilt(self, name: str) -> bool:
        """Whether a name is of a stage that the variant may have and this backbone, for its taps, did not build."""
        return False

    def check_setting(self, name: str, value: Tensor) -> None:
        """Refuse a value of a setting that this backbone cannot have.

        Raises:
            ValueError: saying what it must be.
        """

    def load_settings(self, settings: Mapping[str, Tensor], blocks_behind_tap: int = 0) -> None:
        """Take over the settings of a checkpoint.

        Args:
            settings: by name in a state dict; those that are missing get their default.
            blocks_behind_tap: the default place of a tap, see `checkpoints.rules.Layout`.
        """

    def copy_settings(self, other: Inspectable) -> None:
        """Take over the settings of another backbone, where the two have the same tensors."""

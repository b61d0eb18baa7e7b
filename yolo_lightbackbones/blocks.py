"""The families' blocks as rows of model YAMLs, for necks and for backbones written by hand; torch alone.

    - [-1, 3, RepViTBlock, [256]]               ->  RepViTBlocks(c1, 256 * width, 3 * depth)
    - [-1, 2, LGLBlock, [256, {sr_ratio: 4}]]   ->  LGLBlocks(c1, 256 * width, 2 * depth, {"sr_ratio": 4})

A row takes one map of any height and width, and keeps both: (B, in_channels, H, W) -> (B, out_channels, H, W).
A family's own block keeps the name of its paper (`backbones.repvit.RepViTBlock`); what a row builds is a sequence of
them, and has the plural (`RepViTBlocks`), which is also what Ultralytics' table of layers and checkpoints show.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from yolo_lightbackbones import layers
from yolo_lightbackbones.backbones.conv2former import LAYER_SCALE_FOR_SCRATCH, Conv2FormerBlock
from yolo_lightbackbones.backbones.edgevit import LGLBlock
from yolo_lightbackbones.backbones.parcnet import ParCBlock
from yolo_lightbackbones.backbones.repvit import RepViTBlock
from yolo_lightbackbones.messages import flow, quoted

MOST_CHANNELS = 8192
"""Most output channels of a row of blocks; more is a mistake and needs more memory than there is."""


@dataclass(frozen=True)
class Option:
    """One option of a block: its value where none is given, and which others there are."""

    default: Any
    allowed: str
    """What a value must be, as error messages say it."""
    accepts: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(default: int, most: int) -> Option:
    allowed = f"a whole number, at least 1 and at most {most}"
    return Option(default, allowed, lambda value: _is_whole(value) and 1 <= value <= most)


def _odd(default: int, most: int) -> Option:
    allowed = f"an odd number, at least 1 and at most {most}"
    return Option(default, allowed, lambda value: _is_whole(value) and 1 <= value <= most and value % 2 == 1)


def _share(default: float) -> Option:
    return Option(default, "a number, at least 0 and below 1", lambda value: _is_number(value) and 0 <= value < 1)


def _scale(default: float) -> Option:
    # 1e-6 without a dot is text to YAML, and the most likely mistake here
    allowed = "a number above 0, such as 0.1 or 1.0e-6 (with the dot: YAML reads 1e-6 as text)"
    return Option(default, allowed, lambda value: _is_number(value) and 0 < value < math.inf)


def _switch(default: bool) -> Option:
    return Option(default, "true or false", lambda value: isinstance(value, bool))


class BlockRow(nn.Module):
    """Blocks of one family in sequence: (B, in_channels, H, W) -> (B, out_channels, H, W), for any height and width.

    Where the width changes, a 1x1 convolution with BatchNorm goes first. It has no activation: all four families change
    their width linearly (RepViT and ParC-Net by a 1x1 convolution with BatchNorm, the others by strided convolutions),
    and for inference it is a single convolution.

    A family lists its options and implements `build_block`.

    Args:
        in_channels: of the map that comes in.
        out_channels: of the map that comes out, and of every block.
        repeats: how many blocks.
        options: by name; the defaults suit maps of any stage.

    Raises:
        ValueError: for an option that the block does not have, or a value that it does not allow.
    """

    options: ClassVar[Mapping[str, Option]]

    def __init__(
        self, in_channels: int, out_channels: int, repeats: int = 1, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        chosen = self.check_options({} if options is None else options)
        same = in_channels == out_channels
        self.project: nn.Module = nn.Identity() if same else layers.ConvNorm(in_channels, out_channels)
        self.blocks = nn.Sequential(*(self.build_block(out_channels, i, chosen) for i in range(repeats)))
        layers.init_for_scratch(self.blocks)  # no weights are published for a row

    def build_block(self, dim: int, index: int, options: Mapping[str, Any]) -> nn.Module:
        """The block with this index in its row: (B, dim, H, W) -> the same."""
        raise NotImplementedError(f"{type(self).__name__} does not implement build_block().")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.project(x))
        return out

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should spare besides norms and biases, as `Backbone` has it."""
        return layers.no_weight_decay(self)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options of this block: those given, and the defaults of the others.

        Raises:
            ValueError: for an unknown option, with the closest match, and for a value that is not allowed.
        """
        for name, value in options.items():
            if name not in cls.options:
                close = difflib.get_close_matches(flow(name), cls.options, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"unknown option {quoted(name)}.{hint} Allowed: {', '.join(cls.options)}.")
            if not cls.options[name].accepts(value):
                raise ValueError(f"{name} is {quoted(value)}; it must be {cls.options[name].allowed}.")
        return {name: option.default for name, option in cls.options.items()} | dict(options)


class RepViTBlocks(BlockRow):
    """RepViT's blocks.

    `squeeze` gives every other block, from the first on, squeeze-and-excitation, as in all published variants.
    """

    options: ClassVar[Mapping[str, Option]] = {
        "squeeze": _switch(True),
        "mlp_ratio": _whole(2, 64),
        "drop_path": _share(0.0),
    }

    def build_block(self, dim: int, index: int, options: Mapping[str, Any]) -> RepViTBlock:
        squeeze = options["squeeze"] and index % 2 == 0
        return RepViTBlock(dim, squeeze, options["mlp_ratio"], options["drop_path"])


class LGLBlocks(BlockRow):
    """EdgeViT's local-global-local blocks.

    Of each window of `sr_ratio` x `sr_ratio` tokens one takes part in attention, 1 for all of them (the published
    variants have 4, 2, 2 and 1 from P2 to P5). There are as many heads as divide the channels and have at least
    `head_dim` channels each, so that any width will do.
    """

    options: ClassVar[Mapping[str, Option]] = {
        "sr_ratio": _whole(2, 1024),
        "head_dim": _whole(32, MOST_CHANNELS),
        "mlp_ratio": _whole(4, 64),
        "drop_path": _share(0.0),
    }

    def build_block(self, dim: int, index: int, options: Mapping[str, Any]) -> LGLBlock:
        heads = max((n for n in range(1, dim // options["head_dim"] + 1) if dim % n == 0), default=1)
        block = LGLBlock(dim, dim // heads, options["sr_ratio"], options["mlp_ratio"], options["drop_path"])
        block.global_attn.attn.partial_windows = True
        return block


class ParCBlocks(BlockRow):
    """ParC-Net's blocks: circular convolutions along whole rows and columns, resized to the map at hand.

    The first block of a row adds the position embeddings, as the first of a stage does in ParC-Net. `length` is that of
    the learned kernels and embeddings (the published variants have 32, 16 and 8 from P3 to P5).
    """

    options: ClassVar[Mapping[str, Option]] = {
        "length": _whole(16, 1024),
        "mlp_ratio": _whole(2, 64),
        "dropout": _share(0.1),
        "drop_path": _share(0.0),
    }

    def build_block(self, dim: int, index: int, options: Mapping[str, Any]) -> ParCBlock:
        if dim % 2:
            raise ValueError(f"{dim} output channels; they must be even: half of them go along each axis first.")
        return ParCBlock(
            dim,
            dim * options["mlp_ratio"],
            options["length"],
            position=index == 0,
            dropout=options["dropout"],
            drop_path=options["drop_path"],
        )


class ConvModBlocks(BlockRow):
    """Conv2Former's blocks: convolutional modulation and an MLP.

    `kernel_size` is that of the modulation (7 as in the smallest published variant, 11 in the others), `layer_scale`
    what each residual branch is multiplied by at the start.
    """

    options: ClassVar[Mapping[str, Option]] = {
        "kernel_size": _odd(7, 255),
        "mlp_ratio": _whole(4, 64),
        "layer_scale": _scale(LAYER_SCALE_FOR_SCRATCH),
        "drop_path": _share(0.0),
    }

    def build_block(self, dim: int, index: int, options: Mapping[str, Any]) -> Conv2FormerBlock:
        return Conv2FormerBlock(
            dim, options["kernel_size"], options["mlp_ratio"], options["layer_scale"], options["drop_path"]
        )


BLOCKS: Mapping[str, type[BlockRow]] = {
    "RepViTBlock": RepViTBlocks,
    "LGLBlock": LGLBlocks,
    "ParCBlock": ParCBlocks,
    "ConvModBlock": ConvModBlocks,
}
"""Name in model YAMLs -> what such a row builds."""

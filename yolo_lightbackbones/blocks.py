"""Rows of blocks in model YAMLs, for necks and for backbones written by hand; knows no family.

    - [-1, 3, RepViTBlock, [256]]               ->  RepViTBlocks(c1, 256 * width, 3 * depth)
    - [-1, 2, LGLBlock, [256, {sr_ratio: 4}]]   ->  LGLBlocks(c1, 256 * width, 2 * depth, {"sr_ratio": 4})

A row takes one map of any height and width, and keeps both: (B, in_channels, H, W) -> (B, out_channels, H, W).

A YAML names the block, and a block has one name everywhere: `RepViTBlock` is one block of the paper, as a class in
`backbones/repvit.py` and in a YAML. A row builds a sequence of `repeats` blocks, a `RepViTBlocks`. Ultralytics' table
of layers and checkpoints show that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from yolo_lightbackbones import layers, moved
from yolo_lightbackbones.messages import did_you_mean, flow, quoted
from yolo_lightbackbones.options import Option


class BlockRow(nn.Module):
    """A sequence of blocks of one family: (B, in_channels, H, W) -> (B, out_channels, H, W), for any height and width.

    If the number of channels changes, a 1x1 convolution with BatchNorm comes first. It has no activation: all four
    families change their width linearly (RepViT and ParC-Net by a 1x1 convolution with BatchNorm, the others by strided
    convolutions). For inference it folds into a single convolution.

    A family lists the options of its block, implements `build_block`, and lists the row in `Backbone.block_rows`.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, and of every block.
        repeats: number of blocks.
        options: name -> value; the defaults suit maps of any stage.

    Raises:
        ValueError: for an option that the block does not have, or a value that is not allowed.
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
        layers.init_for_scratch(self.blocks)  # there are no published weights for a row

    def build_block(self, dim: int, index: int, options: Mapping[str, Any]) -> nn.Module:
        """Build the block with this index in the row: (B, dim, H, W) -> the same."""
        raise NotImplementedError(f"{type(self).__name__} does not implement build_block().")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.project(x))
        return out

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, besides those of norms and biases; as `Backbone` has it."""
        return layers.no_weight_decay(self)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Check options of this block; return them with the defaults of the others.

        Raises:
            ValueError: for an unknown option, with the closest match, and for a value that is not allowed.
        """
        for name, value in options.items():
            if name not in cls.options:
                hint = did_you_mean(flow(name), cls.options)
                raise ValueError(f"unknown option {quoted(name)}.{hint} Allowed: {', '.join(cls.options)}.")
            cls.options[name].check(name, value)
        return {name: option.default for name, option in cls.options.items()} | dict(options)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Find rows that checkpoints from before 0.1.0 look up in this module."""
        return moved.find(__name__, name)

"""Layers that two or more families use, or rows of a model. They need torch, folding and recording, and no family.

Checkpoints store each class with the module that defines it, so moving a class needs an entry in `moved.py`.
"""

from yolo_lightbackbones.layers.channels import Channels
from yolo_lightbackbones.layers.circular import Axis, CircularConv, FixedConv
from yolo_lightbackbones.layers.conv_norm import ConvNorm
from yolo_lightbackbones.layers.drop_path import DropPath, drop_path_rates
from yolo_lightbackbones.layers.inverted_residual import InvertedResidual
from yolo_lightbackbones.layers.norms import BatchNorm2d, LayerNorm2d
from yolo_lightbackbones.layers.parameters import init_for_scratch, no_weight_decay
from yolo_lightbackbones.layers.parc import FoldedParCBranch, ParCBranch
from yolo_lightbackbones.layers.position import PositionEmbedding

__all__ = [
    "Axis",
    "BatchNorm2d",
    "Channels",
    "CircularConv",
    "ConvNorm",
    "DropPath",
    "FixedConv",
    "FoldedParCBranch",
    "InvertedResidual",
    "LayerNorm2d",
    "ParCBranch",
    "PositionEmbedding",
    "drop_path_rates",
    "init_for_scratch",
    "no_weight_decay",
]

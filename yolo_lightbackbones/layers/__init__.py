"""Layers that two or more families use, or rows of a model. They need torch, folding and recording, and no family.

Checkpoints store each class with the module that defines it, so moving a class needs an entry in `moved.py`.
"""

from yolo_lightbackbones.layers.channels import Channels
from yolo_lightbackbones.layers.checkpointing import checkpointed
from yolo_lightbackbones.layers.circular import Axis, CircularConv, FixedConv
from yolo_lightbackbones.layers.conv_norm import ConvNorm
from yolo_lightbackbones.layers.downsample import Downsample
from yolo_lightbackbones.layers.drop_path import DropPath, drop_path_rates
from yolo_lightbackbones.layers.feature_pyramid import (
    PYRAMID,
    PYRAMID_CHANNELS,
    PyramidLevel,
    SimpleFeaturePyramid,
    check_plain,
    pyramid_taps,
)
from yolo_lightbackbones.layers.inverted_residual import InvertedResidual
from yolo_lightbackbones.layers.layer_scale import LAYER_SCALE_FOR_SCRATCH, add_scaled
from yolo_lightbackbones.layers.norms import BatchNorm2d, LayerNorm2d
from yolo_lightbackbones.layers.parameters import init_for_scratch, no_weight_decay
from yolo_lightbackbones.layers.parc import (
    FoldedParCBranch,
    FoldedPositionAwareConv,
    ParCBranch,
    ParCConv,
    ParCConvNorm,
    PositionAwareConv,
)
from yolo_lightbackbones.layers.position import PositionEmbedding
from yolo_lightbackbones.layers.recompute import Chained, Layer, Product, Sum, run

__all__ = [
    "LAYER_SCALE_FOR_SCRATCH",
    "PYRAMID",
    "PYRAMID_CHANNELS",
    "Axis",
    "BatchNorm2d",
    "Chained",
    "Channels",
    "CircularConv",
    "ConvNorm",
    "Downsample",
    "DropPath",
    "FixedConv",
    "FoldedParCBranch",
    "FoldedPositionAwareConv",
    "InvertedResidual",
    "Layer",
    "LayerNorm2d",
    "ParCBranch",
    "ParCConv",
    "ParCConvNorm",
    "PositionAwareConv",
    "PositionEmbedding",
    "Product",
    "PyramidLevel",
    "SimpleFeaturePyramid",
    "Sum",
    "add_scaled",
    "check_plain",
    "checkpointed",
    "drop_path_rates",
    "init_for_scratch",
    "no_weight_decay",
    "pyramid_taps",
    "run",
]

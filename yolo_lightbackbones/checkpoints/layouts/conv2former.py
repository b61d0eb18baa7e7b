"""Names of Conv2Former's parameters in the authors' implementation (HVision-NKU/Conv2Former, commit 94fd1c4)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from yolo_lightbackbones.checkpoints.rules import Drop, Layout, Rename

_STEM = {"0": "conv1", "2": "norm1", "3": "conv2", "5": "norm2", "6": "conv3"}
"""Position in the published stem, an nn.Sequential with activations in between -> our name."""


def _sections(keys: Collection[str]) -> Mapping[str, str]:
    sections = {f"downsample_layers.0.{position}": f"stem.{name}" for position, name in _STEM.items()}
    for key in keys:
        if match := re.match(r"downsample_layers\.([1-9]\d*)\.", key):
            sections[f"downsample_layers.{match[1]}"] = f"stages.{match[1]}.downsample"
        elif match := re.match(r"stages\.(\d+)\.(\d+)\.", key):
            sections[f"stages.{match[1]}.{match[2]}"] = f"stages.{match[1]}.blocks.{match[2]}"
    return sections


OFFICIAL = Layout(
    "official",
    sections=_sections,
    rules=(
        Rename(
            r"(stages\.\d+\.downsample)\.0\.(\w+)",
            r"\1.norm.\2",
            example="stages.1.downsample.0.weight",
        ),
        Rename(
            r"(stages\.\d+\.downsample)\.1\.(\w+)",
            r"\1.conv.\2",
            example="stages.1.downsample.1.weight",
        ),
        Rename(
            r"(.+)\.layer_scale_([12])",
            r"\1.layer_scale\2",
            example="stages.0.blocks.0.layer_scale_1",
        ),
        Rename(
            r"(.+)\.attn\.att\.0\.(\w+)",
            r"\1.attn.query.\2",
            example="stages.0.blocks.0.attn.att.0.weight",
        ),
        Rename(
            r"(.+)\.attn\.att\.2\.(\w+)",
            r"\1.attn.depthwise.\2",
            example="stages.0.blocks.0.attn.att.2.weight",
        ),
        Rename(
            r"(.+)\.attn\.v\.(\w+)",
            r"\1.attn.value.\2",
            example="stages.0.blocks.0.attn.v.weight",
        ),
        Rename(
            r"(.+)\.mlp\.pos\.(\w+)",
            r"\1.mlp.depthwise.\2",
            example="stages.0.blocks.0.mlp.pos.weight",
        ),
        Drop(r"(?:head|pred)\..+", example="pred.weight"),
    ),
)

LAYOUTS = (OFFICIAL,)

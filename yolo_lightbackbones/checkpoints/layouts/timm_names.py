"""Names of the parameters of timm's models: timm's own, as in the files that it downloads or trains, and others'."""

from __future__ import annotations

from yolo_lightbackbones.checkpoints.layouts.efficientnet_lite import EFFICIENTNET_LITE
from yolo_lightbackbones.checkpoints.rules import Layout, Rename

LAYOUTS = (
    Layout("timm", (Rename(r"(.+)", r"body.\1", example="stages.0.blocks.0.conv_dw.weight"),)),
    EFFICIENTNET_LITE,
)

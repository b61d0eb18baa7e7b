"""Names of the parameters in the authors' files of weights, and which of ours they are."""

from __future__ import annotations

from yolo_lightbackbones.checkpoints.rules import Drop, Layout, Rename

LAYOUTS = (
    Layout(
        "authors",
        rules=(
            Rename(
                r"layer(\d)\.(\d+)\.dw\.(.+)", r"stages.\1.blocks.\2.depthwise.\3", example="layer0.0.dw.conv.weight"
            ),
            Rename(r"layer(\d)\.(\d+)\.pw\.(.+)", r"stages.\1.blocks.\2.pointwise.\3", example="layer3.0.pw.norm.bias"),
            Rename(r"down(\d)\.(.+)", r"stages.\1.downsample.\2", example="down1.conv.weight"),
            Drop(r"head\..+", example="head.weight"),
        ),
    ),
)

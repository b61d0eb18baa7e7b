"""Names of ParC-Net's parameters in the authors' implementation (hkzhang91/ParC-Net, commit f6780d0).

Their detector (SSD) has the classifier's names below `encoder.` and its own extra layers and heads beside it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace

from yolo_lightbackbones.checkpoints.rules import Drop, Layout, Rename


def _sections(keys: Collection[str]) -> Mapping[str, str]:
    sections = {"conv_1.block": "stem.conv", "layer_1": "stem.blocks"}
    for key in keys:
        if match := re.match(r"layer_([2-5])\.(\d+)\.", key):
            stage, position = int(match[1]) - 2, int(match[2])
            # The first module of each of these layers has stride 2.
            ours = f"stages.{stage}.blocks.{position - 1}" if position else f"stages.{stage}.downsample"
            sections[match[0].rstrip(".")] = ours
    return sections


OFFICIAL = Layout(
    "official",
    sections=_sections,
    rules=(
        # MobileNetV2 blocks.
        *(
            Rename(
                rf"((?:stem|stages)\..+)\.block\.{theirs}\.block\.(conv|norm)\.(\w+)",
                rf"\1.{ours}.\2.\3",
                example=f"stem.blocks.0.block.{theirs}.block.conv.weight",
            )
            for theirs, ours in (("exp_1x1", "expand"), ("conv_3x3", "depthwise"), ("red_1x1", "project"))
        ),
        # The ParC stage around its blocks.
        Rename(
            r"(.+)\.dim_adaptive\.0\.block\.(conv|norm)\.(\w+)",
            r"\1.local.\2.\3",
            example="stages.1.blocks.0.dim_adaptive.0.block.conv.weight",
        ),
        Rename(
            r"(.+)\.dim_adaptive\.1\.block\.conv\.weight",
            r"\1.pointwise.weight",
            example="stages.1.blocks.0.dim_adaptive.1.block.conv.weight",
        ),
        Rename(
            r"(.+)\.spatial_global_rep\.\d+\.(weight|bias|running_\w+|num_batches_tracked)",
            r"\1.norm.\2",
            example="stages.1.blocks.0.spatial_global_rep.2.running_mean",
        ),
        Rename(
            r"(.+)\.channel_adaptive\.block\.(conv|norm)\.(\w+)",
            r"\1.project.\2.\3",
            example="stages.1.blocks.0.channel_adaptive.block.conv.weight",
        ),
        Rename(
            r"(.+)\.local_global_fusion\.block\.(conv|norm)\.(\w+)",
            r"\1.merge.\2.\3",
            example="stages.1.blocks.0.local_global_fusion.block.conv.weight",
        ),
        # A ParC block: one half of the channels along H then W, the other along W then H.
        *(
            rule
            for branch, norm, first, second in (("branch_hw", 1, "H", "W"), ("branch_wh", 2, "W", "H"))
            for rule in (
                Rename(
                    rf"(.+)\.spatial_global_rep\.(\d+)\.pre_Norm_{norm}\.(\w+)",
                    rf"\1.blocks.\2.{branch}.norm.\3",
                    example=f"stages.1.blocks.0.spatial_global_rep.0.pre_Norm_{norm}.weight",
                ),
                *(
                    Rename(
                        rf"(.+)\.spatial_global_rep\.(\d+)\.meta_{theirs}_{order}_{axis}",
                        rf"\1.blocks.\2.{branch}.{ours}{order}.weight",
                        example=f"stages.1.blocks.0.spatial_global_rep.0.meta_{theirs}_{order}_{axis}",
                    )
                    for theirs, ours in (("pe", "pos"), ("kernel", "conv"))
                    for order, axis in ((1, first), (2, second))
                ),
            )
        ),
        *(
            Rename(
                rf"(.+)\.spatial_global_rep\.(\d+)\.{theirs}\.(\w+)",
                rf"\1.blocks.\2.{ours}.\3",
                example=f"stages.1.blocks.0.spatial_global_rep.0.{theirs.replace(chr(92), '')}.weight",
            )
            for theirs, ours in (
                (r"ffn\.0", "mlp.norm"),
                (r"ffn\.1", "mlp.fc1"),
                (r"ffn\.4", "mlp.fc2"),
                (r"ca\.fc\.0", "attn.fc1.conv"),
                (r"ca\.fc\.1", "attn.fc1.norm"),
                (r"ca\.fc\.3", "attn.fc2.conv"),
                (r"ca\.fc\.4", "attn.fc2.norm"),
            )
        ),
        # `residual` is a second name for the first module of layer_5.
        Drop(r"(?:residual|conv_1x1_exp|classifier)\..+", example="classifier.fc.weight"),
    ),
)

LAYOUTS = (OFFICIAL, replace(OFFICIAL, name="detector", prefix="encoder."))

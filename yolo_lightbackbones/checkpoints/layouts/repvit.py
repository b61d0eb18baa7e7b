"""Names of RepViT's parameters in the authors' implementation (THU-MIG/RepViT, commit 298f420) and in timm (1.0.31).

The authors have one flat list, `features`. A block with a pointwise convolution in its token mixer downsamples, so it
starts a stage. timm has stages, and counts the last block of each as part of the downsampling that follows it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from yolo_lightbackbones.checkpoints.rules import Drop, Layout, Rename

_CONV_NORM = (("c", "conv"), ("bn", "norm"))
"""The two parts of a convolution with BatchNorm: their name, our name."""


def _official_sections(keys: Collection[str]) -> Mapping[str, str]:
    numbers = sorted({int(match[1]) for key in keys if (match := re.match(r"features\.(\d+)\.", key))})
    sections = {"features.0.0": "stem.conv1", "features.0.2": "stem.conv2"}
    stage = block = 0
    for number in numbers:
        if number == 0:
            continue
        if f"features.{number}.token_mixer.2.c.weight" in keys:
            stage, block = stage + 1, 0
            sections[f"features.{number}"] = f"stages.{stage}.downsample"
        else:
            sections[f"features.{number}"] = f"stages.{stage}.blocks.{block}"
            block += 1
    return sections


def _timm_sections(keys: Collection[str]) -> Mapping[str, str]:
    blocks: dict[int, int] = {}
    for key in keys:
        if match := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", key):
            stage, block = int(match[1]), int(match[2])
            blocks[stage] = max(blocks.get(stage, 0), block + 1)
    return {
        f"stages.{stage + 1}.downsample.pre_block": f"stages.{stage}.blocks.{count}" for stage, count in blocks.items()
    }


OFFICIAL = Layout(
    "official",
    sections=_official_sections,
    rules=(
        *(
            rule
            for theirs, ours in _CONV_NORM
            for rule in (
                Rename(
                    rf"stem\.(conv[12])\.{theirs}\.(\w+)",
                    rf"stem.\1.{ours}.\2",
                    example=f"stem.conv1.{theirs}.weight",
                ),
                Rename(
                    rf"(.+\.blocks\.\d+)\.token_mixer\.0\.conv\.{theirs}\.(\w+)",
                    rf"\1.token_mixer.conv3x3.{ours}.\2",
                    example=f"stages.0.blocks.0.token_mixer.0.conv.{theirs}.weight",
                ),
                Rename(
                    rf"(.+\.downsample)\.token_mixer\.0\.{theirs}\.(\w+)",
                    rf"\1.depthwise.{ours}.\2",
                    example=f"stages.1.downsample.token_mixer.0.{theirs}.weight",
                ),
                Rename(
                    rf"(.+\.downsample)\.token_mixer\.2\.{theirs}\.(\w+)",
                    rf"\1.pointwise.{ours}.\2",
                    example=f"stages.1.downsample.token_mixer.2.{theirs}.weight",
                ),
                Rename(
                    rf"(.+)\.channel_mixer\.m\.0\.{theirs}\.(\w+)",
                    rf"\1.channel_mixer.conv1.{ours}.\2",
                    example=f"stages.0.blocks.0.channel_mixer.m.0.{theirs}.weight",
                ),
                Rename(
                    rf"(.+)\.channel_mixer\.m\.2\.{theirs}\.(\w+)",
                    rf"\1.channel_mixer.conv2.{ours}.\2",
                    example=f"stages.0.blocks.0.channel_mixer.m.2.{theirs}.weight",
                ),
            )
        ),
        Rename(
            r"(.+\.blocks\.\d+)\.token_mixer\.0\.conv1\.(\w+)",
            r"\1.token_mixer.conv1x1.\2",
            example="stages.0.blocks.0.token_mixer.0.conv1.weight",
        ),
        Rename(
            r"(.+\.blocks\.\d+)\.token_mixer\.0\.bn\.(\w+)",
            r"\1.token_mixer.norm.\2",
            example="stages.0.blocks.0.token_mixer.0.bn.running_var",
        ),
        Rename(
            r"(.+\.blocks\.\d+)\.token_mixer\.1\.(fc[12]\.\w+)",
            r"\1.squeeze.\2",
            example="stages.0.blocks.0.token_mixer.1.fc1.weight",
        ),
        Drop(r"classifier\..+", example="classifier.classifier_dist.l.weight"),
    ),
)

TIMM = Layout(
    "timm",
    blocks_behind_tap=1,
    sections=_timm_sections,
    rules=(
        *(
            rule
            for theirs, ours in _CONV_NORM
            for rule in (
                Rename(
                    rf"stem\.(conv[12])\.{theirs}\.(\w+)",
                    rf"stem.\1.{ours}.\2",
                    example=f"stem.conv1.{theirs}.weight",
                ),
                Rename(
                    rf"(.+\.blocks\.\d+)\.token_mixer\.conv\.{theirs}\.(\w+)",
                    rf"\1.token_mixer.conv3x3.{ours}.\2",
                    example=f"stages.0.blocks.0.token_mixer.conv.{theirs}.weight",
                ),
                Rename(
                    rf"(.+\.downsample)\.spatial_downsample\.{theirs}\.(\w+)",
                    rf"\1.depthwise.{ours}.\2",
                    example=f"stages.1.downsample.spatial_downsample.{theirs}.weight",
                ),
                Rename(
                    rf"(.+\.downsample)\.channel_downsample\.{theirs}\.(\w+)",
                    rf"\1.pointwise.{ours}.\2",
                    example=f"stages.1.downsample.channel_downsample.{theirs}.weight",
                ),
                Rename(
                    rf"(.+)\.(?:channel_mixer|ffn)\.(conv[12])\.{theirs}\.(\w+)",
                    rf"\1.channel_mixer.\2.{ours}.\3",
                    example=f"stages.1.downsample.ffn.conv1.{theirs}.weight",
                ),
            )
        ),
        Rename(
            r"(.+\.blocks\.\d+)\.token_mixer\.conv1\.(\w+)",
            r"\1.token_mixer.conv1x1.\2",
            example="stages.0.blocks.0.token_mixer.conv1.weight",
        ),
        Rename(
            r"(.+\.blocks\.\d+)\.token_mixer\.bn\.(\w+)",
            r"\1.token_mixer.norm.\2",
            example="stages.0.blocks.0.token_mixer.bn.running_var",
        ),
        Rename(
            r"(.+\.blocks\.\d+)\.se\.(fc[12]\.\w+)",
            r"\1.squeeze.\2",
            example="stages.0.blocks.0.se.fc1.weight",
        ),
        Drop(r"head\..+", example="head.head_dist.l.weight"),
    ),
)

LAYOUTS = (OFFICIAL, TIMM)

"""Series of timm's models that have YAMLs in `cfg/`, and the options that a row of timm's models needs.

A series has one model of timm for each scale letter, of about the size that the neck has at that letter. The YAMLs are
written from here; timm is needed when one of them is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yolo_lightbackbones import timm_catalogue
from yolo_lightbackbones.backbone import Backbone, Options

FAMILY = "Timm"
"""Module of their rows."""


@dataclass(frozen=True)
class Series:
    """Models of one paper.

    Args:
        title: their name in the paper.
        paper: its number on arXiv.
        letters: scale letter -> name in timm.
    """

    title: str
    paper: str
    letters: Mapping[str, str]


SERIES: Mapping[str, Series] = {
    "mobilenetv4": Series(
        "MobileNetV4",
        "2404.10518",
        {
            "n": "mobilenetv4_conv_small_050",
            "s": "mobilenetv4_conv_small",
            "m": "mobilenetv4_conv_medium",
            "l": "mobilenetv4_hybrid_medium",
            "x": "mobilenetv4_conv_large",
        },
    ),
    "mobilevit": Series("MobileViT", "2110.02178", {"n": "mobilevit_xxs", "s": "mobilevit_xs", "m": "mobilevit_s"}),
    "convnext": Series(
        "ConvNeXt",
        "2201.03545",
        {
            "n": "convnext_atto",
            "s": "convnext_pico",
            "m": "convnext_nano",
            "l": "convnext_tiny",
            "x": "convnext_small",
        },
    ),
    "swin": Series(
        "Swin",
        "2103.14030",
        {
            "n": "swin_tiny_patch4_window7_224",
            "s": "swin_small_patch4_window7_224",
            "m": "swin_base_patch4_window7_224",
            "l": "swin_large_patch4_window7_224",
        },
    ),
    "pvt_v2": Series("PVTv2", "2106.13797", dict(zip("nsmlx", (f"pvt_v2_b{size}" for size in range(5)), strict=True))),
    "efficientnet_lite": Series(
        "EfficientNet-Lite",
        "1905.11946",
        dict(zip("nsmlx", (f"tf_efficientnet_lite{size}" for size in range(5)), strict=True)),
    ),
    "fastvit": Series(
        "FastViT",
        "2303.14189",
        {"n": "fastvit_t8", "s": "fastvit_t12", "m": "fastvit_sa12", "l": "fastvit_sa24", "x": "fastvit_sa36"},
    ),
}
"""Name in the YAML's file name -> series."""


def needed_options(family: type[Backbone], variant: str) -> dict[str, Any]:
    """The options without which a row of this variant is refused, or offers one tap only; none for most.

    Raises:
        ValueError: what the variant itself refuses, if no options help.
    """
    tried: list[dict[str, Any]] = [{}]
    if family.is_open:
        tried.append({"imgsz": timm_catalogue.image_side(variant)})
    if "pyramid" in family.row_options:
        tried += [{"pyramid": "simple", **options} for options in tried]
    errors = []
    for options in tried:
        try:
            offered = family.offered_taps(variant, Options(**options))
        except ValueError as error:
            errors.append(error)
        else:
            if len(offered) > 1 or options == tried[-1]:
                return options
    raise errors[0]

"""Names of the ParC hybrids' parameters in published code: github.com/hkzhang91/ParC-Net, folder ParC_ConvNets.

ConvNeXt has the names of its authors (facebookresearch/ConvNeXt), ResNet-50 and MobileNetV2 those of torchvision. The
operator's two halves are called `gcc_H` and `gcc_W`, in ResNet-50 `parc_H` and `parc_W`. MobileNetV2's blocks with the
operator have the names `pw_expand`, `bn` and `pw_linear`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from yolo_lightbackbones.checkpoints.rules import Drop, Layout, Rename, Transform, linear_to_conv1x1

_BLOCK = r"(stages\.\d+\.(?:downsample|blocks\.\d+))"
_AXES = {"H": "height", "W": "width"}
_MOBILE_DEPTHS = (2, 3, 7, 4)
"""Blocks of MobileNetV2 per stage, without the one at half the image's side."""


def _operator(theirs: str, ours: str) -> Iterator[Rename]:
    """Rules for the operator's parameters in a block."""
    for axis, half in _AXES.items():
        given, place = rf"{_BLOCK}\.{theirs}_{axis}", rf"\1.{ours}.{half}"
        example = f"stages.2.blocks.6.{theirs}_{axis}"
        yield Rename(rf"{given}\.gcc_conv\.(weight|bias)", rf"{place}.conv.\2", example=f"{example}.gcc_conv.weight")
        yield Rename(rf"{given}\.pe", rf"{place}.pos.weight", example=f"{example}.pe")


def _convnext_sections(keys: Collection[str]) -> Mapping[str, str]:
    sections = {"downsample_layers.0.0": "stem.conv", "downsample_layers.0.1": "stem.norm"}
    for key in keys:
        if match := re.match(r"downsample_layers\.([1-9]\d*)\.([01])\.", key):
            sections[match[0].rstrip(".")] = f"stages.{match[1]}.downsample.{('norm', 'conv')[int(match[2])]}"
        elif match := re.match(r"stages\.(\d+)\.(\d+)\.", key):
            sections[match[0].rstrip(".")] = f"stages.{match[1]}.blocks.{match[2]}"
    return sections


def _resnet_sections(keys: Collection[str]) -> Mapping[str, str]:
    sections = {"conv1": "stem.conv.conv", "bn1": "stem.conv.norm"}
    for key in keys:
        if match := re.match(r"layer([1-4])\.(\d+)\.", key):
            sections[match[0].rstrip(".")] = _place(int(match[1]) - 1, int(match[2]))
    return sections


def _mobile_sections(keys: Collection[str]) -> Mapping[str, str]:
    sections = {}
    for key in keys:
        if match := re.match(r"features\.(\d{1,2})\.", key):
            number = int(match[1])
            block = _mobile_block(number)
            sections[f"features.{number}"] = block
            for layer, ours in _mobile_layers(number).items():
                sections[f"features.{number}.{layer}"] = f"{block}.{ours}"
    return sections


def _mobile_block(number: int) -> str:
    """Our name of `features.<number>`."""
    if number < 2:
        return "stem"
    index = number - 2
    for stage, depth in enumerate(_MOBILE_DEPTHS):
        if index < depth:
            return _place(stage, index)
        index -= depth
    return f"features.{number}"  # the 1x1 convolution before the classifier


def _mobile_layers(number: int) -> Mapping[str, str]:
    """Layers in `features.<number>`, and our names of them in their block; a block has the first or the second kind."""
    if number == 0:
        return {"0": "conv.conv", "1": "conv.norm"}
    middle = ["depthwise"] if number == 1 else ["expand", "depthwise"]
    places = [
        (f"conv.{place}.{part}", f"{ours}.{kind}")
        for place, ours in enumerate(middle)
        for part, kind in enumerate(("conv", "norm"))
    ]
    end = len(middle)
    return {
        **dict(places),
        f"conv.{end}": "project.conv",
        f"conv.{end + 1}": "project.norm",
        "pw_expand.0": "expand.conv",
        "pw_expand.1": "expand.norm",
        "bn": "depthwise.norm",
        "pw_linear.0": "project.conv",
        "pw_linear.1": "project.norm",
    }


def _place(stage: int, block: int) -> str:
    """Our name of a block; the first of a stage downsamples."""
    return f"stages.{stage}.blocks.{block - 1}" if block else f"stages.{stage}.downsample"


CONVNEXT = Layout(
    "ConvNeXt",
    sections=_convnext_sections,
    rules=(
        *_operator("gcc", "token_mixer"),
        Rename(rf"{_BLOCK}\.dwconv\.(\w+)", r"\1.token_mixer.\2", example="stages.0.blocks.0.dwconv.weight"),
        Rename(rf"{_BLOCK}\.pwconv([12])\.(\w+)", r"\1.fc\2.\3", example="stages.0.blocks.0.pwconv1.bias"),
        Rename(rf"{_BLOCK}\.gamma", r"\1.layer_scale", example="stages.0.blocks.0.gamma"),
        Transform(rf"{_BLOCK}\.pwconv[12]\.weight", linear_to_conv1x1, example="stages.0.blocks.0.pwconv1.weight"),
        Drop(r"(?:norm|head)\..+", example="head.weight"),
    ),
)

RESNET = Layout(
    "torchvision ResNet",
    sections=_resnet_sections,
    rules=(
        *_operator("parc", "conv2.conv"),
        Rename(rf"{_BLOCK}\.conv([123])\.weight", r"\1.conv\2.conv.weight", example="stages.0.blocks.0.conv1.weight"),
        Rename(rf"{_BLOCK}\.bn([123])\.(\w+)", r"\1.conv\2.norm.\3", example="stages.0.blocks.0.bn3.bias"),
        Rename(
            rf"{_BLOCK}\.downsample\.0\.(\w+)",
            r"\1.shortcut.conv.\2",
            example="stages.1.blocks.0.downsample.0.weight",
        ),
        Rename(
            rf"{_BLOCK}\.downsample\.1\.(\w+)", r"\1.shortcut.norm.\2", example="stages.1.blocks.0.downsample.1.bias"
        ),
        Drop(r"fc\..+", example="fc.weight"),
    ),
)

MOBILENETV2 = Layout(
    "MobileNetV2",
    sections=_mobile_sections,
    rules=(
        *_operator("gcc", "depthwise.conv"),
        Drop(r"(?:features\.18|classifier)\..+", example="classifier.1.weight"),
    ),
)

LAYOUTS = (CONVNEXT, RESNET, MOBILENETV2)

"""Names of the ParC hybrids' parameters in published code: those of their base models, and of the operator.

ConvNeXt has the names of its authors (facebookresearch/ConvNeXt), ResNet-50 those of torchvision. A MobileNetV2 is read
by the order of its convolutions and norms within a block, which torchvision and its other implementations share.

The operator's parameters (hkzhang91/ParC-Net, folder ParC_ConvNets) are known by words in their names, separated by
dots and underscores: `H` or `W` for the half of the channels; `pe` for the position embedding, `bias` for the bias;
what is neither is the kernel. This is inferred: nobody has published a list of the names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from yolo_lightbackbones.checkpoints.rules import Drop, Layout, Rename, Transform, linear_to_conv1x1

_BLOCK = r"(stages\.\d+\.(?:downsample|blocks\.\d+))"
_AXES = {"H": "height", "W": "width"}
_MOBILE_DEPTHS = (2, 3, 7, 4)
"""Blocks of MobileNetV2 per stage, without the one at half the image's side."""


def _has(word: str) -> str:
    """A pattern that looks ahead for a word between dots, underscores and the ends of a name."""
    return rf"(?=(?:.*[._])?{word}(?:[._]|$))"


def _has_not(word: str) -> str:
    return _has(word).replace("(?=", "(?!", 1)


def _operator(ours: str) -> Iterator[Rename]:
    """Rules for the operator's parameters, which is called `ours` within a block."""
    for axis, half in _AXES.items():
        for pattern, name, theirs in (
            (_has("pe"), "pos.weight", "pe"),
            (_has_not("pe") + _has("bias"), "conv.bias", "bias"),
            (_has_not("pe") + _has_not("bias"), "conv.weight", "weight"),
        ):
            yield Rename(
                rf"{_BLOCK}\.{_has(axis)}{pattern}.+",
                rf"\1.{ours}.{half}.{name}",
                example=f"stages.2.blocks.6.conv_{axis}.{theirs}",
            )


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
    blocks: dict[int, list[str]] = {}
    for key in keys:
        if match := re.match(r"features\.(\d{1,3})\.", key):
            blocks.setdefault(int(match[1]), []).append(key)
    sections: dict[str, str] = {}
    for number, inside in blocks.items():
        block, parts = _mobile_block(number)
        sections[f"features.{number}"] = block
        layers = {key.rpartition(".")[0] for key in inside if not re.match(_has("[HW]"), key)}
        norms = {layer for layer in layers if f"{layer}.running_mean" in keys}
        convs = sorted(layers - norms, key=_naturally)
        if len(convs) == 2 and len(parts) == 3:  # the third is the operator
            sections |= {convs[0]: f"{block}.{parts[0]}.conv", convs[1]: f"{block}.{parts[2]}.conv"}
        else:
            sections |= {conv: f"{block}.{part}.conv" for conv, part in zip(convs, parts, strict=False)}
        in_order = sorted(norms, key=_naturally)
        sections |= {norm: f"{block}.{part}.norm" for norm, part in zip(in_order, parts, strict=False)}
    return sections


def _mobile_block(number: int) -> tuple[str, tuple[str, ...]]:
    """Our name of `features.<number>`, and of its convolutions in order."""
    if number < 2:
        return "stem", (("conv",), ("depthwise", "project"))[number]
    index = number - 2
    for stage, depth in enumerate(_MOBILE_DEPTHS):
        if index < depth:
            return _place(stage, index), ("expand", "depthwise", "project")
        index -= depth
    return f"features.{number}", ()  # the 1x1 convolution before the classifier, in torchvision


def _place(stage: int, block: int) -> str:
    """Our name of a block; the first of a stage downsamples."""
    return f"stages.{stage}.blocks.{block - 1}" if block else f"stages.{stage}.downsample"


def _naturally(name: str) -> list[tuple[bool, int, str]]:
    """A key to sort names by, with numbers in the order of their values."""
    return [(part.isdigit(), int(part[:9]) if part.isdigit() else 0, part) for part in name.split(".")]


CONVNEXT = Layout(
    "ConvNeXt",
    sections=_convnext_sections,
    rules=(
        *_operator("token_mixer"),
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
        *_operator("conv2.conv"),
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
        *_operator("depthwise.conv"),
        Drop(r"(?:features\.18|conv|classifier)\..+", example="classifier.1.weight"),
    ),
)

LAYOUTS = (CONVNEXT, RESNET, MOBILENETV2)

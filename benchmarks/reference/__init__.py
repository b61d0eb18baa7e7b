"""Plain textbook forms of the four families, which `benchmarks/speed.py` compares ours with.

Each is written from the equations of its paper, for reading and not for speed. Submodules have the names of ours, so
that the weights can be taken over. None needs an image size, and all take sizes that are multiples of 32.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from yolo_lightbackbones.backbone import Backbone

FAMILIES = ("edgevit", "parcnet", "repvit", "conv2former")


class Reference(nn.Module):
    """A stem and stages: image (B, 3, H, W) -> the output of every stage, (B, C, H / 2^(i+2), W / 2^(i+2))."""

    def __init__(self, stem: nn.Module, stages: Iterable[nn.Module]) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class Stage(nn.Sequential):
    """Optional downsampling, then blocks."""

    def __init__(self, blocks: Iterable[nn.Module], downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.downsample = nn.Identity() if downsample is None else downsample
        self.blocks = nn.Sequential(*blocks)


class ConvNorm(nn.Sequential):
    """Convolution without bias, then BatchNorm."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)


def twin(backbone: Backbone, variant: str) -> Reference:
    """The reference of a variant such as `edgevit_xxs`, with the weights of `backbone`, in its dtype and mode.

    Raises:
        ValueError: for a family that has no reference, and for a backbone that has other weights or further parts.
    """
    family, _, short = variant.partition("_")
    if family not in FAMILIES:
        raise ValueError(f"{variant} has no reference; the families that have one are {', '.join(FAMILIES)}.")
    module = importlib.import_module(f"{__name__}.{family}")
    reference = cast(Reference, module.build(type(backbone).variants[short]))
    reference.to(next(backbone.parameters()).dtype).train(backbone.training)
    take_over(reference, backbone)
    return reference


def take_over(reference: nn.Module, backbone: nn.Module) -> None:
    """Copy all weights by name; a 1x1 convolution of one is a linear layer of the other.

    Raises:
        ValueError: if one has a tensor that the other has not, or in another shape.
    """
    own, given = reference.state_dict(), backbone.state_dict()
    strange = sorted(own.keys() ^ given.keys())
    strange += [
        name
        for name in own.keys() & given.keys()
        if [*own[name].shape, 1, 1][:4] != [*given[name].shape, 1, 1][:4] and own[name].shape != given[name].shape
    ]
    if strange:
        raise ValueError(f"The backbone and its reference differ in {len(strange)} tensors, the first is {strange[0]}.")
    reference.load_state_dict({name: given[name].reshape(own[name].shape) for name in own})


def folded(reference: Reference) -> Reference:
    """A copy for inference, in which every block that its authors fold is folded (`fuse`)."""
    copied = copy.deepcopy(reference).eval().requires_grad_(False)
    _fuse_children(copied)
    return copied


def _fuse_children(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        _fuse_children(child)
        if callable(fuse := getattr(child, "fuse", None)):
            setattr(module, name, fuse())

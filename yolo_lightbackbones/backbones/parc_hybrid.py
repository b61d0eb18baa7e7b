"""ParC hybrids: ConvNeXt, ResNet-50 and MobileNetV2 whose late blocks convolve circularly along whole rows and columns.

Paper: Zhang et al., "ParC-Net: Position Aware Circular Convolution with Merits from ConvNets and Transformer",
ECCV 2022, arXiv 2203.03952. Published code: hkzhang91/ParC-Net, folder ParC_ConvNets, which has no licence; this code
is written from the paper and the papers of the base models (ConvNeXt, arXiv 2201.03545; ResNet, 1512.03385;
MobileNetV2, 1801.04381).

The operator: x + position embedding, then a circular convolution with a bias; the first half of the channels along H,
the second along W. It is depthwise, except in ResNet-50, where it is dense within each half.

Deviations, none of which changes an output at 224 x 224, the one size of the published code:
- any height and width that are multiples of 32: kernels and position embeddings are resized to the map, as in ParC-Net;
- ConvNeXt's linear layers are 1x1 convolutions on (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from yolo_lightbackbones import fusion
from yolo_lightbackbones.card import Card
from yolo_lightbackbones.input_norm import IMAGENET
from yolo_lightbackbones.layers import (
    LAYER_SCALE_FOR_SCRATCH,
    CircularConv,
    ConvNorm,
    Downsample,
    DropPath,
    InvertedResidual,
    LayerNorm2d,
    ParCConv,
    ParCConvNorm,
    add_scaled,
    drop_path_rates,
    run,
)
from yolo_lightbackbones.options import PyramidMode, TapNormMode
from yolo_lightbackbones.stages import Stage, StagedBackbone

TRAINED_SIZE = 224
"""Side of the images that the published models are built for; learned kernels are as long as the maps of these."""


# --- ConvNeXt ---------------------------------------------------------------------------------------------------------


class PatchStem(nn.Module):
    """4x4 convolution of stride 4, then LayerNorm: (B, C, H, W) -> (B, dim, H / 4, W / 4)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, dim, 4, stride=4)
        self.norm = LayerNorm2d(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out


class ConvNeXtBlock(fusion.Fusible):
    """Spatial layer, norm and MLP as one residual behind a layer scale: (B, dim, H, W) -> the same.

    Args:
        dim: channels.
        token_mixer: the spatial layer; None: a depthwise 7x7 convolution.
        drop_path: rate of stochastic depth.
        mlp_ratio: channels inside the MLP, as a multiple of `dim`.
        layer_scale: initial factor of the branch.
    """

    no_weight_decay_names = ("layer_scale",)
    layer_scale: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        token_mixer: nn.Module | None = None,
        drop_path: float = 0.0,
        mlp_ratio: int = 4,
        layer_scale: float = 1e-6,
    ) -> None:
        super().__init__()
        self.token_mixer = nn.Conv2d(dim, dim, 7, padding=3, groups=dim) if token_mixer is None else token_mixer
        self.norm = LayerNorm2d(dim, eps=1e-6)
        self.fc1 = nn.Conv2d(dim, dim * mlp_ratio, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(dim * mlp_ratio, dim, 1)
        self.layer_scale = nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        branch = run(x, self.token_mixer, self.norm, self.fc1, self.act, self.fc2)
        return add_scaled(x, self.drop_path(branch), self.layer_scale)

    def init_for_scratch(self) -> None:
        assert self.layer_scale is not None
        nn.init.constant_(self.layer_scale, LAYER_SCALE_FOR_SCRATCH)

    def fold(self) -> ConvNeXtBlock:
        assert self.layer_scale is not None
        self.fc1 = fusion.scale_inputs(self.fc1, *fusion.take_affine(self.norm))
        self.fc2 = fusion.scale_outputs(self.fc2, self.layer_scale)
        self.layer_scale = None
        return self


# --- ResNet -----------------------------------------------------------------------------------------------------------


class ResNetStem(nn.Module):
    """7x7 convolution of stride 2 and max pooling of stride 2: (B, C, H, W) -> (B, dim, H / 4, W / 4)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv = ConvNorm(in_channels, dim, 7, stride=2)
        self.act = nn.ReLU()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pool(run(x, self.conv, self.act))
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution as a residual: (B, in_channels, H, W) -> (B, dim, H / stride, W / stride).

    Args:
        in_channels: channels of the input.
        dim: channels of the output, four times those inside.
        stride: stride of the 3x3 convolution.
        drop_path: rate of stochastic depth.
        middle: layer in the place of the 3x3 convolution, with its norm.
    """

    def __init__(
        self, in_channels: int, dim: int, stride: int = 1, drop_path: float = 0.0, middle: nn.Module | None = None
    ) -> None:
        super().__init__()
        hidden = dim // 4
        self.conv1 = ConvNorm(in_channels, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, stride) if middle is None else middle
        self.conv3 = ConvNorm(hidden, dim)
        same = stride == 1 and in_channels == dim
        self.shortcut = nn.Identity() if same else ConvNorm(in_channels, dim, stride=stride)
        self.act = nn.ReLU()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        branch = run(x, self.conv1, self.act, self.conv2, self.act, self.conv3)
        out: Tensor = self.act(self.shortcut(x) + self.drop_path(branch))
        return out


# --- MobileNetV2 ------------------------------------------------------------------------------------------------------


class MobileStem(nn.Module):
    """Convolution of stride 2, then the first block, which does not expand.

    (B, C, H, W) -> (B, dims[1], H / 2, W / 2).
    """

    def __init__(self, in_channels: int, dims: tuple[int, int]) -> None:
        super().__init__()
        self.conv = ConvNorm(in_channels, dims[0], 3, stride=2)
        self.depthwise = ConvNorm(dims[0], dims[0], 3, groups=dims[0])
        self.project = ConvNorm(*dims)
        self.act = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        return run(x, self.conv, self.act, self.depthwise, self.act, self.project)


# --- configs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HybridConfig:
    """Config of a hybrid; each of the three base models has its own subclass, which builds its parts.

    Args:
        dims: channels of the stages' outputs.
        depths: blocks per stage, including a first one that downsamples.
        parc_from: per stage, the index of the first block with the operator; None if there is none.
        drop_path_rate: stochastic depth rate of the last block.
    """

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    parc_from: tuple[int | None, ...]
    drop_path_rate: float = 0.0

    tap_norm: ClassVar[TapNormMode] = "none"

    def __post_init__(self) -> None:
        if not len(self.dims) == len(self.depths) == len(self.parc_from):
            raise ValueError(f"dims, depths and parc_from need one entry per stage each: {self}.")

    def build_stem(self, in_channels: int) -> nn.Module:
        raise NotImplementedError(f"{type(self).__name__} does not implement build_stem().")

    def build_stage(self, stage: int, rates: Sequence[float]) -> tuple[nn.Module | None, list[nn.Module]]:
        """Build the downsampling and the blocks of a stage, counted from 0; `rates` are those of stochastic depth."""
        raise NotImplementedError(f"{type(self).__name__} does not implement build_stage().")

    def has_operator(self, stage: int, block: int) -> bool:
        first = self.parc_from[stage]
        return first is not None and block >= first


class ConvNeXtConfig(HybridConfig):
    """ConvNeXt. Its stages end with sums that nothing normalises."""

    tap_norm = "batch"

    def build_stem(self, in_channels: int) -> PatchStem:
        return PatchStem(in_channels, self.dims[0])

    def build_stage(self, stage: int, rates: Sequence[float]) -> tuple[nn.Module | None, list[nn.Module]]:
        dim = self.dims[stage]
        downsample = Downsample(self.dims[stage - 1], dim) if stage else None
        blocks: list[nn.Module] = []
        for i, rate in enumerate(rates):
            operator = ParCConv(dim, _length(stage), position=True) if self.has_operator(stage, i) else None
            blocks.append(ConvNeXtBlock(dim, operator, rate))
        return downsample, blocks


class ResNetConfig(HybridConfig):
    """ResNet with bottlenecks; `dims` are four times the channels inside a bottleneck."""

    def build_stem(self, in_channels: int) -> ResNetStem:
        return ResNetStem(in_channels, self.dims[0] // 4)

    def build_stage(self, stage: int, rates: Sequence[float]) -> tuple[nn.Module | None, list[nn.Module]]:
        dim = self.dims[stage]
        in_channels, stride = (self.dims[stage - 1], 2) if stage else (dim // 4, 1)
        blocks: list[nn.Module] = [Bottleneck(in_channels, dim, stride, rates[0])]
        for i, rate in enumerate(rates[1:], start=1):
            operator = None
            if self.has_operator(stage, i):
                operator = ParCConvNorm(dim // 4, _length(stage), position=True, dense=True)
            blocks.append(Bottleneck(dim, dim, 1, rate, operator))
        return blocks[0], blocks[1:]


@dataclass(frozen=True)
class MobileNetV2Config(HybridConfig):
    """MobileNetV2.

    Args:
        group_dims: per stage, the channels of each group of blocks; those of the last group are in `dims`.
        group_depths: per stage, the blocks of each group.
        stem_dims: channels of the first convolution, and of the block behind it.
        expansion: channels inside a block, as a multiple of its input.

    `parc_from` counts in each group anew; groups with fewer blocks have no operator.
    """

    group_dims: tuple[tuple[int, ...], ...] = ()
    group_depths: tuple[tuple[int, ...], ...] = ()
    stem_dims: tuple[int, int] = (32, 16)
    expansion: int = 6

    def build_stem(self, in_channels: int) -> MobileStem:
        return MobileStem(in_channels, self.stem_dims)

    def build_stage(self, stage: int, rates: Sequence[float]) -> tuple[nn.Module | None, list[nn.Module]]:
        in_channels = self.dims[stage - 1] if stage else self.stem_dims[1]
        blocks: list[nn.Module] = []
        for dim, depth in zip(self.group_dims[stage], self.group_depths[stage], strict=True):
            for i in range(depth):
                operator = None
                if self.has_operator(stage, i):
                    position = i == self.parc_from[stage]
                    operator = ParCConvNorm(in_channels * self.expansion, _length(stage), position=position)
                stride = 1 if blocks else 2
                rate = rates[len(blocks)]
                block = InvertedResidual(in_channels, dim, stride, self.expansion, rate, act=nn.ReLU6, middle=operator)
                blocks.append(block)
                in_channels = dim
        return blocks[0], blocks[1:]


def _length(stage: int) -> int:
    """Length of the learned kernels of a stage, counted from 0: 14 in the third, 7 in the fourth."""
    return TRAINED_SIZE // (4 << stage)


VARIANTS: dict[str, HybridConfig] = {
    "mobilenetv2": MobileNetV2Config(
        dims=(24, 32, 96, 320),
        depths=(2, 3, 7, 4),
        parc_from=(None, None, 2, 2),
        group_dims=((24,), (32,), (64, 96), (160, 320)),
        group_depths=((2,), (3,), (4, 3), (3, 1)),
    ),
    "convnext_xt": ConvNeXtConfig(dims=(48, 96, 192, 384), depths=(3, 3, 9, 3), parc_from=(None, None, 6, 2)),
    "resnet50": ResNetConfig(dims=(256, 512, 1024, 2048), depths=(3, 4, 6, 3), parc_from=(None, None, 3, 2)),
}


class ParCHybrid(StagedBackbone):
    """ParC-MobileNetV2, ParC-ConvNeXt-XT, ParC-ResNet50.

    Image (B, 3, H, W) -> taps P2..P5, each (B, dims[i], H / 2^(i+2), W / 2^(i+2)).
    """

    family = "parc"
    variants = VARIANTS
    input_convention = IMAGENET
    row_init = "scratch"

    @classmethod
    def default_tap_norm(cls, variant: str, pyramid: PyramidMode = "none") -> TapNormMode:
        return VARIANTS[cls.resolve_variant(variant)].tap_norm

    def init_as_published(self) -> None:
        """Draw the weights as the authors of the base models do."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | CircularConv):
                if isinstance(self.stem, PatchStem):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                else:
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def build_stem(self, config: HybridConfig, in_channels: int) -> nn.Module:
        return config.build_stem(in_channels)

    def build_stages(self, config: HybridConfig, drop_path_rate: float) -> Iterator[Stage]:
        for stage, rates in enumerate(drop_path_rates(drop_path_rate, config.depths)):
            downsample, blocks = config.build_stage(stage, rates)
            yield Stage(blocks, channels=config.dims[stage], reduction=4 << stage, downsample=downsample)


_SOURCE = "arXiv 2203.03952"

ParCHybrid.card = Card(
    title="ParC",
    paper="2203.03952",
    repository="github.com/hkzhang91/ParC-Net",
    licence="no licence",
    letters={"n": "mobilenetv2", "s": "convnext_xt", "m": "resnet50"},
    weights=dict.fromkeys(VARIANTS, "none listed"),
    by_hand="No weights of the ParC hybrids are listed that a program could download. Give the path of a file.",
    layouts="yolo_lightbackbones.checkpoints.layouts.parc_hybrid",
)

"""ParC-Net: a light CNN whose global blocks convolve circularly along whole rows and columns.

Paper: Zhang et al., "ParC-Net: Position Aware Circular Convolution with Merits from ConvNets and Transformer",
ECCV 2022, arXiv 2203.03952. Checked against outputs of the authors' implementation (hkzhang91/ParC-Net, commit
f6780d0). That code has no licence; this code is written from the paper. Images are BGR in 0..1, without mean and std.

Deviations, none of which changes an output at the square sizes that the published code takes:
- any height and width that are multiples of 32: kernels and position embeddings are resized separately to the height
  and the width of the map;
- a circular convolution is a matrix product with the kernel's circulant matrix instead of a depthwise convolution of
  the repeated map: forward and backward are 1.1 to 8 times faster (2 CPU cores, maps of 20x20 to 80x80);
- the two norms of channel attention use their running statistics in training with a single image, because each channel
  is then a single number, without a variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_lightbackbones import fusion, moved
from yolo_lightbackbones.blocks import BlockRow
from yolo_lightbackbones.card import Card, Figures
from yolo_lightbackbones.input_norm import InputConvention
from yolo_lightbackbones.layers import (
    BatchNorm2d,
    Chained,
    ConvNorm,
    DropPath,
    InvertedResidual,
    Layer,
    ParCBranch,
    PositionEmbedding,
    drop_path_rates,
    run,
)
from yolo_lightbackbones.options import Option, share, whole
from yolo_lightbackbones.stages import Stage, StagedBackbone


@dataclass(frozen=True)
class ParCNetConfig:
    """Config of a ParC-Net (paper, section 3.3).

    `conv_dims` and `conv_depths` have one entry per convolutional stage. The first of these stages works at half the
    image size and is part of the stem. The other tuples have one entry per global stage: `dims` (channels of the
    stage), `parc_dims` and `mlp_dims` (channels inside its global blocks), `depths`, and `lengths` (of the learned
    kernels and position embeddings, before they are resized to the map).
    """

    stem_dim: int
    stem_kernel: int
    conv_dims: tuple[int, ...]
    dims: tuple[int, ...]
    parc_dims: tuple[int, ...]
    mlp_dims: tuple[int, ...]
    depths: tuple[int, ...]
    conv_depths: tuple[int, ...] = (1, 3)
    lengths: tuple[int, ...] = (32, 16, 8)
    expansion: int = 4
    dropout: float = 0.1
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        if len(self.conv_dims) != len(self.conv_depths):
            raise ValueError(f"conv_dims and conv_depths need one entry per convolutional stage each: {self}.")
        per_stage = (self.dims, self.parc_dims, self.mlp_dims, self.depths, self.lengths)
        if len({len(entries) for entries in per_stage}) != 1:
            raise ValueError(
                f"dims, parc_dims, mlp_dims, depths and lengths need one entry per global stage each: {self}."
            )
        if any(dim % 2 for dim in self.parc_dims):
            raise ValueError(
                f"parc_dims {self.parc_dims} must be even: each half of the channels has its own order of axes."
            )


VARIANTS = {
    "xs": ParCNetConfig(
        stem_dim=16,
        stem_kernel=3,
        conv_dims=(32, 64),
        dims=(96, 128, 160),
        parc_dims=(96, 128, 160),
        mlp_dims=(192, 256, 320),
        depths=(2, 3, 2),
    ),
    "s": ParCNetConfig(
        stem_dim=16,
        stem_kernel=3,
        conv_dims=(32, 64),
        dims=(96, 128, 160),
        parc_dims=(192, 256, 320),
        mlp_dims=(384, 512, 640),
        depths=(2, 4, 3),
    ),
    "h": ParCNetConfig(
        stem_dim=48,
        stem_kernel=5,
        conv_dims=(96, 144),
        dims=(216, 288, 432),
        parc_dims=(324, 432, 432),
        mlp_dims=(648, 864, 864),
        depths=(3, 9, 3),
    ),
}


class Stem(nn.Module):
    """Convolution of stride 2, then blocks of stride 1: (B, C, H, W) -> (B, dim, H / 2, W / 2)."""

    def __init__(self, in_channels: int, stem_dim: int, kernel_size: int, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.conv = ConvNorm(in_channels, stem_dim, kernel_size, stride=2)
        self.act = nn.SiLU()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(run(x, self.conv, self.act))
        return out


class ChannelAttention(nn.Module):
    """Multiplies channels by gates computed from their means (paper, section 3.2): (B, dim, H, W) -> the same."""

    def __init__(self, dim: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(dim // reduction, 1)
        self.fc1 = ConvNorm(dim, hidden)
        self.act = nn.Hardswish()
        self.fc2 = ConvNorm(hidden, dim)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        weights = x.mean((2, 3), keepdim=True)  # (B, dim, 1, 1)
        out: Tensor = x * self.gate(_on_pooled(self.fc2, self.act(_on_pooled(self.fc1, weights))))
        return out


def _on_pooled(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer to pooled maps (B, C, 1, 1); in training with one image, its norm uses its running statistics.

    A SyncBatchNorm in a process group does not need this, because it sees the images of all processes.
    """
    norm: nn.Module | None = getattr(layer, "norm", None)
    asks_others = isinstance(norm, nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized()
    if (
        isinstance(layer, ConvNorm)
        and isinstance(norm, nn.modules.batchnorm._BatchNorm)
        and norm.training
        and not asks_others
        and x.shape[0] == 1  # checked last: in a recording the result becomes a constant
    ):
        x = layer.conv(x)
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    out: Tensor = layer(x)
    return out


class Mlp(Chained, fusion.Fusible):
    """MLP of norm, 1x1 convolution, Hardswish, 1x1 convolution, dropout: (B, dim, H, W) -> the same."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm: nn.Module = BatchNorm2d(dim)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = nn.Hardswish()
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.dropout = nn.Dropout(dropout)

    def layers(self) -> tuple[Layer, ...]:
        return self.norm, self.fc1, self.act, self.fc2, self.dropout

    def fold(self) -> Mlp:
        self.fc1 = fusion.fold_norm_before(self.fc1, self.norm)
        self.norm = nn.Identity()
        return self


class ParCBlock(nn.Module):
    """Two position aware circular convolutions on one half of the channels each, then an MLP with channel attention.

    It has the structure of a MetaFormer block (paper, section 3.2). (B, dim, H, W) -> the same.
    """

    def __init__(
        self, dim: int, mlp_dim: int, length: int, *, position: bool, dropout: float = 0.1, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.branch_hw = ParCBranch(dim // 2, length, 2, position, drop_path)
        self.branch_wh = ParCBranch(dim // 2, length, 3, position, drop_path)
        self.mlp = Mlp(dim, mlp_dim, dropout)
        self.attn = ChannelAttention(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        x = torch.cat((self.branch_hw(first), self.branch_wh(second)), 1)
        x = x + self.drop_path(self.attn(self.mlp(x)))
        return x


class LocalGlobal(fusion.Fusible):
    """Local features, then global blocks, merged with the input (paper, figure 2): (B, dim, H, W) -> the same."""

    def __init__(self, dim: int, parc_dim: int, blocks: list[nn.Module]) -> None:
        super().__init__()
        groups = math.gcd(dim, parc_dim)
        self.local = ConvNorm(dim, parc_dim, 3, groups=groups)
        self.pointwise = nn.Conv2d(parc_dim, parc_dim, 1, bias=False)
        self.blocks = nn.Sequential(*blocks)
        self.norm: nn.Module = BatchNorm2d(parc_dim)
        self.project: nn.Module = ConvNorm(parc_dim, dim, groups=groups)
        self.merge = ConvNorm(2 * dim, dim, 3)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        features = self.blocks(run(x, self.local, self.act, self.pointwise))
        features = run(features, self.norm, self.project, self.act)
        return run(torch.cat((features, x), 1), self.merge, self.act)

    def fold(self) -> LocalGlobal:
        assert isinstance(self.project, nn.Conv2d), "children fold first"
        self.project = fusion.fold_norm_before(self.project, self.norm)
        self.norm = nn.Identity()
        return self


class ParCBlocks(BlockRow):
    """A row of ParC-Net's blocks: circular convolutions along whole rows and columns, with kernels resized to the map.

    The first block of a row adds the position embeddings, like the first block of a stage in ParC-Net. `length` is that
    of the learned kernels and embeddings (the published variants have 32, 16 and 8 from P3 to P5).
    """

    options: ClassVar[Mapping[str, Option]] = {
        "length": whole(16, 1024),
        "mlp_ratio": whole(2, 64),
        "dropout": share(0.1),
        "drop_path": share(0.0),
    }

    def build_block(self, dim: int, index: int, options: Mapping[str, Any]) -> ParCBlock:
        if dim % 2:
            raise ValueError(f"{dim} output channels; they must be even: each half has its own order of axes.")
        return ParCBlock(
            dim,
            dim * options["mlp_ratio"],
            options["length"],
            position=index == 0,
            dropout=options["dropout"],
            drop_path=options["drop_path"],
        )


class ParCNet(StagedBackbone):
    """ParC-Net XS, S, H: image (B, 3, H, W) -> taps P2..P5, each (B, channels, H / 2^(i+2), W / 2^(i+2)).

    P2 has the channels of the last convolutional stage, P3..P5 have `dims`.
    """

    family = "parcnet"
    variants = VARIANTS
    block_rows = {"ParCBlock": ParCBlocks}
    input_convention = InputConvention(bgr=True)
    row_init = "scratch"

    def init_as_published(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, PositionEmbedding):
                nn.init.normal_(module.weight)

    def build_stem(self, config: ParCNetConfig, in_channels: int) -> Stem:
        depth, dim, expansion = config.conv_depths[0], config.conv_dims[0], config.expansion
        widths = [config.stem_dim, *[dim] * depth]
        blocks: list[nn.Module] = [InvertedResidual(widths[i], dim, 1, expansion) for i in range(depth)]
        return Stem(in_channels, config.stem_dim, config.stem_kernel, blocks)

    def build_stages(self, config: ParCNetConfig, drop_path_rate: float) -> Iterator[Stage]:
        rates = drop_path_rates(drop_path_rate, (*config.conv_depths[1:], *config.depths))
        in_channels, expansion = config.conv_dims[0], config.expansion
        reduction = 4
        for dim, depth in zip(config.conv_dims[1:], config.conv_depths[1:], strict=True):
            stage_rates = next(rates)
            downsample = InvertedResidual(in_channels, dim, 2, expansion)
            residuals = [InvertedResidual(dim, dim, 1, expansion, stage_rates[i]) for i in range(1, depth)]
            yield Stage(residuals, channels=dim, reduction=reduction, downsample=downsample)
            in_channels, reduction = dim, reduction * 2
        global_stages = zip(config.dims, config.parc_dims, config.mlp_dims, config.lengths, rates, strict=True)
        for dim, parc_dim, mlp_dim, length, stage_rates in global_stages:
            downsample = InvertedResidual(in_channels, dim, 2, expansion)
            blocks: list[nn.Module] = [
                ParCBlock(parc_dim, mlp_dim, length, position=i == 0, dropout=config.dropout, drop_path=rate)
                for i, rate in enumerate(stage_rates)
            ]
            yield Stage([LocalGlobal(dim, parc_dim, blocks)], channels=dim, reduction=reduction, downsample=downsample)
            in_channels, reduction = dim, reduction * 2


ParCNet.card = Card(
    title="ParC-Net",
    paper="2203.03952",
    repository="github.com/hkzhang91/ParC-Net",
    licence="no licence",
    former_names=("edgeformer",),
    letters={"n": "xs", "s": "s", "m": "h"},
    figures={"s": Figures(78.6, "arXiv 2203.03952", 5.0, 1.74, image_size=256)},
    weights={"xs": "none listed", "s": "by hand", "h": "none listed"},
    by_hand=(
        "ParC-Net-S is a file in its authors' repository, without an address that a program can rely on: download "
        "pretrained_models/classification/checkpoint_ema_avg.pt from github.com/hkzhang91/ParC-Net with a browser and "
        "give its path. XS and H are not among the files that its authors list."
    ),
    layouts="yolo_lightbackbones.checkpoints.layouts.parcnet",
)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Find layers that checkpoints from before 0.1.0 look up in this module."""
        return moved.find(__name__, name)

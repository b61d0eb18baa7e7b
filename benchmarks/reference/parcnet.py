"""ParC-Net in textbook form, from arXiv 2203.03952: kernels resized at each call, circular padding by concatenation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference import ConvNorm, Reference, Stage
from yolo_lightbackbones.backbones.parcnet import ParCNetConfig


class InvertedResidual(nn.Module):
    """Block of MobileNetV2 (arXiv 1801.04381)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.residual = stride == 1 and in_channels == out_channels
        self.expand = ConvNorm(in_channels, hidden)
        self.depthwise = ConvNorm(hidden, hidden, 3, stride, hidden)
        self.project = ConvNorm(hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(F.silu(self.depthwise(F.silu(self.expand(x)))))
        return x + out if self.residual else out


class Resized(nn.Module):
    """A learned kernel or embedding per channel, of size 1 in every direction but its axis."""

    def __init__(self, shape: tuple[int, int], length: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.weight = nn.Parameter(torch.zeros(*shape, *([length, 1] if axis == 2 else [1, length])))

    def resized(self, x: Tensor) -> Tensor:
        """Interpolated to the length of `x` along the axis."""
        length = int(x.shape[self.axis])
        size = [length, 1] if self.axis == 2 else [1, length]
        return F.interpolate(self.weight, size, mode="bilinear", align_corners=True)


class PositionEmbedding(Resized):
    """Adds an embedding of the position along one axis."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.resized(x)


class CircularConv(Resized):
    """A depthwise convolution along one axis of the map that continues with itself (section 3.1)."""

    def forward(self, x: Tensor) -> Tensor:
        again = x[:, :, :-1] if self.axis == 2 else x[:, :, :, :-1]
        return F.conv2d(torch.cat((x, again), self.axis), self.resized(x), groups=x.shape[1])


class Branch(nn.Sequential):
    """Embedding, norm and circular convolution along one axis, embedding and convolution along the other (figure 3)."""

    def __init__(self, dim: int, length: int, first: int, position: bool) -> None:
        super().__init__()
        second = 5 - first
        self.pos1 = PositionEmbedding((1, dim), length, first) if position else nn.Identity()
        self.norm = nn.BatchNorm2d(dim)
        self.conv1 = CircularConv((dim, 1), length, first)
        self.pos2 = PositionEmbedding((1, dim), length, second) if position else nn.Identity()
        self.conv2 = CircularConv((dim, 1), length, second)


class ChannelAttention(nn.Module):
    """Gates per channel, computed from the means."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = ConvNorm(dim, max(dim // 16, 1))
        self.fc2 = ConvNorm(max(dim // 16, 1), dim)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.fc2(F.hardswish(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * F.hardsigmoid(gates)


class Mlp(nn.Sequential):
    """BatchNorm, 1x1, Hardswish, 1x1, dropout."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.fc1, self.act, self.fc2 = nn.Conv2d(dim, hidden, 1), nn.Hardswish(), nn.Conv2d(hidden, dim, 1)
        self.dropout = nn.Dropout(dropout)


class Block(nn.Module):
    """Two branches on half of the channels each, then the MLP with channel attention as a residual (section 3.2)."""

    def __init__(self, dim: int, hidden: int, length: int, dropout: float, position: bool) -> None:
        super().__init__()
        self.branch_hw = Branch(dim // 2, length, 2, position)
        self.branch_wh = Branch(dim // 2, length, 3, position)
        self.mlp = Mlp(dim, hidden, dropout)
        self.attn = ChannelAttention(dim)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        x = torch.cat((first + self.branch_hw(first), second + self.branch_wh(second)), 1)
        out: Tensor = x + self.attn(self.mlp(x))
        return out


class LocalGlobal(nn.Module):
    """Local features, blocks, and both merged with the input (figure 2)."""

    def __init__(self, dim: int, parc_dim: int, blocks: list[Block]) -> None:
        super().__init__()
        groups = math.gcd(dim, parc_dim)
        self.local = ConvNorm(dim, parc_dim, 3, groups=groups)
        self.pointwise = nn.Conv2d(parc_dim, parc_dim, 1, bias=False)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(parc_dim)
        self.project = ConvNorm(parc_dim, dim, groups=groups)
        self.merge = ConvNorm(2 * dim, dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = self.blocks(self.pointwise(F.silu(self.local(x))))
        features = F.silu(self.project(self.norm(features)))
        return F.silu(self.merge(torch.cat((features, x), 1)))


def build(config: ParCNetConfig) -> Reference:
    stem = nn.Sequential()
    stem.conv = ConvNorm(3, config.stem_dim, config.stem_kernel, 2)
    stem.act = nn.SiLU()
    first, second = config.conv_dims
    stem.blocks = nn.Sequential(InvertedResidual(config.stem_dim, first, 1, config.expansion))
    residuals = [InvertedResidual(second, second, 1, config.expansion) for _ in range(config.conv_depths[1] - 1)]
    stages: list[nn.Module] = [Stage(residuals, InvertedResidual(first, second, 2, config.expansion))]
    dims = (second, *config.dims)
    for number, dim in enumerate(config.dims):
        blocks = [
            Block(config.parc_dims[number], config.mlp_dims[number], config.lengths[number], config.dropout, i == 0)
            for i in range(config.depths[number])
        ]
        downsample = InvertedResidual(dims[number], dim, 2, config.expansion)
        stages.append(Stage([LocalGlobal(dim, config.parc_dims[number], blocks)], downsample))
    return Reference(stem, stages)

"""RepViT in textbook form, from arXiv 2307.09283: every convolution with its BatchNorm, three branches summed.

Its authors fold it: each BatchNorm into its convolution, and the three depthwise branches into one convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from reference import ConvNorm, Reference, Stage
from yolo_lightbackbones.backbones.repvit import RepViTConfig


class FoldedConvNorm(ConvNorm):
    """A convolution and BatchNorm that become one convolution."""

    def fuse(self) -> nn.Conv2d:
        return fuse_conv_bn_eval(self.conv, self.norm)


class TokenMixer(nn.Module):
    """Depthwise 3x3, depthwise 1x1 and identity, summed and normalised (section 3.2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv3x3 = FoldedConvNorm(dim, dim, 3, groups=dim)
        self.conv1x1 = nn.Conv2d(dim, dim, 1, groups=dim)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv3x3(x) + self.conv1x1(x) + x)
        return out

    def fuse(self) -> nn.Conv2d:
        conv, one = self.conv3x3, self.conv1x1
        assert isinstance(conv, nn.Conv2d), "children fold first"
        assert conv.bias is not None
        assert one.bias is not None
        identity = torch.ones_like(one.weight)
        conv.weight = nn.Parameter(conv.weight + F.pad(one.weight + identity, [1, 1, 1, 1]), requires_grad=False)
        conv.bias = nn.Parameter(conv.bias + one.bias, requires_grad=False)
        return fuse_conv_bn_eval(conv, self.norm)


class SqueezeExcite(nn.Module):
    """Gates per channel, computed from the means (arXiv 1709.01507)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = max(8, int(dim / 4 + 4) // 8 * 8)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gates)


class ChannelMixer(nn.Module):
    """1x1, GELU, 1x1 as a residual."""

    def __init__(self, dim: int, mlp_ratio: int) -> None:
        super().__init__()
        self.conv1 = FoldedConvNorm(dim, mlp_ratio * dim)
        self.conv2 = FoldedConvNorm(mlp_ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(F.gelu(self.conv1(x)))
        return out


class Block(nn.Sequential):
    """Token mixer, squeeze-and-excitation in some blocks, channel mixer."""

    def __init__(self, dim: int, squeeze: bool, mlp_ratio: int) -> None:
        super().__init__()
        self.token_mixer = TokenMixer(dim)
        self.squeeze = SqueezeExcite(dim) if squeeze else nn.Identity()
        self.channel_mixer = ChannelMixer(dim, mlp_ratio)


class Downsample(nn.Sequential):
    """Depthwise 3x3 of stride 2, 1x1 to the next width, channel mixer."""

    def __init__(self, in_channels: int, dim: int, mlp_ratio: int) -> None:
        super().__init__()
        self.depthwise = FoldedConvNorm(in_channels, in_channels, 3, 2, in_channels)
        self.pointwise = FoldedConvNorm(in_channels, dim)
        self.channel_mixer = ChannelMixer(dim, mlp_ratio)


class Stem(nn.Sequential):
    """Two 3x3 convolutions of stride 2."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = FoldedConvNorm(3, dim // 2, 3, 2)
        self.act = nn.GELU()
        self.conv2 = FoldedConvNorm(dim // 2, dim, 3, 2)


def build(config: RepViTConfig) -> Reference:
    stages: list[nn.Module] = []
    for number, (dim, squeezes) in enumerate(zip(config.dims, config.squeezes, strict=True)):
        downsample = Downsample(config.dims[number - 1], dim, config.mlp_ratio) if number else None
        blocks = [Block(dim, squeeze == "1", config.mlp_ratio) for squeeze in squeezes]
        stages.append(Stage(blocks, downsample))
    return Reference(Stem(config.dims[0]), stages)

"""Conv2Former in textbook form, from arXiv 2211.11943: LayerNorm as arithmetic, layer scale as a factor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference import Reference, Stage
from yolo_lightbackbones.backbones.conv2former import Conv2FormerConfig


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (B, C, H, W), as its definition has it: seven elementwise operations."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Modulation(nn.Module):
    """Values multiplied by a large depthwise convolution (section 3.2)."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim)
        self.query = nn.Conv2d(dim, dim, 1)
        self.depthwise = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.value = nn.Conv2d(dim, dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        weights = self.depthwise(F.gelu(self.query(x)))
        out: Tensor = self.proj(weights * self.value(x))
        return out


class Mlp(nn.Module):
    """1x1, GELU, a depthwise 3x3 with GELU as a residual, 1x1."""

    def __init__(self, dim: int, mlp_ratio: int) -> None:
        super().__init__()
        hidden = mlp_ratio * dim
        self.norm = ChannelNorm(dim)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(self.norm(x)))
        x = x + F.gelu(self.depthwise(x))
        out: Tensor = self.fc2(x)
        return out


class Block(nn.Module):
    """Modulation and MLP, each a residual with a learned factor per channel."""

    def __init__(self, dim: int, kernel_size: int, mlp_ratio: int) -> None:
        super().__init__()
        self.attn = Modulation(dim, kernel_size)
        self.mlp = Mlp(dim, mlp_ratio)
        self.layer_scale1 = nn.Parameter(torch.ones(dim))
        self.layer_scale2 = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale1[:, None, None] * self.attn(x)
        out: Tensor = x + self.layer_scale2[:, None, None] * self.mlp(x)
        return out


class Downsample(nn.Sequential):
    """LayerNorm, then a 2x2 convolution of stride 2."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(in_channels)
        self.conv = nn.Conv2d(in_channels, dim, 2, 2)


class Stem(nn.Module):
    """Three convolutions; the BatchNorms are behind the GELUs."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = dim // 2
        self.conv1 = nn.Conv2d(3, hidden, 3, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, dim, 2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(F.gelu(self.conv1(x)))
        x = self.norm2(F.gelu(self.conv2(x)))
        out: Tensor = self.conv3(x)
        return out


def build(config: Conv2FormerConfig) -> Reference:
    stages: list[nn.Module] = []
    for number, (dim, depth) in enumerate(zip(config.dims, config.depths, strict=True)):
        downsample = Downsample(config.dims[number - 1], dim) if number else None
        stages.append(Stage([Block(dim, config.kernel_size, config.mlp_ratio) for _ in range(depth)], downsample))
    return Reference(Stem(config.dims[0]), stages)

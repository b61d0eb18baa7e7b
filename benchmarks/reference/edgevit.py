"""EdgeViT in textbook form, from arXiv 2205.03436: all tokens (B, N, C) are normalised, attention is written out."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from reference import Reference, Stage
from yolo_lightbackbones.backbones.edgevit import EdgeViTConfig


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, H * W, C) -> (B, C, H, W)."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], height, width)


class PatchEmbed(nn.Module):
    """Patches that do not overlap, projected to channels and normalised."""

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        height, width = map(int, x.shape[2:])
        return to_map(self.norm(to_tokens(x)), height, width)


class PositionEncoding(nn.Module):
    """A depthwise 3x3 convolution as a residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv(x)
        return out


class Mlp(nn.Sequential):
    """Linear, GELU, linear: on tokens, or as 1x1 convolutions on a map."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = first, nn.GELU(), second


class LocalAggregation(nn.Module):
    """Gathers a neighbourhood into each token (section 3.2)."""

    def __init__(self, dim: int, mlp_ratio: int) -> None:
        super().__init__()
        self.pos_embed = PositionEncoding(dim)
        self.norm1 = nn.BatchNorm2d(dim)
        self.conv1 = nn.Conv2d(dim, dim, 1)
        self.conv_dw = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.conv2 = nn.Conv2d(dim, dim, 1)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = Mlp(nn.Conv2d(dim, mlp_ratio * dim, 1), nn.Conv2d(mlp_ratio * dim, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pos_embed(x)
        x = x + self.conv2(self.conv_dw(self.conv1(self.norm1(x))))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Propagation(nn.Module):
    """Spreads each sampled token over its window by a depthwise transposed convolution, then LayerNorm."""

    def __init__(self, dim: int, rate: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(dim, dim, rate, rate, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H / r, W / r) -> tokens (B, H * W, C)."""
        out: Tensor = self.norm(to_tokens(self.conv(x)))
        return out


class SparseAttention(nn.Module):
    """Norm of all tokens, attention among every r-th in each direction, then propagation to all."""

    def __init__(self, dim: int, head_dim: int, rate: int) -> None:
        super().__init__()
        self.head_dim, self.rate = head_dim, rate
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.propagation = Propagation(dim, rate) if rate > 1 else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        tokens = self.norm(tokens)
        if self.rate > 1:
            tokens = to_tokens(F.avg_pool2d(to_map(tokens, height, width), 1, self.rate))
        batch, count, dim = map(int, tokens.shape)
        qkv = self.qkv(tokens).reshape(batch, count, 3, dim // self.head_dim, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, head_dim) each
        attention = ((q @ k.transpose(2, 3)) * self.head_dim**-0.5).softmax(3)
        tokens = (attention @ v).transpose(1, 2).reshape(batch, count, dim)
        if self.rate > 1:
            tokens = self.propagation(to_map(tokens, height // self.rate, width // self.rate))
        out: Tensor = self.proj(tokens)
        return out


class GlobalAttention(nn.Module):
    """Position encoding, sparse attention and MLP, each a residual."""

    def __init__(self, dim: int, config: EdgeViTConfig, rate: int) -> None:
        super().__init__()
        self.pos_embed = PositionEncoding(dim)
        self.attn = SparseAttention(dim, config.head_dim, rate)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(nn.Linear(dim, config.mlp_ratio * dim), nn.Linear(config.mlp_ratio * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pos_embed(x)
        height, width = map(int, x.shape[2:])
        tokens = to_tokens(x)
        tokens = tokens + self.attn(tokens, height, width)
        return to_map(tokens + self.mlp(self.norm(tokens)), height, width)


class Block(nn.Sequential):
    """Local aggregation, where the attention is sparse, then global attention."""

    def __init__(self, dim: int, config: EdgeViTConfig, rate: int) -> None:
        super().__init__()
        self.local_agg = LocalAggregation(dim, config.mlp_ratio) if rate > 1 else nn.Identity()
        self.global_attn = GlobalAttention(dim, config, rate)


def build(config: EdgeViTConfig) -> Reference:
    stages: list[nn.Module] = []
    for number, dim in enumerate(config.embed_dims):
        downsample = PatchEmbed(config.embed_dims[number - 1], dim, 2) if number else None
        rate = config.sampling_rates[number]
        stages.append(Stage([Block(dim, config, rate) for _ in range(config.depths[number])], downsample))
    return Reference(PatchEmbed(3, config.embed_dims[0], 4), stages)

"""EdgeViT: local-global-local blocks, attention over a sparse grid of tokens.

Paper: Pan et al., "EdgeViTs: Competing Light-weight CNNs on Mobile Devices with Vision Transformers", ECCV 2022,
arXiv 2205.03436. Checked against the authors' implementation (saic-fi/edgevit, commit df3d070, Apache-2.0); this is our
own code. The authors have not released any weights.

Deviations, none of which changes an output:
- any height and width that are multiples of 32 (the published code asserts one fixed square size);
- the sparse tokens are sampled before the LayerNorm instead of after it: a LayerNorm acts on each token separately;
- the token MLP and the output projection are 1x1 convolutions on (B, C, H, W) instead of linear layers on (B, N, C).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_lightbackbones import fusion, recording
from yolo_lightbackbones.blocks import BlockRow
from yolo_lightbackbones.card import Card, Figures
from yolo_lightbackbones.input_norm import IMAGENET
from yolo_lightbackbones.layers import BatchNorm2d, Chained, DropPath, Layer, LayerNorm2d, drop_path_rates, run
from yolo_lightbackbones.options import MOST_CHANNELS, Option, share, whole
from yolo_lightbackbones.stages import Stage, StagedBackbone


@dataclass(frozen=True)
class EdgeViTConfig:
    """Config of an EdgeViT (paper, table 1).

    `sampling_rates` has one entry per stage: the side of the windows; one token of each window takes part in attention.
    """

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    head_dim: int
    sampling_rates: tuple[int, ...] = (4, 2, 2, 1)
    mlp_ratio: int = 4
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        if not len(self.embed_dims) == len(self.depths) == len(self.sampling_rates):
            raise ValueError(f"embed_dims, depths and sampling_rates need one entry per stage each: {self}.")
        if any(dim % self.head_dim for dim in self.embed_dims):
            raise ValueError(f"embed_dims {self.embed_dims} must be multiples of head_dim {self.head_dim}.")


VARIANTS = {
    "xxs": EdgeViTConfig(embed_dims=(36, 72, 144, 288), depths=(1, 1, 3, 2), head_dim=36),
    "xs": EdgeViTConfig(embed_dims=(48, 96, 240, 384), depths=(1, 1, 3, 1), head_dim=48),
    "s": EdgeViTConfig(embed_dims=(48, 96, 240, 384), depths=(1, 2, 5, 3), head_dim=48),
}


def _linear_init(*layers: nn.Linear | nn.Conv2d) -> None:
    """Apply the published initialisation of linear layers, also to those that are 1x1 convolutions here."""
    for layer in layers:
        nn.init.trunc_normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class PatchEmbed(nn.Module):
    """Project non-overlapping patches to channels, then LayerNorm: (B, C, H, W) -> (B, dim, H / patch, W / patch)."""

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.norm = LayerNorm2d(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.proj(x))
        return out


class PositionEncoding(fusion.Fusible):
    """Conditional position encoding, `x + dw3x3(x)`; `x` folds into the centre of the kernels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv(x)
        return out

    def fold(self) -> nn.Conv2d:
        return fusion.add_identity(self.conv)


class Mlp(Chained):
    """MLP of 1x1 convolution, GELU, 1x1 convolution: (B, dim, H, W) -> the same."""

    def __init__(self, dim: int, mlp_ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, dim * mlp_ratio, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(dim * mlp_ratio, dim, 1)

    def layers(self) -> tuple[Layer, ...]:
        return self.fc1, self.act, self.fc2


class LocalAggregation(fusion.Fusible):
    """Gathers a neighbourhood into each token (paper, section 3.2, "local aggregation"): (B, dim, H, W) -> the same."""

    def __init__(self, dim: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.pos_embed = PositionEncoding(dim)
        self.norm1: nn.Module = BatchNorm2d(dim)
        self.conv1 = nn.Conv2d(dim, dim, 1)
        self.conv_dw = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.conv2 = nn.Conv2d(dim, dim, 1)
        self.norm2: nn.Module = BatchNorm2d(dim)
        self.mlp = Mlp(dim, mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pos_embed(x)
        x = x + self.drop_path(run(x, self.norm1, self.conv1, self.conv_dw, self.conv2))
        x = x + self.drop_path(run(x, self.norm2, self.mlp))
        return x

    def fold(self) -> LocalAggregation:
        fusion.expect(self.mlp, Mlp)
        self.conv1 = fusion.fold_norm_before(self.conv1, self.norm1)
        self.mlp.fc1 = fusion.fold_norm_before(self.mlp.fc1, self.norm2)
        self.norm1 = self.norm2 = nn.Identity()
        return self


class LocalPropagation(fusion.Fusible):
    """Spreads each sampled token over its window, then LayerNorm: (B, dim, H / r, W / r) -> (B, dim, H, W).

    Not every runtime has grouped transposed convolutions. This one has kernels that do not overlap, so it folds into a
    1x1 convolution to r * r times the channels and a pixel shuffle.
    """

    def __init__(self, dim: int, sampling_rate: int) -> None:
        super().__init__()
        self.conv: nn.Module = nn.ConvTranspose2d(dim, dim, sampling_rate, stride=sampling_rate, groups=dim)
        self.norm = LayerNorm2d(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out

    def fold(self) -> LocalPropagation:
        self.conv = fusion.transposed_to_shuffle(self.conv)
        return self


class SparseAttention(fusion.Fusible, recording.SizeBound):
    """Norm, multi-head attention among every r-th token in each direction, then propagation to all tokens.

    (B, dim, H, W) -> the same; with r = 1 it is plain global attention (paper, section 3.2, "global sparse attention").
    """

    partial_windows = False
    """Whether H and W need not be multiples of r. If so, the last windows are cut off at the border of the map. Their
    first tokens are still inside, so every position belongs to a token that takes part."""

    def __init__(self, dim: int, head_dim: int, sampling_rate: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.sampling_rate = sampling_rate
        self.scale = head_dim**-0.5
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.propagation = LocalPropagation(dim, sampling_rate) if sampling_rate > 1 else nn.Identity()
        self.proj = nn.Conv2d(dim, dim, 1)
        _linear_init(self.qkv, self.proj)

    def init_for_scratch(self) -> None:
        for layer in (self.qkv, self.proj):
            layer.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        whole = x
        if self.sampling_rate > 1:
            x = F.avg_pool2d(x, 1, self.sampling_rate)  # the top left token of each window; exports everywhere
        batch, dim, height, width = self.shape_of(x)
        tokens = x.flatten(2).transpose(1, 2)  # (B, N, C)
        q, k, v = (
            part.reshape(batch, height * width, dim // self.head_dim, self.head_dim).transpose(1, 2)
            for part in self.qkv(self.norm(tokens)).chunk(3, dim=2)
        )  # (B, heads, N, head_dim) each; in three tensors because NCNN has no five dimensions
        x = self._attend(q, k, v)
        x = x.transpose(2, 3).reshape(batch, dim, height, width)
        x = self.propagation(x)
        out: Tensor = self.proj(self._cut_to(whole, x) if self.partial_windows else x)
        return out

    def _cut_to(self, whole: Tensor, x: Tensor) -> Tensor:
        """Cut `x` off at the right and lower border of `whole`."""
        height, width = self.shape_of(whole)[2:]
        recorded_for_any = self.any_size and recording.is_recording()  # the size is unknown then, so always cut
        if not recorded_for_any and list(self.shape_of(x)[2:]) == [height, width]:
            return x
        return x[:, :, :height, :width]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute attention; q, k, v and the result are (B, heads, N, head_dim)."""
        if not recording.is_recording():
            return F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        # Written out: x2paddle accepts only the default scale, and other exporters multiply by the scale even if 1.
        q = q if self.scale == 1 else q * self.scale
        return torch.matmul(torch.matmul(q, k.transpose(2, 3)).softmax(3), v)

    def fold(self) -> SparseAttention:
        self.qkv = fusion.scale_inputs(self.qkv, *fusion.take_affine(self.norm))
        dim = self.qkv.in_features
        scale = self.qkv.weight.new_ones(3 * dim)
        scale[:dim] = self.scale
        self.qkv = fusion.scale_outputs(self.qkv, scale)
        self.scale = 1.0
        if not isinstance(self.propagation, nn.Identity):
            fusion.expect(self.propagation, LocalPropagation)
            self.proj = fusion.scale_inputs(self.proj, *fusion.take_affine(self.propagation.norm))
        return self


class GlobalAttention(fusion.Fusible):
    """Position encoding, sparse attention and MLP, each a residual: (B, dim, H, W) -> the same."""

    def __init__(self, dim: int, head_dim: int, sampling_rate: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.pos_embed = PositionEncoding(dim)
        self.attn = SparseAttention(dim, head_dim, sampling_rate)
        self.norm = LayerNorm2d(dim, eps=1e-6)
        self.mlp = Mlp(dim, mlp_ratio)
        self.drop_path = DropPath(drop_path)
        _linear_init(self.mlp.fc1, self.mlp.fc2)

    def init_for_scratch(self) -> None:
        for layer in (self.mlp.fc1, self.mlp.fc2):
            layer.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pos_embed(x)
        x = x + self.drop_path(self.attn(x))
        x = x + self.drop_path(run(x, self.norm, self.mlp))
        return x

    def fold(self) -> GlobalAttention:
        fusion.expect(self.mlp, Mlp)
        self.mlp.fc1 = fusion.scale_inputs(self.mlp.fc1, *fusion.take_affine(self.norm))
        return self


class LGLBlock(nn.Module):
    """Local-global-local block (paper, section 3.2): (B, dim, H, W) -> the same.

    With r = 1 every token takes part in attention, so there is no local aggregation and no local propagation.
    """

    def __init__(self, dim: int, head_dim: int, sampling_rate: int, mlp_ratio: int = 4, drop_path: float = 0.0) -> None:
        super().__init__()
        self.local_agg = LocalAggregation(dim, mlp_ratio, drop_path) if sampling_rate > 1 else nn.Identity()
        self.global_attn = GlobalAttention(dim, head_dim, sampling_rate, mlp_ratio, drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.global_attn(self.local_agg(x))
        return out


class LGLBlocks(BlockRow):
    """A row of EdgeViT's local-global-local blocks.

    One token of each window of `sr_ratio` x `sr_ratio` tokens takes part in attention; with 1, all tokens do (the
    published variants have 4, 2, 2 and 1 from P2 to P5). The number of heads is the largest that divides the channels
    and leaves at least `head_dim` channels per head, so that any number of channels works.
    """

    options: ClassVar[Mapping[str, Option]] = {
        "sr_ratio": whole(2, 1024),
        "head_dim": whole(32, MOST_CHANNELS),
        "mlp_ratio": whole(4, 64),
        "drop_path": share(0.0),
    }

    def build_block(self, dim: int, index: int, options: Mapping[str, Any]) -> LGLBlock:
        heads = max((n for n in range(1, dim // options["head_dim"] + 1) if dim % n == 0), default=1)
        block = LGLBlock(dim, dim // heads, options["sr_ratio"], options["mlp_ratio"], options["drop_path"])
        block.global_attn.attn.partial_windows = True
        return block


class EdgeViT(StagedBackbone):
    """EdgeViT XXS, XS, S: image (B, 3, H, W) -> taps P2..P5, each (B, embed_dims[i], H / 2^(i+2), W / 2^(i+2))."""

    family = "edgevit"
    variants = VARIANTS
    block_rows = {"LGLBlock": LGLBlocks}
    input_convention = IMAGENET
    row_tap_norm = "batch"

    def build_stem(self, config: EdgeViTConfig, in_channels: int) -> PatchEmbed:
        return PatchEmbed(in_channels, config.embed_dims[0], patch_size=4)

    def build_stages(self, config: EdgeViTConfig, drop_path_rate: float) -> Iterator[Stage]:
        rates = drop_path_rates(drop_path_rate, config.depths)
        in_channels: int | None = None
        reduction = 4
        for dim, sampling_rate, stage_rates in zip(config.embed_dims, config.sampling_rates, rates, strict=True):
            downsample = None if in_channels is None else PatchEmbed(in_channels, dim, patch_size=2)
            blocks = [LGLBlock(dim, config.head_dim, sampling_rate, config.mlp_ratio, rate) for rate in stage_rates]
            yield Stage(blocks, channels=dim, reduction=reduction, downsample=downsample)
            in_channels, reduction = dim, reduction * 2


EdgeViT.card = Card(
    title="EdgeViT",
    paper="2205.03436",
    repository="github.com/saic-fi/edgevit",
    licence="Apache-2.0",
    letters={"n": "xxs", "s": "xs", "m": "s"},
    figures={
        "xxs": Figures(74.4, "arXiv 2205.03436", 4.1, 0.56),
        "xs": Figures(77.5, "arXiv 2205.03436", 6.7, 1.1),
        "s": Figures(81.0, "arXiv 2205.03436", 11.1, 1.9, note="the published code has 13.1 M parameters"),
    },
    weights=dict.fromkeys(VARIANTS, "none released"),
    by_hand="No EdgeViT weights were ever released by its authors: train it from scratch, or give a file of your own.",
    layouts="yolo_lightbackbones.checkpoints.layouts.edgevit",
)

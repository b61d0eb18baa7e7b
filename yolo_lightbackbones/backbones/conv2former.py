"""Conv2Former: transformer blocks whose attention is a large depthwise convolution that multiplies the values.

Paper: Hou et al., "Conv2Former: A Simple Transformer-Style ConvNet for Visual Recognition", TPAMI 2024,
arXiv 2211.11943. Checked against outputs of the authors' implementation (HVision-NKU/Conv2Former, commit 94fd1c4); this
is our own code.

Deviations, none of which changes an output:
- LayerNorm over channels is one `layer_norm` on (B, H, W, C) instead of seven elementwise operations on (B, C, H, W);
- layer scale is multiplied and added in float32, also in a half precision model: at its initial value of 1e-6, float16
  has only four bits left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from yolo_lightbackbones import fusion, moved
from yolo_lightbackbones.blocks import BlockRow
from yolo_lightbackbones.card import Card, Figures
from yolo_lightbackbones.input_norm import IMAGENET
from yolo_lightbackbones.layers import (
    LAYER_SCALE_FOR_SCRATCH,
    BatchNorm2d,
    Chained,
    Downsample,
    DropPath,
    Layer,
    LayerNorm2d,
    Product,
    Sum,
    add_scaled,
    drop_path_rates,
)
from yolo_lightbackbones.options import FURTHER_OPTIONS, Option, odd, scale, share, whole
from yolo_lightbackbones.stages import Stage, StagedBackbone


@dataclass(frozen=True)
class Conv2FormerConfig:
    """Config of a Conv2Former (paper, table 1); `kernel_size` is that of the convolutional modulation.

    With a `patch_size`, the stem is a convolution of this size and stride; None: the three convolutions of the paper.
    """

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    kernel_size: int = 11
    mlp_ratio: int = 4
    layer_scale: float = 1e-6
    drop_path_rate: float = 0.0
    patch_size: int | None = None

    def __post_init__(self) -> None:
        if len(self.dims) != len(self.depths):
            raise ValueError(f"dims and depths need one entry per stage each: {self}.")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {self.kernel_size} must be odd, so that a map keeps its size.")
        if self.patch_size not in (None, 4, 8, 16, 32):
            raise ValueError(f"patch_size {self.patch_size} must be 4, 8, 16 or 32, the reduction of the first stage.")


VARIANTS = {
    "n": Conv2FormerConfig(dims=(64, 128, 256, 512), depths=(2, 2, 8, 2), kernel_size=7),
    "t": Conv2FormerConfig(dims=(72, 144, 288, 576), depths=(3, 3, 12, 3)),
    "s": Conv2FormerConfig(dims=(72, 144, 288, 576), depths=(4, 4, 32, 4)),
    "b": Conv2FormerConfig(dims=(96, 192, 384, 768), depths=(4, 4, 34, 4)),
    "l": Conv2FormerConfig(dims=(128, 256, 512, 1024), depths=(4, 4, 48, 4)),
    "b_k7": Conv2FormerConfig(dims=(96, 192, 384, 768), depths=(4, 4, 34, 4), kernel_size=7),
    # Isotropic (paper, table of isotropic models): 18 equal blocks. Neither code nor widths were published; these are
    # the multiples of 64 that come nearest to about 22 M, and above 80 M, parameters with the classifier.
    "is": Conv2FormerConfig(dims=(320,), depths=(18,), patch_size=16),
    "ib": Conv2FormerConfig(dims=(640,), depths=(18,), patch_size=16),
}


class Conv2d(nn.Conv2d):
    """Convolution with "same" padding for odd kernels; weights from N(0, 0.02), as published, and a bias of 0.

    This replaces PyTorch's own initialisation, because drawing 200 M parameters twice takes seconds.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        padding = kernel_size // 2 if kernel_size % 2 else 0
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def init_for_scratch(self) -> None:
        super().reset_parameters()


class Stem(Chained, fusion.Fusible):
    """Three convolutions instead of patches (paper, section 3.1): (B, C, H, W) -> (B, dim, H / 4, W / 4)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        hidden = dim // 2
        self.conv1 = Conv2d(in_channels, hidden, 3, stride=2, bias=False)
        self.norm1: nn.Module = BatchNorm2d(hidden)
        self.conv2 = Conv2d(hidden, hidden, 3, bias=False)
        self.norm2: nn.Module = BatchNorm2d(hidden)
        self.conv3 = Conv2d(hidden, dim, 2, stride=2, bias=False)
        self.act = nn.GELU()

    def layers(self) -> tuple[Layer, ...]:
        return self.conv1, self.act, self.norm1, self.conv2, self.act, self.norm2, self.conv3

    def fold(self) -> Stem:
        # the shift of the first norm cannot fold into conv2, which pads the output of the norm with zeros
        if not isinstance(self.norm1, nn.Identity):
            self.norm1 = fusion.batchnorm_to_conv(self.norm1)
        self.conv3 = fusion.fold_norm_before(self.conv3, self.norm2)
        self.norm2 = nn.Identity()
        return self


class PatchEmbed(nn.Module):
    """Patches that do not overlap: (B, C, H, W) -> (B, dim, H / patch_size, W / patch_size)."""

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class ConvModulation(Chained, fusion.Fusible):
    """Convolutional modulation (paper, section 3.2): (B, dim, H, W) -> the same.

    Self-attention weights the values by the similarity of queries and keys. Here the values are multiplied by a large
    depthwise convolution of the features. One norm feeds both.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim, eps=1e-6)
        self.query = Conv2d(dim, dim)
        self.act = nn.GELU()
        self.depthwise = Conv2d(dim, dim, kernel_size, groups=dim)
        self.value = Conv2d(dim, dim)
        self.proj = Conv2d(dim, dim)

    def layers(self) -> tuple[Layer, ...]:
        weights = (self.query, self.act, self.depthwise)
        return self.norm, Product(weights, (self.value,)), self.proj

    def fold(self) -> ConvModulation:
        scale, shift = fusion.take_affine(self.norm)
        self.query = fusion.scale_inputs(self.query, scale, shift)
        self.value = fusion.scale_inputs(self.value, scale, shift)
        return self


class Mlp(Chained, fusion.Fusible):
    """Norm, 1x1, GELU, a depthwise 3x3 with GELU as a residual, 1x1 (paper, figure 3): (B, dim, H, W) -> the same."""

    def __init__(self, dim: int, mlp_ratio: int) -> None:
        super().__init__()
        hidden = dim * mlp_ratio
        self.norm = LayerNorm2d(dim, eps=1e-6)
        self.fc1 = Conv2d(dim, hidden)
        self.act = nn.GELU()
        self.depthwise = Conv2d(hidden, hidden, 3, groups=hidden)
        self.fc2 = Conv2d(hidden, dim)

    def layers(self) -> tuple[Layer, ...]:
        return self.norm, self.fc1, self.act, Sum((self.depthwise, self.act)), self.fc2

    def fold(self) -> Mlp:
        self.fc1 = fusion.scale_inputs(self.fc1, *fusion.take_affine(self.norm))
        return self


class ConvModBlock(fusion.Fusible):
    """Convolutional modulation and MLP, each a residual behind a layer scale: (B, dim, H, W) -> the same."""

    no_weight_decay_names = ("layer_scale1", "layer_scale2")
    layer_scale1: nn.Parameter | None
    layer_scale2: nn.Parameter | None

    def __init__(
        self, dim: int, kernel_size: int, mlp_ratio: int = 4, layer_scale: float = 1e-6, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.attn = ConvModulation(dim, kernel_size)
        self.mlp = Mlp(dim, mlp_ratio)
        self.layer_scale1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.layer_scale2 = nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = add_scaled(x, self.drop_path(self.attn(x)), self.layer_scale1)
        x = add_scaled(x, self.drop_path(self.mlp(x)), self.layer_scale2)
        return x

    def fold(self) -> ConvModBlock:
        assert self.layer_scale1 is not None
        assert self.layer_scale2 is not None
        fusion.expect(self.attn, ConvModulation)
        fusion.expect(self.mlp, Mlp)
        self.attn.proj = fusion.scale_outputs(self.attn.proj, self.layer_scale1)
        self.mlp.fc2 = fusion.scale_outputs(self.mlp.fc2, self.layer_scale2)
        self.layer_scale1 = self.layer_scale2 = None
        return self


class ConvModBlocks(BlockRow):
    """A row of Conv2Former's blocks: convolutional modulation and an MLP.

    `kernel_size` is that of the modulation (7 in the smallest published variant, 11 in the others). `layer_scale` is
    the initial factor of each residual branch.
    """

    options: ClassVar[Mapping[str, Option]] = {
        "kernel_size": odd(7, 255),
        "mlp_ratio": whole(4, 64),
        "layer_scale": scale(LAYER_SCALE_FOR_SCRATCH),
        "drop_path": share(0.0),
    }

    def build_block(self, dim: int, index: int, options: Mapping[str, Any]) -> ConvModBlock:
        return ConvModBlock(
            dim, options["kernel_size"], options["mlp_ratio"], options["layer_scale"], options["drop_path"]
        )


class Conv2Former(StagedBackbone):
    """Conv2Former N, T, S, B, L: image (B, 3, H, W) -> taps P2..P5, each (B, dims[i], H / 2^(i+2), W / 2^(i+2)).

    IS and IB have one stage and offer P4 only, (B, dims[0], H / 16, W / 16). With `pyramid: simple` they offer
    P2..P5, with 256 channels each.
    """

    family = "conv2former"
    variants = VARIANTS
    block_rows = {"ConvModBlock": ConvModBlocks}
    input_convention = IMAGENET
    row_options = {**StagedBackbone.row_options, "pyramid": FURTHER_OPTIONS["pyramid"]}
    row_init = "scratch"
    row_tap_norm = "batch"

    def init_for_scratch(self) -> None:
        # Not a method of the block: a row of blocks has an option for its initial layer scale.
        for module in self.modules():
            if isinstance(module, ConvModBlock):
                for scale in (module.layer_scale1, module.layer_scale2):
                    assert scale is not None
                    nn.init.constant_(scale, LAYER_SCALE_FOR_SCRATCH)

    def build_stem(self, config: Conv2FormerConfig, in_channels: int) -> nn.Module:
        if config.patch_size is not None:
            return PatchEmbed(in_channels, config.dims[0], config.patch_size)
        return Stem(in_channels, config.dims[0])

    def build_stages(self, config: Conv2FormerConfig, drop_path_rate: float) -> Iterator[Stage]:
        rates = drop_path_rates(drop_path_rate, config.depths)
        in_channels: int | None = None
        reduction = 4 if config.patch_size is None else config.patch_size
        for dim, stage_rates in zip(config.dims, rates, strict=True):
            downsample = None if in_channels is None else Downsample(in_channels, dim, Conv2d)
            blocks = [
                ConvModBlock(dim, config.kernel_size, config.mlp_ratio, config.layer_scale, rate)
                for rate in stage_rates
            ]
            yield Stage(blocks, channels=dim, reduction=reduction, downsample=downsample)
            in_channels, reduction = dim, reduction * 2


_SOURCE = "github.com/HVision-NKU/Conv2Former"

Conv2Former.card = Card(
    title="Conv2Former",
    paper="2211.11943",
    repository=_SOURCE,
    licence="MIT",
    letters={"n": "n", "s": "t", "m": "s", "l": "b", "x": "l"},
    figures={
        "n": Figures(81.5, _SOURCE, 15, 2.2),
        "t": Figures(83.2, _SOURCE, 27, 4.4),
        "s": Figures(84.1, _SOURCE, 50, 8.7),
        "b": Figures(84.4, _SOURCE, 90, 15.9),
        "l": Figures(87.0, _SOURCE, 199, 36.0, note="pretrained on ImageNet-22k"),
    },
    weights={**dict.fromkeys(VARIANTS, "by hand"), "is": "none released", "ib": "none released"},
    by_hand=(
        "Conv2Former's weights are on a file-sharing site that no program can read: download them with a browser, "
        f"starting from {_SOURCE}, and give the file's path. Of IS and IB, nothing was released."
    ),
    notes=dict.fromkeys(
        ("is", "ib"),
        "one stage at 1/16, which gives P4 only; its width is ours, chosen for about 22 M (IS) and above 80 M (IB) "
        "parameters, because the paper gives no more; the row option pyramid: simple makes P2 to P5",
    ),
    layouts="yolo_lightbackbones.checkpoints.layouts.conv2former",
)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Find layers that checkpoints from before 0.1.0 look up in this module."""
        return moved.find(__name__, name)

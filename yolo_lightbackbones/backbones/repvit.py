"""RepViT: a MobileNetV3-like CNN with the block design of light vision transformers: token mixer, then channel mixer.

Paper: Wang et al., "RepViT: Revisiting Mobile CNN From ViT Perspective", CVPR 2024, arXiv 2307.09283. Checked against
outputs of the authors' implementation (THU-MIG/RepViT, commit 298f420, Apache-2.0) and of timm 1.0.31 (Apache-2.0);
this is our own code.

Deviations, none of which changes an output:
- stages are explicit; the authors have one flat list of blocks. A block of theirs that changes the size is the
  `downsample` of the stage behind it. timm ends a stage one block earlier, so its features P2 to P4 differ from the
  authors' with the same weights. Ours are the authors', or timm's after loading a file in timm's layout;
- squeeze-and-excitation is our own module instead of timm's;
- the channel mixers can have stochastic depth, which the authors do not use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from yolo_lightbackbones import fusion
from yolo_lightbackbones.blocks import BlockRow
from yolo_lightbackbones.card import Card, Figures, Release
from yolo_lightbackbones.input_norm import IMAGENET
from yolo_lightbackbones.layers import BatchNorm2d, Chained, ConvNorm, DropPath, Layer, Sum, drop_path_rates, run
from yolo_lightbackbones.options import Option, share, switch, whole
from yolo_lightbackbones.stages import Stage, StagedBackbone


@dataclass(frozen=True)
class RepViTConfig:
    """Config of a RepViT (paper, section 4.1 and the appendix).

    `squeezes` has one string per stage, with one digit per block: "1" for a block with squeeze-and-excitation.
    """

    dims: tuple[int, ...]
    squeezes: tuple[str, ...]
    mlp_ratio: int = 2
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        if len(self.dims) != len(self.squeezes):
            raise ValueError(f"dims and squeezes need one entry per stage each: {self}.")
        if any(not blocks or set(blocks) - {"0", "1"} for blocks in self.squeezes):
            raise ValueError(f"squeezes {self.squeezes} must be strings of 0 and 1, one digit per block.")


VARIANTS = {
    "m0_6": RepViTConfig(dims=(40, 80, 160, 320), squeezes=("10", "10", "101010100", "1")),
    "m0_9": RepViTConfig(dims=(48, 96, 192, 384), squeezes=("100", "100", "101010101010100", "10")),
    "m1_0": RepViTConfig(dims=(56, 112, 224, 448), squeezes=("100", "100", "101010101010100", "10")),
    "m1_1": RepViTConfig(dims=(64, 128, 256, 512), squeezes=("100", "100", "1010101010100", "10")),
    "m1_5": RepViTConfig(dims=(64, 128, 256, 512), squeezes=("10100", "10100", "1010101010101010101010100", "1010")),
    "m2_3": RepViTConfig(
        dims=(80, 160, 320, 640), squeezes=("1010100", "1010100", "10101010101010101010101010101010100", "10")
    ),
}


class Stem(nn.Module):
    """Two 3x3 convolutions of stride 2, "early convolutions" (paper, section 3.3).

    (B, C, H, W) -> (B, dim, H / 4, W / 4).
    """

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, dim // 2, 3, stride=2)
        self.act = nn.GELU()
        self.conv2 = ConvNorm(dim // 2, dim, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return run(x, self.conv1, self.act, self.conv2)


class RepDepthwise(Chained, fusion.Fusible):
    """Depthwise 3x3, depthwise 1x1 and identity, summed and normalised: (B, dim, H, W) -> the same.

    This is the token mixer (paper, section 3.2, "structural re-parameterization"). It folds into one depthwise 3x3.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv3x3 = ConvNorm(dim, dim, 3, groups=dim)
        self.conv1x1 = nn.Conv2d(dim, dim, 1, groups=dim)
        self.norm = BatchNorm2d(dim)

    def layers(self) -> tuple[Layer, ...]:
        return Sum((self.conv3x3,), (self.conv1x1,)), self.norm

    def fold(self) -> nn.Conv2d:
        assert isinstance(self.conv3x3, nn.Conv2d), "children fold first"
        conv = fusion.add_identity(fusion.add_pointwise(self.conv3x3, self.conv1x1))
        return fusion.fold_norm_behind(conv, self.norm)


class SqueezeExcite(nn.Module):
    """Multiplies channels by gates computed from their means (arXiv 1709.01507): (B, dim, H, W) -> the same."""

    def __init__(self, dim: int, divisor: int = 8) -> None:
        super().__init__()
        hidden = max(divisor, (dim // 4 + divisor // 2) // divisor * divisor)  # a quarter, rounded to the divisor
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = nn.ReLU()
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.gate = nn.Sigmoid()

    def init_for_scratch(self) -> None:
        # The gate starts at 0.95 instead of 0.5, with which every other block would halve its features.
        nn.init.constant_(self.fc2.get_parameter("bias"), 3.0)

    def forward(self, x: Tensor) -> Tensor:
        weights = x.mean((2, 3), keepdim=True)  # (B, dim, 1, 1)
        out: Tensor = x * self.gate(self.fc2(self.act(self.fc1(weights))))
        return out


class ChannelMixer(nn.Module):
    """1x1 convolution, GELU, 1x1 convolution as a residual: (B, dim, H, W) -> the same."""

    def __init__(self, dim: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, dim * mlp_ratio)
        self.act = nn.GELU()
        self.conv2 = ConvNorm(dim * mlp_ratio, dim)
        self.drop_path = DropPath(drop_path)
        nn.init.zeros_(self.conv2.norm.weight)  # as published: the mixer starts as the identity

    def init_for_scratch(self) -> None:
        nn.init.ones_(self.conv2.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.drop_path(run(x, self.conv1, self.act, self.conv2))
        return out


class RepViTBlock(nn.Module):
    """Token mixer, squeeze-and-excitation in every other block, channel mixer: (B, dim, H, W) -> the same."""

    def __init__(self, dim: int, squeeze: bool, mlp_ratio: int = 2, drop_path: float = 0.0) -> None:
        super().__init__()
        self.token_mixer = RepDepthwise(dim)
        self.squeeze = SqueezeExcite(dim) if squeeze else nn.Identity()
        self.channel_mixer = ChannelMixer(dim, mlp_ratio, drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.channel_mixer(self.squeeze(self.token_mixer(x)))
        return out


class Downsample(nn.Module):
    """Depthwise 3x3 of stride 2, 1x1 to the next width, channel mixer: "deeper downsampling" (paper, section 3.3).

    (B, in_channels, H, W) -> (B, dim, H / 2, W / 2).
    """

    def __init__(self, in_channels: int, dim: int, mlp_ratio: int = 2, drop_path: float = 0.0) -> None:
        super().__init__()
        self.depthwise = ConvNorm(in_channels, in_channels, 3, stride=2, groups=in_channels)
        self.pointwise = ConvNorm(in_channels, dim)
        self.channel_mixer = ChannelMixer(dim, mlp_ratio, drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.channel_mixer(run(x, self.depthwise, self.pointwise))
        return out


class RepViTBlocks(BlockRow):
    """A row of RepViT's blocks.

    With `squeeze`, every other block, starting with the first, has squeeze-and-excitation, as in all published
    variants.
    """

    options: ClassVar[Mapping[str, Option]] = {
        "squeeze": switch(True),
        "mlp_ratio": whole(2, 64),
        "drop_path": share(0.0),
    }

    def build_block(self, dim: int, index: int, options: Mapping[str, Any]) -> RepViTBlock:
        squeeze = options["squeeze"] and index % 2 == 0
        return RepViTBlock(dim, squeeze, options["mlp_ratio"], options["drop_path"])


class RepViT(StagedBackbone):
    """RepViT M0.6 to M2.3: image (B, 3, H, W) -> taps P2..P5, each (B, dims[i], H / 2^(i+2), W / 2^(i+2))."""

    family = "repvit"
    variants = VARIANTS
    block_rows = {"RepViTBlock": RepViTBlocks}
    input_convention = IMAGENET
    row_init = "scratch"

    def build_stem(self, config: RepViTConfig, in_channels: int) -> Stem:
        return Stem(in_channels, config.dims[0])

    def build_stages(self, config: RepViTConfig, drop_path_rate: float) -> Iterator[Stage]:
        rates = drop_path_rates(drop_path_rate, [len(blocks) for blocks in config.squeezes])
        in_channels: int | None = None
        reduction = 4
        for dim, squeezes, stage_rates in zip(config.dims, config.squeezes, rates, strict=True):
            downsample = None
            if in_channels is not None:
                downsample = Downsample(in_channels, dim, config.mlp_ratio, stage_rates[0])
            blocks = [
                RepViTBlock(dim, squeeze == "1", config.mlp_ratio, rate)
                for squeeze, rate in zip(squeezes, stage_rates, strict=True)
            ]
            yield Stage(blocks, channels=dim, reduction=reduction, downsample=downsample)
            in_channels, reduction = dim, reduction * 2


_SOURCE = "github.com/THU-MIG/RepViT"
_DISTILLED = "450 epochs, distilled"


def _official(variant: str, epochs: int, sha256: str | None = None) -> Release:
    """A file that the authors' README links to, at commit 298f420."""
    name = f"repvit_{variant}_distill_{epochs}e"
    url = f"https://{_SOURCE}/releases/download/v1.0/{name}.pth"
    return Release(name, url, variant=variant, sha256=sha256)


def _timm(variant: str, epochs: int) -> Release:
    """A file of timm 1.0.31; timm's m1, m2 and m3 are the paper's first version, another architecture."""
    name = f"repvit_{variant}.dist_{epochs}e_in1k"
    url = f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors"
    return Release(name, url, variant=variant, repo_id=f"timm/{name}")


_TRAINED_TWICE = ("m0_9", "m1_0", "m1_1", "m1_5", "m2_3")
_HOLOCRON = "b76537a20b8c47ef40c1b884bd88f4f3cae498b90f35c61d32da44c16c221443"
"""SHA-256 of M0.9's file, from frgfm/holocron, which compared the outputs of the file with the authors' code."""

RepViT.card = Card(
    title="RepViT",
    paper="2307.09283",
    repository=_SOURCE,
    licence="Apache-2.0",
    letters={"n": "m0_9", "s": "m1_0", "m": "m1_1", "l": "m1_5", "x": "m2_3"},
    figures={
        "m0_6": Figures(74.1, _SOURCE),
        "m0_9": Figures(79.1, _SOURCE, 5.1, 0.8, note=_DISTILLED),
        "m1_0": Figures(80.3, _SOURCE, 6.8, 1.1, note=_DISTILLED),
        "m1_1": Figures(81.2, _SOURCE, 8.2, 1.3, note=_DISTILLED),
        "m1_5": Figures(82.5, _SOURCE, 14.0, 2.3, note=_DISTILLED),
        "m2_3": Figures(83.7, _SOURCE, 22.9, 4.5, note=_DISTILLED),
    },
    releases=(  # for each variant, the most accurate first
        _official("m0_6", 300),
        *(_official(variant, 450, _HOLOCRON if variant == "m0_9" else None) for variant in _TRAINED_TWICE),
        *(_official(variant, 300) for variant in _TRAINED_TWICE),
        *(_timm(variant, epochs) for variant in _TRAINED_TWICE for epochs in (300, 450)),
    ),
    layouts="yolo_lightbackbones.checkpoints.layouts.repvit",
)

"""ParC-Net: a light CNN whose global blocks convolve circularly along whole rows and columns.

Paper: Zhang et al., "ParC-Net: Position Aware Circular Convolution with Merits from ConvNets and Transformer",
ECCV 2022, arXiv 2203.03952. Checked against outputs of the authors' implementation (hkzhang91/ParC-Net, commit
f6780d0); its code has no licence, and this is written from the paper. Images are BGR in 0..1, without mean and std.

Deviations, none of which changes an output at the square sizes that the published code takes:
- any height and width that are multiples of 32: kernels and position embeddings are resized to the map's real height
  and width, each on its own;
- a circular convolution is a matrix product with the kernel's circulant matrix instead of a depthwise convolution of
  the repeated map: forward and backward take 1.1 to 8 times less (2 CPU cores, maps of 20x20 to 80x80);
- the two norms of channel attention use their running statistics where a single image is trained on: each channel is
  one number there, and has no variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_lightbackbones import fusion, recording
from yolo_lightbackbones.backbone import Backbone, InputConvention, Stage, drop_path_rates
from yolo_lightbackbones.card import Card, Figures
from yolo_lightbackbones.circular import (
    Axis,
    FixedConv,
    circulant,
    circular_conv,
    resize,
    symbolic_circular_conv,
    symbolic_resize,
)
from yolo_lightbackbones.layers import BatchNorm2d, ConvNorm, DropPath


@dataclass(frozen=True)
class ParCNetConfig:
    """One ParC-Net (paper, section 3.3).

    The convolutional stages have one entry each in `conv_dims` and `conv_depths`, the first of them at half the
    image's size and part of the stem. The global stages have one entry each in `dims` (of the stage), `parc_dims` and
    `mlp_dims` (inside of its global blocks), `depths` and `lengths` (of the learned kernels and position embeddings,
    before they are resized to the map).
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
            raise ValueError(f"parc_dims {self.parc_dims} must be even: half the channels go along each axis first.")


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


class InvertedResidual(nn.Module):
    """MobileNetV2's block (arXiv 1801.04381): (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride)."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, expansion: int = 4, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        self.expand = ConvNorm(in_channels, hidden)
        self.depthwise = ConvNorm(hidden, hidden, 3, stride, groups=hidden)
        self.project = ConvNorm(hidden, out_channels)
        self.act = nn.SiLU()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.act(self.depthwise(self.act(self.expand(x)))))
        return x + self.drop_path(out) if self.residual else out


class Stem(nn.Module):
    """Convolution of stride 2 and the first, full-rate blocks: (B, C, H, W) -> (B, dim, H / 2, W / 2)."""

    def __init__(self, in_channels: int, stem_dim: int, kernel_size: int, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.conv = ConvNorm(in_channels, stem_dim, kernel_size, stride=2)
        self.act = nn.SiLU()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.act(self.conv(x)))
        return out


class CircularConv(recording.SizeBound):
    """Global circular convolution along one axis, depthwise (paper, section 3.1): (B, dim, H, W) -> the same.

    Every position sees its whole row or column, and no border: the map is taken to go on with its other end.
    """

    def __init__(self, dim: int, length: int, axis: Axis) -> None:
        super().__init__()
        self.axis: Axis = axis
        self.weight = nn.Parameter(torch.empty(dim, 1, *((length, 1) if axis == 2 else (1, length))))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # what a convolution of this shape starts with

    def forward(self, x: Tensor) -> Tensor:
        if self.any_size and recording.is_recording():
            return symbolic_circular_conv(x, self.weight, self.axis)
        return circular_conv(x, resize(self.weight, self.axis, int(x.shape[self.axis])), self.axis)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, length={max(self.weight.shape[2:])}, axis={'HW'[self.axis - 2]}"


class PositionEmbedding(recording.SizeBound):
    """Adds what a row or column starts from, since a circular convolution cannot tell where it is (paper, section 3.1).

    (B, dim, H, W) -> the same; the embedding varies along its axis alone.
    """

    no_weight_decay_names = ("weight",)

    def __init__(self, dim: int, length: int, axis: Axis) -> None:
        super().__init__()
        self.axis: Axis = axis
        self.weight = nn.Parameter(torch.empty(1, dim, *((length, 1) if axis == 2 else (1, length))))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        if self.any_size and recording.is_recording():
            return x + symbolic_resize(self.weight, self.axis, x)
        return x + resize(self.weight, self.axis, int(x.shape[self.axis]))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, length={max(self.weight.shape[2:])}, axis={'HW'[self.axis - 2]}"


class ParCBranch(fusion.Fusible):
    """Circular convolution along one axis, then the other, as a residual (paper, figure 3): (B, dim, H, W) -> the same.

    Args:
        dim: channels.
        length: of the learned kernels and position embeddings, before they are resized to the map.
        first: axis of the first convolution.
        position: whether position embeddings are added; a stage's first block does it for those behind it.
        drop_path: stochastic depth.
    """

    def __init__(self, dim: int, length: int, first: Axis, position: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        second: Axis = 3 if first == 2 else 2
        self.pos1 = PositionEmbedding(dim, length, first) if position else nn.Identity()
        self.norm = BatchNorm2d(dim)
        self.conv1 = CircularConv(dim, length, first)
        self.pos2 = PositionEmbedding(dim, length, second) if position else nn.Identity()
        self.conv2 = CircularConv(dim, length, second)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv1(self.norm(self.pos1(x)))
        branch = self.conv2(self.pos2(branch))
        out: Tensor = x + self.drop_path(branch)
        return out

    def fold(self) -> FoldedParCBranch:
        return FoldedParCBranch(self)


class FoldedParCBranch(recording.SizeBound):
    """A `ParCBranch` for inference, two circular convolutions and what is added: (B, dim, H, W) -> the same.

    The norm's scale is folded into the first kernel; its shift and the position embeddings are carried through the
    convolutions to what is added behind them, which is exact where there are no zero borders. All of that depends on
    the size of the map: it is computed when the first map of a size comes in and is constant from then on, until the
    parameters change. An exporter meets constants as well, whether or not the module has run before; a compiler meets
    the parameters, since what it compiles has to follow them.
    """

    shift2: nn.Parameter | None
    _sources: tuple[Tensor | None, ...]
    _known: _Known | None

    def __init__(self, branch: ParCBranch) -> None:
        super().__init__()
        for conv in (branch.conv1, branch.conv2):
            fusion.expect(conv, CircularConv)
        self.axes = branch.conv1.axis, branch.conv2.axis
        self.kernel1 = branch.conv1.weight
        self.kernel2 = branch.conv2.weight
        norm: nn.Module = branch.norm
        if isinstance(norm, nn.Identity):
            shift = fusion.exact(self.kernel1).new_zeros(1, len(self.kernel1), 1, 1)
            scale = torch.ones_like(shift)
        else:
            scale, shift = (values.view(1, -1, 1, 1) for values in fusion.batchnorm_affine(norm))
        self.scale1 = nn.Parameter(scale.to(self.kernel1))
        if not isinstance(branch.pos1, nn.Identity):
            fusion.expect(branch.pos1, PositionEmbedding)
            shift = scale * fusion.exact(branch.pos1.get_parameter("weight")) + shift
        # of the first convolution's input: as long as the kernels along its axis, or constant
        self.shift1 = nn.Parameter(shift.to(self.kernel1))
        self.shift2 = None
        if not isinstance(branch.pos2, nn.Identity):
            fusion.expect(branch.pos2, PositionEmbedding)
            self.shift2 = branch.pos2.get_parameter("weight")
        self._settle()

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_dynamo_compiling() or (self.any_size and recording.is_recording()):
            return x + self._symbolic_branch(x)
        out = x
        for conv in self._convs(int(x.shape[2]), int(x.shape[3])):
            out = conv(out, as_matrix=not recording.is_recording() or self.records_matrix(conv.length))
        return x + out

    def _symbolic_branch(self, x: Tensor) -> Tensor:
        """What is added to `x`, written in operations that hold for any size of the map when they are recorded."""
        x = x * self.scale1 + symbolic_resize(self.shift1, self.axes[0], x)
        x = symbolic_circular_conv(x, self.kernel1, self.axes[0])
        if self.shift2 is not None:
            x = x + symbolic_resize(self.shift2, self.axes[1], x)
        return symbolic_circular_conv(x, self.kernel2, self.axes[1])

    def _convs(self, height: int, width: int) -> tuple[FixedConv, FixedConv]:
        """The convolutions for maps of this size."""
        if recording.is_recording():  # it follows one thread: what another one computes is a constant to it
            with ThreadPoolExecutor(max_workers=1) as aside:
                return aside.submit(self._known_convs, height, width).result()
        present = self._folded_parameters()
        if any(one is not other for one, other in zip(present, self._sources, strict=True)):
            return _fixed_convs(self.axes, present, height, width)  # lent for one call, as by torch.func
        return self._known_convs(height, width)

    def _known_convs(self, height: int, width: int) -> tuple[FixedConv, FixedConv]:
        """The convolutions for maps of this size, computed once for each new size and each change of the parameters."""
        known = self._known  # once: another thread may be at work on another size
        if known is None or known.size != (height, width) or not known.is_of(self._sources):
            with torch.inference_mode(False), torch.no_grad():
                convs = _fixed_convs(self.axes, self._sources, height, width)
                self._known = known = _Known((height, width), _state(self._sources), _values(self._sources), convs)
        return known.convs

    # --- which parameters the convolutions are of -----------------------------------------------------------------

    def _folded_parameters(self) -> tuple[Tensor | None, ...]:
        return tuple(self._parameters.get(name) for name in ("kernel1", "scale1", "shift1", "kernel2", "shift2"))

    def _settle(self) -> None:
        """Remember the parameters, and forget what was computed from earlier ones.

        torch.export puts tensors without values in their place while it runs `forward`, so that these have to be known
        from elsewhere. PyTorch counts the changes of ordinary tensors only: those made in inference mode are copied.
        """
        with torch.inference_mode(False), torch.no_grad():
            for name, parameter in self._parameters.items():
                if parameter is not None and parameter.is_inference():
                    self._parameters[name] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
        self._sources = self._folded_parameters()
        self._known = None

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        super().register_parameter(name, param)
        self._settle()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FoldedParCBranch:
        with torch.inference_mode(False):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._settle()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": None, "_sources": ()}  # no part of a checkpoint or of a copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._settle()


@dataclass(frozen=True)
class _Known:
    """Convolutions for maps of one size, and the parameters that they were computed from."""

    size: tuple[int, int]
    state: tuple[object, ...]
    values: tuple[Tensor, ...]
    convs: tuple[FixedConv, FixedConv]

    def is_of(self, sources: Sequence[Tensor | None]) -> bool:
        """Whether the parameters are as they were; on an accelerator, changes through `.data` go unseen."""
        if self.state != _state(sources):
            return False
        present = (tensor for tensor in sources if tensor is not None)
        return all(map(torch.equal, self.values, present)) if self.values else True


def _state(sources: Sequence[Tensor | None]) -> tuple[object, ...]:
    """A key that differs after every change of the parameters that PyTorch counts."""
    return tuple(None if tensor is None else (tensor._version, tensor.dtype, tensor.device) for tensor in sources)


def _values(sources: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Copies where comparing with them takes microseconds; an accelerator would have to be waited for."""
    return tuple(tensor.detach().clone() for tensor in sources if tensor is not None and tensor.device.type == "cpu")


def _fixed_convs(
    axes: tuple[Axis, Axis], sources: Sequence[Tensor | None], height: int, width: int
) -> tuple[FixedConv, FixedConv]:
    """The two convolutions of a `FoldedParCBranch` with these parameters for maps of this size."""
    kernel1, scale1, shift1, kernel2, shift2 = sources
    assert kernel1 is not None
    assert scale1 is not None
    assert shift1 is not None
    assert kernel2 is not None
    like, sizes = kernel1, {2: height, 3: width}
    axis1, axis2 = axes
    kernel1 = resize(fusion.exact(kernel1), axis1, sizes[axis1])
    kernel2 = resize(fusion.exact(kernel2), axis2, sizes[axis2])
    shift1 = fusion.exact(shift1)
    offset1 = None
    if shift2 is None and shift1.numel() == len(kernel1):
        # a constant is multiplied by the sum of a kernel; it goes through both of them
        offset2 = shift1 * (kernel1.sum((2, 3)) * kernel2.sum((2, 3))).view(1, -1, 1, 1)
    else:
        offset1 = circular_conv(resize(shift1, axis1, sizes[axis1]), kernel1, axis1)
        shift2 = torch.zeros_like(shift1[:, :, :1, :1]) if shift2 is None else fusion.exact(shift2)
        offset2 = circular_conv(resize(shift2, axis2, sizes[axis2]), kernel2, axis2)
    kernel1 = kernel1 * fusion.exact(scale1).view(-1, 1, 1, 1)
    convs = []
    for axis, kernel, offset in ((axis1, kernel1, offset1), (axis2, kernel2, offset2)):
        matrix = circulant(kernel).to(like)
        matrix = (matrix if axis == 2 else matrix.transpose(1, 2)).contiguous()
        added = None if offset is None else offset.to(like)
        convs.append(FixedConv(axis, kernel.to(like), matrix, added))
    return convs[0], convs[1]


class PooledBatchNorm2d(BatchNorm2d):
    """Kept because pickles of version 0.1.0 name it; `ChannelAttention` now does its work."""


class ChannelAttention(nn.Module):
    """Weighs the channels by what the whole map holds (paper, section 3.2): (B, dim, H, W) -> the same."""

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
    """The layer on pooled maps (B, C, 1, 1); in training on one image, its norm uses its running statistics.

    A SyncBatchNorm that has other processes to ask sees more than one image.
    """
    norm: nn.Module | None = getattr(layer, "norm", None)
    asks_others = isinstance(norm, nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized()
    if (
        isinstance(layer, ConvNorm)
        and isinstance(norm, nn.modules.batchnorm._BatchNorm)
        and norm.training
        and not asks_others
        and x.shape[0] == 1  # last: in a recording it would become a constant
    ):
        x = layer.conv(x)
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    out: Tensor = layer(x)
    return out


class Mlp(fusion.Fusible):
    """Norm, 1x1, Hardswish, 1x1, dropout: (B, dim, H, W) -> the same."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm: nn.Module = BatchNorm2d(dim)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = nn.Hardswish()
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.fc2(self.act(self.fc1(self.norm(x)))))
        return out

    def fold(self) -> Mlp:
        self.fc1 = fusion.fold_norm_before(self.fc1, self.norm)
        self.norm = nn.Identity()
        return self


class ParCBlock(nn.Module):
    """Position aware circular convolutions on halves of the channels, then an MLP with channel attention.

    MetaFormer-like (paper, section 3.2): (B, dim, H, W) -> the same.
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
    """Local features, global blocks on top of them, both merged (paper, figure 2): (B, dim, H, W) -> the same."""

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
        features = self.blocks(self.pointwise(self.act(self.local(x))))
        features = self.act(self.project(self.norm(features)))
        out: Tensor = self.act(self.merge(torch.cat((features, x), 1)))
        return out

    def fold(self) -> LocalGlobal:
        assert isinstance(self.project, nn.Conv2d), "children fold first"
        self.project = fusion.fold_norm_before(self.project, self.norm)
        self.norm = nn.Identity()
        return self


class ParCNet(Backbone):
    """ParC-Net XS, S, H: image (B, 3, H, W) -> taps P2..P5, each (B, channels, H / 2^(i+2), W / 2^(i+2)).

    P2 has the channels of the last convolutional stage, P3..P5 have `dims`.
    """

    family = "parcnet"
    variants = VARIANTS
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

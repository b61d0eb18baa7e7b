"""The contract every backbone fulfils: an image goes in, one feature map per tap comes out, shallow to deep.

    image (B, C, H, W) in 0..1 RGB -> input norm -> stem -> stages -> [P2, P3, P4, P5]

A family derives from `Backbone`, lists its variants, and builds a stem and stages; each `Stage` says what comes out of
it, so that taps, channels and reductions are derived and never a second table.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from yolo_lightbackbones import fusion, layers, recording
from yolo_lightbackbones.messages import quoted

TAPS = ("P2", "P3", "P4", "P5")
"""All taps of a four-stage backbone; P<k> has reduction 2^k."""

InputNormMode = Literal["auto", "none"]
INPUT_NORM_MODES: tuple[InputNormMode, ...] = ("auto", "none")

InitMode = Literal["published", "scratch"]
INIT_MODES: tuple[InitMode, ...] = ("published", "scratch")

TapNormMode = Literal["none", "batch"]
TAP_NORM_MODES: tuple[TapNormMode, ...] = ("none", "batch")
TAP_NORMS = "tap_norms"
"""What the names of their parameters begin with; no published file has any."""

BLOCKS_BEHIND_TAP = "blocks_behind_tap"
"""Name of a stage's tap position in a state dict; the entry is there only if it is not 0."""


@dataclass(frozen=True)
class InputConvention:
    """How a family's published weights expect an RGB image in 0..1 to be prepared."""

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    bgr: bool = False


IMAGENET = InputConvention(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class InputNorm(nn.Module):
    """Turns the RGB image in 0..1 that Ultralytics feeds into what the published weights were trained on.

    `mean` and `std` are in the channel order that comes out. They are constants, not weights: no checkpoint holds them,
    and whatever happens to the module's memory, they are made anew from `values`.
    """

    mean: Tensor | None
    std: Tensor | None
    values: dict[str, tuple[float, ...] | None]

    def __init__(self, convention: InputConvention) -> None:
        super().__init__()
        self.bgr = convention.bgr
        self.values = {"mean": convention.mean, "std": convention.std}
        for name in self.values:
            self.register_buffer(name, None, persistent=False)
        default = torch.empty(0)
        self._fill(default.dtype, default.device)

    def forward(self, x: Tensor) -> Tensor:
        if self.bgr:
            x = x.flip(1)
        if self.mean is not None:
            x = x - self.mean
        if self.std is not None:
            x = x / self.std
        return x

    def fold_into(self, conv: nn.Conv2d) -> tuple[nn.Module, nn.Conv2d]:
        """What is left of this norm, and the first convolution with the rest folded into its weights.

        Channel order and std always fold. The mean folds only into a convolution without padding: a padded one sees
        zeros *after* normalisation, which is a border of mean-coloured pixels before it.
        """
        mean, std = (
            None if values is None else fusion.exact(conv.weight).new_tensor(values) for values in self.values.values()
        )
        if std is not None:
            conv = fusion.scale_inputs(conv, 1 / std)
        if mean is not None and conv.padding == (0, 0):
            conv = fusion.scale_inputs(conv, torch.ones_like(mean), -mean)
            mean = None
        if self.bgr:
            conv = fusion.permute_inputs(conv, list(reversed(range(conv.in_channels))))
            mean = None if mean is None else mean.flip(0)
        if mean is None:
            return nn.Identity(), conv
        self.bgr, self.values = False, {"mean": tuple(mean.tolist()), "std": None}
        self._fill(conv.weight.dtype, conv.weight.device)
        return self, conv

    def _fill(self, dtype: torch.dtype, device: torch.device) -> None:
        for name, values in self.values.items():
            tensor = None if values is None else torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1)
            setattr(self, name, tensor)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> InputNorm:
        """Follow to a device and dtype; a rounded or emptied constant is not kept."""
        before = list(self.buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for old, new in zip(before, list(self.buffers()), strict=True):
            if new is not old:
                self._fill(new.dtype, new.device)
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "values" in state:
            return
        self.values = {}
        for name in ("mean", "std"):  # pickled before there were any; best.pt files have been through half precision
            held = self._buffers[name]
            published: tuple[float, ...] = getattr(IMAGENET, name)
            given = None if held is None else tuple(held.flatten().tolist())
            near = given is not None and all(abs(a - b) < 1e-3 for a, b in zip(given, published, strict=True))
            self.values[name] = published if near else given
        for held in list(self.buffers()):
            self._fill(held.dtype, held.device)


class Stage(nn.Module):
    """Optional downsampling, then blocks; says what comes out of it.

    Args:
        blocks: modules that keep (B, channels, H, W).
        channels: channels of the output.
        reduction: image side over output side, a power of two.
        downsample: what goes from the previous stage to this one; None where the stem does it.
    """

    def __init__(
        self, blocks: Iterable[nn.Module], *, channels: int, reduction: int, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.channels = channels
        self.reduction = reduction
        self.downsample = nn.Identity() if downsample is None else downsample
        self.blocks = nn.Sequential(*blocks)
        self.blocks_behind_tap = 0
        """How many of the last blocks the tap does not see. Not 0 where an implementation counts a stage's last blocks
        to the downsampling behind it; see `checkpoints.rules.Layout`. A state dict has it where it is not 0."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the tap gives, and what the next stage gets."""
        tapped = x = self.downsample(x)
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if number <= len(self.blocks) - self.blocks_behind_tap:
                tapped = x
        return tapped, x

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.blocks_behind_tap:
            destination[prefix + BLOCKS_BEHIND_TAP] = torch.tensor(self.blocks_behind_tap, device="cpu")

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        """Take the place of the tap from a state dict that has this stage; there, a missing one means 0."""
        given = state_dict.pop(prefix + BLOCKS_BEHIND_TAP, None)
        super()._load_from_state_dict(state_dict, prefix, *others)
        if given is not None or all(prefix + name in state_dict for name, _ in self.named_parameters()):
            self.blocks_behind_tap = 0 if given is None else self.check_blocks_behind_tap(given)

    def check_blocks_behind_tap(self, given: Tensor) -> int:
        """The number in a state dict's `blocks_behind_tap`.

        Raises:
            ValueError: for anything but one whole number from 0 to the number of blocks.
        """
        integer = given.numel() == 1 and not given.is_floating_point() and not given.is_complex()
        if not integer or not 0 <= int(given) <= len(self.blocks):
            raise ValueError(
                f"The weights have {quoted(given)} for {BLOCKS_BEHIND_TAP}; it must be one whole number from 0 to "
                f"{len(self.blocks)}, how many of a stage's last blocks the tap does not see."
            )
        return int(given)


TAP_SHARE = 1 / 16
"""The factor that a tap is multiplied by in front of its norm.

The norm's statistics are of that share of the map. Checkpoints have them in half precision, which ends at a variance of
65504, a standard deviation of 256, and sums that nothing normalises come near that within a few hundred updates.
"""


class TapNorm(layers.BatchNorm2d):
    """BatchNorm behind a tap, of the `TAP_SHARE` of it. Together they are the identity until they see a batch."""

    def reset_running_stats(self) -> None:
        super().reset_running_stats()
        assert self.running_var is not None
        self.running_var.fill_(TAP_SHARE**2 - self.eps)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> TapNorm:
        """Start anew where memory is given to a norm without any: files of published weights do not fill it."""
        was_meta = self.weight.is_meta
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if was_meta and not self.weight.is_meta:
            self.reset_parameters()
        return self


class TapNorms(nn.ModuleDict):
    """Tap -> its norm, of any class that a conversion has put there; a convolution after folding.

    Weights for taps that have no norm here may be loaded, and are left out; norms without weights keep their values.
    """

    def norm(self, tap: str, x: Tensor) -> Tensor:
        """The feature map of this tap (B, C, H, W), normalised if the tap has a norm."""
        if tap not in self:
            return x
        norm = self[tap]
        out: Tensor = norm(x if isinstance(norm, nn.Conv2d) else x * TAP_SHARE)
        return out

    def fold(self) -> None:
        """Make every norm a depthwise 1x1 convolution, the share included."""
        for tap, norm in self.items():
            conv = fusion.batchnorm_to_conv(norm)
            self[tap] = fusion.scale_inputs(conv, conv.weight.new_full((conv.in_channels,), TAP_SHARE))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *_: Any) -> None:
        """Fill in the present values of norms of which the weights to be loaded have none, as published ones.

        Nothing else: it has no tensors of its own, and calls none unexpected.
        """
        for tap, norm in self.items():
            if not any(key.startswith(f"{prefix}{tap}.") for key in state_dict):
                state_dict.update(norm.state_dict(prefix=f"{prefix}{tap}."))


class Backbone(fusion.Fusible):
    """Base of all families: takes an image (B, C, H, W), returns a list with one tensor per tap, shallow to deep.

    A family sets the class attributes and implements `build_stem` and `build_stages`.

    Args:
        variant: a short or full variant name (`"xxs"`, `"edgevit_xxs"`), or a config of the family.
        in_channels: channels of the image. For anything but 3 there is no published convention: `"auto"` is `"none"`.
        taps: which stage outputs to return, shallow to deep; stages behind the last of them are not built.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0 at the first; None: the variant's.
        input_norm: `"auto"` applies the family's published input convention, `"none"` takes the image as it is.
        init: what the random weights are: `"published"`, or `"scratch"`, with which detectors learn sooner: PyTorch's
            own, gates of squeeze-and-excitation that start open, and layer scales of 0.1.
        normed_taps: which of the taps get a BatchNorm behind them, which no published implementation has: for necks
            that join a tap with maps of their own, beside which a sum that nothing normalises is many times larger.

    Raises:
        ValueError: for an unknown variant, tap, input norm, init or a drop path rate outside 0..1.
    """

    family: ClassVar[str]
    """Name of the family, the prefix of its variants: `"edgevit"`."""
    variants: ClassVar[Mapping[str, Any]]
    """Short variant name -> config."""
    input_convention: ClassVar[InputConvention] = InputConvention()
    row_init: ClassVar[InitMode] = "published"
    """The `init` of a backbone row in a model YAML that gives none: which of them a detector learns faster with from
    scratch, see docs/accuracy.md."""
    row_tap_norm: ClassVar[TapNormMode] = "none"
    """The `tap_norm` of such a row, whether the taps that are used are normed: `"batch"` where a stage's output is a
    sum that nothing has normalised."""
    size_divisibility: int = 32
    """Height and width of the image must be multiples of this."""

    def __init__(  # noqa: PLR0917 - Ultralytics' parser passes a row's arguments by position
        self,
        variant: Any,
        in_channels: int = 3,
        taps: Sequence[str] = TAPS,
        drop_path_rate: float | None = None,
        input_norm: InputNormMode = "auto",
        init: InitMode = "published",
        normed_taps: Sequence[str] = (),
    ) -> None:
        super().__init__()
        config = self.variants[self.resolve_variant(variant)] if isinstance(variant, str) else variant
        rate = getattr(config, "drop_path_rate", 0.0) if drop_path_rate is None else drop_path_rate
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop_path_rate is {rate}; it must be at least 0 and below 1.")
        if input_norm not in INPUT_NORM_MODES:
            raise ValueError(f"input_norm is {input_norm!r}; it must be one of {', '.join(INPUT_NORM_MODES)}.")
        if init not in INIT_MODES:
            raise ValueError(f"init is {init!r}; it must be one of {', '.join(INIT_MODES)}.")
        if not set(normed_taps) <= set(taps):
            raise ValueError(f"normed_taps are {tuple(normed_taps)!r}; they must be among the taps, {', '.join(taps)}.")

        normalised = input_norm == "auto" and in_channels == 3 and self.input_convention != InputConvention()
        self.input_norm: nn.Module = InputNorm(self.input_convention) if normalised else nn.Identity()
        # Registered before the stages: Ultralytics reads the number of image channels off the first parameter it finds.
        self.stem = self.build_stem(config, in_channels)
        self.stages = nn.ModuleList(self._needed_stages(tuple(taps), self.build_stages(config, rate)))

        if init == "scratch":
            layers.init_for_scratch(self)
        else:
            self.init_as_published()

        outputs = {_level(stage): stage for stage in self._stages()}
        self.taps = tuple(taps)
        self.out_channels = tuple(outputs[tap].channels for tap in self.taps)
        self.reductions = tuple(outputs[tap].reduction for tap in self.taps)
        self.tap_norms = TapNorms({tap: TapNorm(outputs[tap].channels) for tap in taps if tap in normed_taps})

    def build_stem(self, config: Any, in_channels: int) -> nn.Module:
        """From the normalised image to the input of the first stage; its first parameter is a convolution's weight."""
        raise NotImplementedError(f"{type(self).__name__} does not implement build_stem().")

    def build_stages(self, config: Any, drop_path_rate: float) -> Iterator[Stage]:
        """Yield the stages shallow to deep, each built only when asked for."""
        raise NotImplementedError(f"{type(self).__name__} does not implement build_stages().")

    def init_as_published(self) -> None:
        """Draw the random weights as the authors do, where the layers' own constructors have not done so."""

    def forward(self, x: Tensor) -> list[Tensor]:
        self._check_size(x)
        x = self.stem(self.input_norm(x))
        features = []
        for stage in self._stages():
            tapped, x = stage(x)
            if (level := _level(stage)) in self.taps:
                features.append(self.tap_norms.norm(level, tapped))
        return features

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if TAP_NORMS not in self._modules:  # pickled before there were any
            self.tap_norms = TapNorms()

    def folds(self) -> list[nn.Module]:
        return [*self.input_norm.modules(), self._first_conv()[1], *self.tap_norms.modules()]

    def fold(self) -> Backbone:
        if isinstance(self.input_norm, InputNorm):
            name, conv = self._first_conv()
            self.input_norm, conv = self.input_norm.fold_into(conv)
            if name:
                self.stem.set_submodule(name, conv)
            else:
                self.stem = conv
        self.tap_norms.fold()
        return self

    def _first_conv(self) -> tuple[str, nn.Conv2d]:
        """The stem's first convolution, and its name in the stem."""
        return next((name, m) for name, m in self.stem.named_modules() if isinstance(m, nn.Conv2d))

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should spare besides norms and biases, as in timm.

        Every module of a family lists its own in the class attribute `no_weight_decay_names`.
        """
        return layers.no_weight_decay(self)

    @classmethod
    def resolve_variant(cls, name: str) -> str:
        """The short name of a variant given as `m0_9`, `m0.9`, or `repvit_m0_9`.

        Raises:
            ValueError: for an unknown name, with the closest match.
        """
        short = name.strip().lower().replace(".", "_").removeprefix(f"{cls.family}_")
        if short not in cls.variants:
            # timm names the training behind the variant: m0_9.dist_450e_in1k
            close = sorted((v for v in cls.variants if short.startswith(f"{v}_")), key=len, reverse=True)
            close = close or difflib.get_close_matches(short[:200], cls.variants, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            allowed = ", ".join(cls.variants)
            raise ValueError(f"Unknown variant {quoted(name)} of {cls.__name__}.{hint} Allowed: {allowed}.")
        return short

    def _stages(self) -> Iterator[Stage]:
        return (cast(Stage, stage) for stage in self.stages)

    def _needed_stages(self, taps: tuple[str, ...], stages: Iterator[Stage]) -> Iterator[Stage]:
        """Take stages until the last tap is there."""
        levels: list[str] = []
        while not levels or not set(taps) <= set(levels):
            stage = next(stages, None)
            if stage is None:
                unknown = [tap for tap in taps if tap not in levels]
                raise ValueError(
                    f"{type(self).__name__} has no tap {', '.join(map(repr, unknown))}. Allowed: {', '.join(levels)}."
                )
            levels.append(_level(stage))
            yield stage
        if not taps or list(taps) != [level for level in levels if level in taps]:
            raise ValueError(
                f"taps are {taps!r}; list at least one, each once, shallow to deep, out of {', '.join(levels)}."
            )

    def _check_size(self, x: Tensor) -> None:
        if recording.is_recording() or not isinstance(x, Tensor):  # torch.fx traces with a proxy
            return  # sizes may be symbolic there; the exporters round sizes up to the stride themselves
        divisor = self.size_divisibility
        height, width = x.shape[-2:]
        if height % divisor or width % divisor:
            fit_h, fit_w = (math.ceil(side / divisor) * divisor for side in (height, width))
            raise ValueError(
                f"The image is {height} x {width} (height x width); {type(self).__name__} needs multiples of "
                f"{divisor}. Pad or resize it, for example to {fit_h} x {fit_w}."
            )


def _level(stage: Stage) -> str:
    return f"P{stage.reduction.bit_length() - 1}"

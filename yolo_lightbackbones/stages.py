"""The skeleton that the families of this package share.

    image (B, C, H, W) in 0..1 RGB -> input norm -> stem -> stages -> [P2, P3, P4, P5] -> tap norms

A family derives from `StagedBackbone`, lists its variants, and builds a stem and stages. Each `Stage` knows the
channels and the reduction of its output. Taps, channels and reductions are derived from the stages; there is no second
table.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from yolo_lightbackbones import fusion, layers
from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.input_norm import InputConvention, InputNorm
from yolo_lightbackbones.inspection import Inspectable, Part
from yolo_lightbackbones.messages import quoted
from yolo_lightbackbones.options import FURTHER_OPTIONS, ROW_OPTIONS, Option, Options
from yolo_lightbackbones.tap_norms import TAP_NORMS, TapNorm, TapNorms

BLOCKS_BEHIND_TAP = "blocks_behind_tap"
"""Name of the state dict entry with a stage's tap position; the entry exists only if the position is not 0."""


class Stage(nn.Module):
    """One stage of a backbone: optional downsampling, then blocks.

    Args:
        blocks: modules that keep the shape (B, channels, H, W).
        channels: channels of the output.
        reduction: image side divided by output side, a power of two.
        downsample: module between the previous stage and the blocks; None if the stem has downsampled already.
    """

    checkpoint = False
    """Whether training keeps only the inputs of downsampling and blocks for the backward pass."""

    def __init__(
        self, blocks: Iterable[nn.Module], *, channels: int, reduction: int, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.channels = channels
        self.reduction = reduction
        self.downsample = nn.Identity() if downsample is None else downsample
        self.blocks = nn.Sequential(*blocks)
        self.blocks_behind_tap = 0
        """Number of blocks at the end of the stage that come after the tap. It is not 0 for weights of implementations
        in which these blocks belong to the next downsampling; see `checkpoints.rules.Layout`."""

    @property
    def tap(self) -> str:
        """Name of the stage's feature map: P<k> for a reduction of 2^k."""
        return f"P{self.reduction.bit_length() - 1}"

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the feature map of the tap, and the input of the next stage."""
        tapped = x = _run(self.downsample, x, self.checkpoint)
        for number, block in enumerate(self.blocks, start=1):
            x = _run(block, x, self.checkpoint)
            if number <= len(self.blocks) - self.blocks_behind_tap:
                tapped = x
        return tapped, x

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.blocks_behind_tap:
            destination[prefix + BLOCKS_BEHIND_TAP] = torch.tensor(self.blocks_behind_tap, device="cpu")

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        """Load the tap position from a state dict that has this stage; if the position is missing there, it is 0."""
        given = state_dict.pop(prefix + BLOCKS_BEHIND_TAP, None)
        super()._load_from_state_dict(state_dict, prefix, *others)
        if given is not None or all(prefix + name in state_dict for name, _ in self.named_parameters()):
            self.blocks_behind_tap = 0 if given is None else self.check_blocks_behind_tap(given)

    def check_blocks_behind_tap(self, given: Tensor) -> int:
        """Check the value of `blocks_behind_tap` in a state dict, and return it as a number.

        Raises:
            ValueError: if it is not one whole number from 0 to the number of blocks.
        """
        integer = given.numel() == 1 and not given.is_floating_point() and not given.is_complex()
        if not integer or not 0 <= int(given) <= len(self.blocks):
            raise ValueError(
                f"The weights have {quoted(given)} for {BLOCKS_BEHIND_TAP}; it must be one whole number from 0 to "
                f"{len(self.blocks)}, how many of a stage's last blocks the tap does not see."
            )
        return int(given)


class StagedBackbone(Backbone, fusion.Fusible):
    """A backbone with a stem and stages; a family implements `build_stem` and `build_stages`.

    A family that has variants with a single stage takes the option `pyramid` into its `row_options`.

    Args:
        variant: a short or full variant name (`"xxs"`, `"edgevit_xxs"`), or a config of the family.
        options: the options of the backbone. They can also be given by name: `EdgeViT("xxs", taps=("P3",))`.

    Raises:
        TypeError: for an unknown option, and for options given both as a value and by name.
        ValueError: for an unknown variant, for a tap that is not on offer, and for a value that `Options` refuses.
    """

    pyramid: layers.SimpleFeaturePyramid | None
    row_options: ClassVar[Mapping[str, Option]] = {**ROW_OPTIONS, "checkpoint": FURTHER_OPTIONS["checkpoint"]}
    checkpoint = False
    """Whether training keeps only the inputs of the stem, of downsampling and of blocks for the backward pass.

    The last of several stages keeps its maps: they are small, and its blocks cost as much to run again as others."""

    def __init__(self, variant: Any, options: Options | None = None, **named: Any) -> None:
        super().__init__()
        options = Options.of(options, named)
        config = self.variants[self.resolve_variant(variant)] if isinstance(variant, str) else variant
        rate = getattr(config, "drop_path_rate", 0.0) if options.drop_path_rate is None else options.drop_path_rate
        ROW_OPTIONS["drop_path_rate"].check("drop_path_rate", rate)

        prepared = options.input_norm == "auto" and options.in_channels == 3
        convention = self.input_convention if prepared else InputConvention()
        self.input_norm: nn.Module = nn.Identity() if convention == InputConvention() else InputNorm(convention)
        # The stem comes first: Ultralytics reads the number of image channels from the first parameter that it finds.
        self.stem = self.build_stem(config, options.in_channels)
        pyramid = options.pyramid == "simple" and "pyramid" in self.row_options
        self.stages = nn.ModuleList(_needed(self.build_stages(config, rate), None if pyramid else options.taps))
        offered = {stage.tap: stage.channels for stage in self._stages()}
        if pyramid:
            known = isinstance(variant, str)
            name = f"{self.family}_{self.resolve_variant(variant)}" if known else type(self).__name__
            reduction = layers.check_plain(name, [stage.reduction for stage in self._stages()])
            (dim,), offered = offered.values(), layers.pyramid_taps()
        self.set_taps(offered, options)
        self.pyramid = layers.SimpleFeaturePyramid(dim, reduction, self.taps) if pyramid else None

        if options.init == "scratch":
            layers.init_for_scratch(self)
        else:
            self.init_as_published()
        self.tap_norms = TapNorms({tap: TapNorm(offered[tap]) for tap in self.taps if tap in options.normed_taps})
        if options.checkpoint:
            self.checkpoint = True
            for stage in self._stages():
                stage.checkpoint = len(self.stages) == 1 or stage.reduction < self.size_divisibility

    def build_stem(self, config: Any, in_channels: int) -> nn.Module:
        """Build the stem: normalised image -> input of the first stage. Its first parameter must be a conv weight."""
        raise NotImplementedError(f"{type(self).__name__} does not implement build_stem().")

    def build_stages(self, config: Any, drop_path_rate: float) -> Iterator[Stage]:
        """Yield the stages, shallow to deep; each is built only when it is requested."""
        raise NotImplementedError(f"{type(self).__name__} does not implement build_stages().")

    def init_as_published(self) -> None:
        """Initialise the weights as the authors do, if the constructors of the layers have not done so already."""

    def forward(self, x: Tensor) -> list[Tensor]:
        self.check_size(x)
        x = _run(self.stem, self.input_norm(x), self.checkpoint)
        features = []
        for stage in self._stages():
            tapped, x = stage(x)
            if stage.tap in self.taps:
                features.append(tapped)
        if self.pyramid is not None:
            features = self.pyramid(x)
        return [self.tap_norms.norm(tap, feature) for tap, feature in zip(self.taps, features, strict=True)]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if TAP_NORMS not in self._modules:  # from a pickle that is older than tap norms
            self.tap_norms = TapNorms()
        if not hasattr(self, layers.PYRAMID):  # from a pickle that is older than pyramids
            self.pyramid = None

    def _stages(self) -> Iterator[Stage]:
        return (cast(Stage, stage) for stage in self.stages)

    # --- folding ------------------------------------------------------------------------------------------------------

    def folds(self) -> list[nn.Module]:
        return [*self.input_norm.modules(), self._first_conv()[1], *self.tap_norms.modules()]

    def fold(self) -> StagedBackbone:
        if isinstance(self.input_norm, InputNorm):
            name, conv = self._first_conv()
            self.input_norm, conv = self.input_norm.fold_into(conv)
            self.set_submodule(name, conv)
        self.tap_norms.fold()
        return self

    def _first_conv(self) -> tuple[str, nn.Conv2d]:
        found = self.image_conv()
        assert found is not None, "a stem begins with a convolution"
        return found

    # --- for tables, transfers and checkpoints ------------------------------------------------------------------------

    def fold_input(self) -> tuple[nn.Module, nn.Conv2d]:
        norm, (_, conv) = self.input_norm, self._first_conv()
        return copy.deepcopy(norm).fold_into(conv) if isinstance(norm, InputNorm) else (norm, conv)

    def applied_convention(self) -> InputConvention:
        norm = self.input_norm
        return replace(self.input_convention, bgr=norm.bgr) if isinstance(norm, InputNorm) else InputConvention()

    def parts(self) -> list[Part]:
        """List stem and stages, shallow to deep, and the norms behind the taps."""
        stages = [
            Part(
                f"stages.{number}",
                f"stage {number + 1}",
                len(stage.blocks),
                stage.channels,
                stage.reduction,
                tapped=self.pyramid is None,
            )
            for number, stage in enumerate(self._stages())
        ]
        pyramid = [
            Part(f"{layers.PYRAMID}.{tap}", f"pyramid {tap}", None, channels, reduction)
            for tap, channels, reduction in zip(self.taps, self.out_channels, self.reductions, strict=True)
            if self.pyramid is not None
        ]
        norms = [Part(f"{TAP_NORMS}.{tap}", "tap norms") for tap in self.tap_norms]
        return [Part("stem", "stem"), *stages, *pyramid, *norms]

    @classmethod
    def stage_of(cls, name: str) -> int:
        match = re.match(r"stages\.([0-9]{1,3})(\.|$)", name)
        return int(match[1]) if match else -1

    @classmethod
    def is_setting(cls, name: str) -> bool:
        return cls.stage_of(name) >= 0 and name.split(".")[2:] == [BLOCKS_BEHIND_TAP]

    @classmethod
    def is_extra(cls, name: str) -> bool:
        return name.startswith((f"{TAP_NORMS}.", f"{layers.PYRAMID}."))

    def is_unbuilt(self, name: str) -> bool:
        return self.stage_of(name) >= len(self.stages)

    def check_setting(self, name: str, value: Tensor) -> None:
        cast(Stage, self.stages[self.stage_of(name)]).check_blocks_behind_tap(value)

    def load_settings(self, settings: Mapping[str, Tensor], blocks_behind_tap: int = 0) -> None:
        for number, stage in enumerate(self._stages()):
            given = settings.get(f"stages.{number}.{BLOCKS_BEHIND_TAP}")
            is_last = stage.reduction == self.size_divisibility
            default = 0 if is_last else blocks_behind_tap
            stage.blocks_behind_tap = default if given is None else stage.check_blocks_behind_tap(given)

    def copy_settings(self, other: Inspectable) -> None:
        if isinstance(other, StagedBackbone):
            for mine, theirs in zip(self._stages(), other._stages(), strict=False):
                if _shapes(mine) == _shapes(theirs):
                    mine.blocks_behind_tap = theirs.blocks_behind_tap


def _needed(stages: Iterator[Stage], taps: Sequence[str] | None) -> list[Stage]:
    """Build stages until all requested taps are there; build all stages if `taps` is None."""
    built: list[Stage] = []
    for stage in stages:
        built.append(stage)
        if taps is not None and set(taps) <= {stage.tap for stage in built}:
            break
    return built


def _run(module: nn.Module, x: Tensor, checkpoint: bool) -> Tensor:
    out: Tensor = layers.checkpointed(module, x) if checkpoint and module.training else module(x)
    return out


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: param.shape for name, param in module.named_parameters()}

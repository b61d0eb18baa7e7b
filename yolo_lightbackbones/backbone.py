"""The contract that every backbone fulfils: an image goes in, one feature map per tap comes out, shallow to deep.

Everything else in the package relies on what is here, and on nothing more. The families of this package share a
skeleton, `StagedBackbone` in `stages.py`; a family with a forward of its own derives from `Backbone` directly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from yolo_lightbackbones import layers, moved, recording
from yolo_lightbackbones.card import Card
from yolo_lightbackbones.input_norm import InputConvention
from yolo_lightbackbones.inspection import Inspectable
from yolo_lightbackbones.messages import did_you_mean, quoted
from yolo_lightbackbones.options import TAPS, InitMode, Options, TapNormMode

if TYPE_CHECKING:
    from yolo_lightbackbones.blocks import BlockRow

__all__ = ["TAPS", "Backbone", "Options"]


class Backbone(Inspectable):
    """Takes an image (B, C, H, W), returns a list with one tensor per tap, shallow to deep.

    A family sets the class attributes `family` and `variants`, is built as `Family(variant, options)`, calls `set_taps`
    in its constructor, and implements `forward`. Its first parameter is the weight of a convolution on the image, off
    which Ultralytics reads the number of image channels.
    """

    family: ClassVar[str]
    """Name of the family, the prefix of its variants: `"edgevit"`."""
    variants: ClassVar[Mapping[str, Any]]
    """Short variant name -> config."""
    card: ClassVar[Card]
    """Title, paper, figures and weights of the family; where a family sets none, its title is the class name."""
    block_rows: ClassVar[Mapping[str, type[BlockRow]]] = {}
    """Name of a block in model YAMLs -> what a row of such blocks builds."""
    input_convention: ClassVar[InputConvention] = InputConvention()
    """How the published weights want an image prepared."""
    row_init: ClassVar[InitMode] = "published"
    """The `init` of a backbone row in a model YAML that gives none: the one with which a detector learns faster from
    scratch, see docs/accuracy.md."""
    row_tap_norm: ClassVar[TapNormMode] = "none"
    """The `tap_norm` of such a row: `"batch"` where a stage's output is a sum that nothing has normalised."""
    size_divisibility: int = 32
    """Height and width of the image must be multiples of this."""

    taps: tuple[str, ...]
    out_channels: tuple[int, ...]
    """One entry per tap, as in `reductions`."""
    reductions: tuple[int, ...]
    """Image side over side of the feature map, 2^k for P<k>."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        # Another family than its parent has other figures and weights, so it does not inherit the card.
        if "card" not in vars(cls) and ("family" in vars(cls) or not hasattr(cls, "card")):
            cls.card = Card(title=cls.__name__)
        if cls.forward is Backbone.forward and (hasattr(cls, "build_stem") or hasattr(cls, "build_stages")):
            raise TypeError(
                f"{cls.__name__} builds a stem and stages: derive it from StagedBackbone, not from Backbone."
            )

    def set_taps(self, offered: Mapping[str, int], options: Options) -> None:
        """Promise the taps that are asked for.

        Args:
            offered: tap -> channels, shallow to deep, of everything that this backbone can return.
            options: as the backbone was asked for.

        Raises:
            ValueError: for taps that are not on offer, or not listed shallow to deep, each once.
        """
        self.taps = options.choose_taps(offered, type(self).__name__)
        self.out_channels = tuple(offered[tap] for tap in self.taps)
        self.reductions = tuple(2 ** int(tap[1:]) for tap in self.taps)

    def forward(self, x: Tensor) -> list[Tensor]:
        raise NotImplementedError(f"{type(self).__name__} does not implement forward().")

    def check_size(self, x: Tensor) -> None:
        """Refuse an image whose height or width is no multiple of `size_divisibility`, unless an exporter is recording.

        Raises:
            ValueError: with the next size that fits.
        """
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

    @classmethod
    def offered_taps(cls, variant: Any) -> dict[str, int]:
        """Tap -> channels, shallow to deep, of all that a variant offers; asked of one that is built without memory.

        Raises:
            ValueError: for an unknown variant.
        """
        with torch.device("meta"):
            backbone = cls(variant, Options(taps=None))
        return dict(zip(backbone.taps, backbone.out_channels, strict=True))

    @classmethod
    def resolve_variant(cls, name: str) -> str:
        """The short name of a variant given as `m0_9`, `m0.9`, or `repvit_m0_9`.

        Raises:
            ValueError: for an unknown name, with the closest match.
        """
        short = name.strip().lower().replace(".", "_")
        if short not in cls.variants:
            short = short.removeprefix(f"{cls.family}_")
        if short not in cls.variants:
            # timm names the training behind the variant: m0_9.dist_450e_in1k
            begun = max((v for v in cls.variants if short.startswith(f"{v}_")), key=len, default=None)
            hint = f" Did you mean {begun!r}?" if begun else did_you_mean(short, cls.variants)
            allowed = ", ".join(cls.variants)
            raise ValueError(f"Unknown variant {quoted(name)} of {cls.__name__}.{hint} Allowed: {allowed}.")
        return short

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should spare besides norms and biases, as in timm.

        Every module of a family lists its own in the class attribute `no_weight_decay_names`.
        """
        return layers.no_weight_decay(self)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Classes that checkpoints from before 0.1.0 look for here."""
        return moved.find(__name__, name)

"""The contract that every backbone fulfils: an image goes in, one feature map per tap comes out, shallow to deep.

The rest of the package relies only on this contract. The families of this package share a skeleton, `StagedBackbone` in
`stages.py`. A family with another structure derives from `Backbone` directly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from yolo_lightbackbones import layers, moved, recording
from yolo_lightbackbones.card import Card
from yolo_lightbackbones.input_norm import InputConvention
from yolo_lightbackbones.inspection import Inspectable
from yolo_lightbackbones.messages import did_you_mean, quoted
from yolo_lightbackbones.options import ROW_OPTIONS, TAPS, InitMode, Option, Options, PyramidMode, TapNormMode

if TYPE_CHECKING:
    from yolo_lightbackbones.blocks import BlockRow

__all__ = ["TAPS", "Backbone", "Options"]


class Backbone(Inspectable):
    """Base class of backbones: takes an image (B, C, H, W), returns a list with one tensor per tap, shallow to deep.

    A family sets the class attributes `family` and `variants`, is built as `Family(variant, options)`, calls `set_taps`
    in its constructor, and implements `forward`. Its first parameter must be the weight of a convolution on the image,
    because Ultralytics reads the number of image channels from it.
    """

    family: ClassVar[str]
    """Name of the family, the prefix of its variants: `"edgevit"`."""
    variants: ClassVar[Mapping[str, Any]]
    """Short variant name -> config."""
    is_open: ClassVar[bool] = False
    """Whether another library lists the variants, so that `variants` is empty and names are looked up one by one.

    Such a family overrides `full_name`, `example`, `choices`, `config_of` and `resolve_variant`, and sets `variant`."""
    card: ClassVar[Card]
    """Title, paper, figures and weights of the family; by default a card with the class name as title."""
    block_rows: ClassVar[Mapping[str, type[BlockRow]]] = {}
    """Name of a block in model YAMLs -> the class that a row of such blocks builds."""
    input_convention: ClassVar[InputConvention] = InputConvention()
    """The image preprocessing that the published weights expect."""
    row_options: ClassVar[Mapping[str, Option]] = ROW_OPTIONS
    """Options of a backbone row of this family; `set_taps` refuses others in `Options` as well."""
    row_init: ClassVar[InitMode] = "published"
    """Default of `init` for a backbone row in a model YAML: the value with which a detector learns faster from scratch,
    see docs/accuracy.md."""
    row_tap_norm: ClassVar[TapNormMode] = "none"
    """Default of `tap_norm` for such a row: `"batch"` if the output of a stage is a sum without a norm behind it."""
    size_divisibility: int = 32
    """Height and width of the image must be multiples of this."""
    image_size: tuple[int, int] | None = None
    """Height and width of the only image that it takes; None if it takes any."""
    variant: str | None = None
    """Short name of the variant, if the backbone knows it; otherwise it is found by comparing shapes."""
    measures_next: bool = False
    """Whether the next image may have another size than `image_size` if it is black, because only the sizes of its maps
    are read. Whoever measures a model once sets this before."""

    taps: tuple[str, ...]
    out_channels: tuple[int, ...]
    """Channels of each tap."""
    reductions: tuple[int, ...]
    """Image side divided by the side of the feature map, for each tap: 2^k for P<k>."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        # A family that derives from another one has its own figures and weights, so it does not inherit the card.
        if "card" not in vars(cls) and ("family" in vars(cls) or not hasattr(cls, "card")):
            cls.card = Card(title=cls.__name__)
        if cls.forward is Backbone.forward and (hasattr(cls, "build_stem") or hasattr(cls, "build_stages")):
            raise TypeError(
                f"{cls.__name__} builds a stem and stages: derive it from StagedBackbone, not from Backbone."
            )

    def set_taps(self, offered: Mapping[str, int], options: Options) -> None:
        """Set `taps`, `out_channels` and `reductions` from the taps that `options` ask for.

        Args:
            offered: tap -> channels, shallow to deep, of all taps that this backbone can return.
            options: the options of the backbone.

        Raises:
            ValueError: for taps that are not on offer, listed twice, or not in the order shallow to deep, and for an
                option that the family does not have.
        """
        name = type(self).__name__
        options.check_offered(self.row_options, name)
        self.taps = options.choose_taps(offered, name, self.pyramid_hint(offered, options.pyramid))
        self.out_channels = tuple(offered[tap] for tap in self.taps)
        self.reductions = tuple(2 ** int(tap[1:]) for tap in self.taps)

    def forward(self, x: Tensor) -> list[Tensor]:
        raise NotImplementedError(f"{type(self).__name__} does not implement forward().")

    def load_published(self) -> None:
        """Fill this backbone with the published weights of its variant, for the option `pretrained`.

        Raises:
            ValueError: if there are none.
            OSError: if they cannot be fetched; the message says how to get them by hand.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement load_published().")

    def check_size(self, x: Tensor) -> None:
        """Refuse an image whose height or width is not a multiple of `size_divisibility`, except in a recording.

        Raises:
            ValueError: with the next larger size that fits.
        """
        if recording.is_recording() or not isinstance(x, Tensor):  # torch.fx traces with a proxy
            return  # sizes may be symbolic; the exporters themselves round sizes up to the stride
        divisor = self.size_divisibility
        height, width = x.shape[-2:]
        if self.image_size not in (None, (height, width)):
            raise ValueError(
                f"The image is {height} x {width} (height x width); this {type(self).__name__} is built for "
                f"{' x '.join(map(str, self.image_size or ()))}. Give images of that size (imgsz=..., rect=False), or "
                f"build it for {height} x {width}."
            )
        if height % divisor or width % divisor:
            fit_h, fit_w = (math.ceil(side / divisor) * divisor for side in (height, width))
            raise ValueError(
                f"The image is {height} x {width} (height x width); {type(self).__name__} needs multiples of "
                f"{divisor}. Pad or resize it, for example to {fit_h} x {fit_w}."
            )

    @classmethod
    def offered_taps(cls, variant: Any, options: Options | None = None) -> dict[str, int]:
        """All taps that a variant offers, shallow to deep: tap -> channels. Builds the variant on the meta device.

        Args:
            variant: a variant, as the constructor takes it.
            options: options of the variant, without taps.

        Raises:
            ValueError: for an unknown variant, and for whatever the constructor refuses.
        """
        with torch.device("meta"):
            backbone = cls(variant, replace(options or Options(), taps=None, normed_taps=()))
        return dict(zip(backbone.taps, backbone.out_channels, strict=True))

    # --- names of variants --------------------------------------------------------------------------------------------

    @classmethod
    def full_name(cls, variant: str) -> str:
        """Full name of a variant, `repvit_m0_9`, by its short one, `m0_9`."""
        return f"{cls.family}_{variant}"

    @classmethod
    def example(cls) -> str:
        """Short name of a variant, for examples in messages."""
        return next(iter(cls.variants))

    @classmethod
    def choices(cls) -> str:
        """The allowed variants, for messages."""
        return ", ".join(cls.variants)

    @classmethod
    def config_of(cls, variant: str) -> Any:
        """The config of a variant, by its short name."""
        return cls.variants[variant]

    @classmethod
    def pyramid_hint(cls, offered: Iterable[str], pyramid: str) -> str:
        """A sentence for errors about missing taps of a variant with a single map; empty for others.

        Args:
            offered: the taps on offer.
            pyramid: the value of the option.
        """
        if pyramid != "none" or "pyramid" not in cls.row_options or len(list(offered)) > 1:
            return ""
        return f" With the option pyramid: simple, it has {', '.join(TAPS)}."

    @classmethod
    def default_tap_norm(cls, variant: str, pyramid: PyramidMode = "none") -> TapNormMode:
        """Default of `tap_norm` for a backbone row with this variant; the levels of a pyramid end with norms."""
        return "none" if pyramid == "simple" else cls.row_tap_norm

    @classmethod
    def resolve_variant(cls, name: str) -> str:
        """Return the short name of a variant, which may be given as `m0_9`, `m0.9`, or `repvit_m0_9`.

        Raises:
            ValueError: for an unknown name, with the closest match.
        """
        short = name.strip().lower().replace(".", "_")
        if short not in cls.variants:
            short = short.removeprefix(f"{cls.family}_")
        if short not in cls.variants:
            # timm appends the training recipe to the variant: m0_9.dist_450e_in1k
            begun = max((v for v in cls.variants if short.startswith(f"{v}_")), key=len, default=None)
            hint = f" Did you mean {begun!r}?" if begun else did_you_mean(short, cls.variants)
            raise ValueError(f"Unknown variant {quoted(name)} of {cls.__name__}.{hint} Allowed: {cls.choices()}.")
        return short

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, besides those of norms and biases; as in timm.

        Every module of a family lists its own parameters in the class attribute `no_weight_decay_names`.
        """
        return layers.no_weight_decay(self)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Find classes that checkpoints from before 0.1.0 look up in this module."""
        return moved.find(__name__, name)

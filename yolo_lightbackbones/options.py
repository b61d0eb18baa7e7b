"""Options of backbones and of rows of blocks, declared and checked in one place, for model YAMLs and for Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from yolo_lightbackbones.bounds import is_number, is_whole
from yolo_lightbackbones.messages import quoted

TAPS = ("P2", "P3", "P4", "P5")
"""All taps of a four-stage backbone; P<k> has reduction 2^k."""

MOST_CHANNELS = 8192
"""Most channels of an image or of a row of blocks; more is a mistake, and would not fit into memory."""

LARGEST_IMAGE = 4096
"""Longest side of an image that a backbone can be built for, in pixels; more would not fit into memory."""

InputNormMode = Literal["auto", "none"]
InitMode = Literal["published", "scratch"]
TapNormMode = Literal["none", "batch"]
PyramidMode = Literal["none", "simple"]


@dataclass(frozen=True)
class Option:
    """One option: its default, and the values that it allows.

    Args:
        default: the value if none is given.
        allowed: description of the allowed values, for error messages.
        accepts: returns whether a value is allowed.
    """

    default: Any
    allowed: str
    accepts: Callable[[Any], bool]

    def check(self, name: str, value: Any) -> None:
        """Refuse a value that is not allowed.

        Raises:
            ValueError: with the value and the allowed values.
        """
        if not self.accepts(value):
            raise ValueError(f"{name} is {quoted(value)}; it must be {self.allowed}.")


def whole(default: int, most: int) -> Option:
    """An option that is a whole number from 1 to `most`."""
    allowed = f"a whole number, at least 1 and at most {most}"
    return Option(default, allowed, lambda value: is_whole(value) and 1 <= value <= most)


def odd(default: int, most: int) -> Option:
    """An option that is an odd number from 1 to `most`."""
    allowed = f"an odd number, at least 1 and at most {most}"
    return Option(default, allowed, lambda value: is_whole(value) and 1 <= value <= most and value % 2 == 1)


def share(default: float | None) -> Option:
    """An option that is a number from 0 to below 1."""
    return Option(default, "a number, at least 0 and below 1", lambda value: is_number(value) and 0 <= value < 1)


def scale(default: float) -> Option:
    """An option that is a number above 0."""
    # the most likely mistake: YAML reads 1e-6, without a dot, as text
    allowed = "a number above 0, such as 0.1 or 1.0e-6 (with the dot: YAML reads 1e-6 as text)"
    return Option(default, allowed, lambda value: is_number(value) and 0 < value < math.inf)


def switch(default: bool) -> Option:
    """An option that is on or off."""
    return Option(default, "true or false", lambda value: isinstance(value, bool))


def choice(*values: str) -> Option:
    """An option that is one of these texts; the first is the default."""
    return Option(values[0], f"one of {', '.join(values)}", lambda value: value in values)


ROW_OPTIONS: Mapping[str, Option] = {
    "drop_path_rate": share(None),
    "input_norm": choice("auto", "none"),
    "init": choice("published", "scratch"),
    "tap_norm": choice("none", "batch"),
}
"""Options of a row of any family. `Options` has the same names, but `normed_taps` instead of `tap_norm`."""

FURTHER_OPTIONS: Mapping[str, Option] = {
    "pretrained": Option(False, "true, false, or a file of weights", lambda value: isinstance(value, bool | str)),
    "imgsz": Option(
        None,
        f"a side in pixels or [height, width], whole numbers from 32 to {LARGEST_IMAGE}",
        lambda value: (
            _is_side(value) or (isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_side, value)))
        ),
    ),
    "pyramid": choice("none", "simple"),
    "checkpoint": switch(False),
}
"""Options of a backbone row that only some families have; `Backbone.row_options` has those of a family."""


def _is_side(value: Any) -> bool:
    return is_whole(value) and 32 <= value <= LARGEST_IMAGE


@dataclass(frozen=True, repr=False)
class Options:
    """Options of a backbone.

    Args:
        in_channels: channels of the image. Published input conventions are for 3 channels; with any other number,
            `input_norm="auto"` is the same as `"none"`.
        taps: the feature maps to return, shallow to deep; no layers behind the last one are built. None: all that the
            variant offers.
        drop_path_rate: stochastic depth rate of the last block, rising linearly from 0 at the first block. None: the
            variant's.
        input_norm: `"auto"` applies the family's published input convention, `"none"` takes the image as it is.
        init: initialisation of the random weights. `"published"` is the authors'. With `"scratch"` detectors learn
            faster: PyTorch's defaults, open gates of squeeze-and-excitation, and layer scales of 0.1.
        normed_taps: the taps that get a BatchNorm behind them. Published implementations have none. They are for necks
            that join a tap with their own feature maps: without a norm, a tap can be many times larger than those.
        pretrained: True for the published weights, or a file of weights.
        imgsz: side of the image, or its height and width, in pixels, for a variant that is built for one size.
        pyramid: `"simple"` makes all taps from the last map of a variant that has only one reduction.
        checkpoint: whether training computes the maps inside of blocks twice instead of keeping them for the backward
            pass: less memory, and more time.

    The last four are for families that have them in `Backbone.row_options`; others refuse them.

    Raises:
        ValueError: for a value that is not allowed. The variant checks the names of the taps.
    """

    in_channels: int = 3
    taps: Sequence[str] | None = TAPS
    drop_path_rate: float | None = None
    input_norm: InputNormMode = "auto"
    init: InitMode = "published"
    normed_taps: Sequence[str] = ()
    pretrained: bool | str = False
    imgsz: int | Sequence[int] | None = None
    pyramid: PyramidMode = "none"
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if not is_whole(self.in_channels) or not 1 <= self.in_channels <= MOST_CHANNELS:
            raise ValueError(f"the image has {quoted(self.in_channels)} channels; allowed are 1 to {MOST_CHANNELS}.")
        for name in ("taps", "normed_taps"):
            given = getattr(self, name)
            if isinstance(given, str):
                raise ValueError(f"{name} is {quoted(given)}; give a sequence of taps: ({quoted(given)},).")
            object.__setattr__(self, name, None if given is None else tuple(given))
        if isinstance(self.imgsz, list):
            object.__setattr__(self, "imgsz", tuple(self.imgsz))
        for name, option in {**ROW_OPTIONS, **FURTHER_OPTIONS}.items():
            if name != "tap_norm" and getattr(self, name) != option.default:
                option.check(name, getattr(self, name))

    def __repr__(self) -> str:
        """Show only the values that differ from the defaults: Ultralytics prints them in its table of layers."""
        values = ((field, getattr(self, field.name)) for field in fields(self))
        return f"Options({', '.join(f'{field.name}={value!r}' for field, value in values if value != field.default)})"

    def choose_taps(self, offered: Iterable[str], name: str, hint: str = "") -> tuple[str, ...]:
        """Check the requested taps against those on offer, and return them, shallow to deep.

        Args:
            offered: names of the taps on offer, shallow to deep.
            name: name of the backbone for error messages.
            hint: what to add to the error about a tap that is not on offer, with a space before it.

        Raises:
            ValueError: for taps that are not on offer, listed twice, or not in the order shallow to deep, and for
                `normed_taps` that are not among the taps.
        """
        levels = list(offered)
        taps = tuple(levels if self.taps is None else self.taps)
        if unknown := [tap for tap in taps if tap not in levels]:
            raise ValueError(
                f"{name} has no tap {', '.join(map(quoted, unknown))}. Allowed: {', '.join(levels)}.{hint}"
            )
        if not taps or list(taps) != [level for level in levels if level in taps]:
            raise ValueError(
                f"taps are {taps!r}; list at least one, each once, shallow to deep, out of {', '.join(levels)}."
            )
        if not set(self.normed_taps) <= set(taps):
            raise ValueError(
                f"normed_taps are {quoted(self.normed_taps)}; they must be among the taps, {', '.join(taps)}."
            )
        return taps

    def check_offered(self, offered: Mapping[str, Option], name: str) -> None:
        """Refuse an option that a family does not have.

        Args:
            offered: options of the family's row.
            name: name of the backbone for error messages.

        Raises:
            ValueError: for the first such option that has another value than its default.
        """
        given = {field.name for field in fields(self) if getattr(self, field.name) != field.default}
        if "normed_taps" in given:
            given.add("tap_norm")
        if unknown := [option for option in (*ROW_OPTIONS, *FURTHER_OPTIONS) if option in given - {*offered}]:
            raise ValueError(f"{name} has no option {unknown[0]!r}. Allowed: {', '.join(offered)}.")

    @classmethod
    def of(cls, options: Options | None, named: Mapping[str, Any]) -> Options:
        """Return the options of a constructor that takes them as one value or by name.

        Raises:
            TypeError: if both are given, for an unknown name, and for a value that is not `Options`.
            ValueError: for a value that is not allowed.
        """
        if options is None:
            return cls(**named)
        if not isinstance(options, Options) or named:
            given = f"{quoted(options)} and {', '.join(named)}" if named else quoted(options)
            raise TypeError(f"The options are {given}; give Options(taps=..., ...), or names such as taps=... only.")
        return options

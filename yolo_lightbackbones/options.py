"""Options of backbones and of rows of blocks: each is declared and checked here, for model YAMLs and Python alike."""

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
"""Most channels of an image or of a row of blocks; more is a mistake and needs more memory than there is."""

InputNormMode = Literal["auto", "none"]
InitMode = Literal["published", "scratch"]
TapNormMode = Literal["none", "batch"]


@dataclass(frozen=True)
class Option:
    """One option: its value where none is given, and which others there are.

    Args:
        default: its value where none is given.
        allowed: what a value must be, as error messages say it.
        accepts: whether a value is allowed.
    """

    default: Any
    allowed: str
    accepts: Callable[[Any], bool]

    def check(self, name: str, value: Any) -> None:
        """Refuse a value that is not allowed.

        Raises:
            ValueError: with the value and what it must be.
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
    # 1e-6 without a dot is text to YAML, and the most likely mistake here
    allowed = "a number above 0, such as 0.1 or 1.0e-6 (with the dot: YAML reads 1e-6 as text)"
    return Option(default, allowed, lambda value: is_number(value) and 0 < value < math.inf)


def switch(default: bool) -> Option:
    """An option that is on or off."""
    return Option(default, "true or false", lambda value: isinstance(value, bool))


def choice(*values: str) -> Option:
    """An option that is one of these texts, by default the first."""
    return Option(values[0], f"one of {', '.join(values)}", lambda value: value in values)


ROW_OPTIONS: Mapping[str, Option] = {
    "drop_path_rate": share(None),
    "input_norm": choice("auto", "none"),
    "init": choice("published", "scratch"),
    "tap_norm": choice("none", "batch"),
}
"""Options of a backbone row in a model YAML. `Options` has the same names, and `normed_taps` instead of `tap_norm`."""


@dataclass(frozen=True, repr=False)
class Options:
    """How a backbone is built.

    Args:
        in_channels: channels of the image. For anything but 3 there is no published convention: `"auto"` is `"none"`.
        taps: which feature maps to return, shallow to deep; nothing behind the last of them is built. None: all that
            the variant offers.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0 at the first; None: the variant's.
        input_norm: `"auto"` applies the family's published input convention, `"none"` takes the image as it is.
        init: what the random weights are: `"published"`, or `"scratch"`, with which detectors learn sooner: PyTorch's
            own, gates of squeeze-and-excitation that start open, and layer scales of 0.1.
        normed_taps: which of the taps get a BatchNorm behind them, which no published implementation has: for necks
            that join a tap with maps of their own, beside which a sum that nothing normalises is many times larger.

    Raises:
        ValueError: for a value that is not allowed. Which taps there are is up to the variant, and checked by it.
    """

    in_channels: int = 3
    taps: Sequence[str] | None = TAPS
    drop_path_rate: float | None = None
    input_norm: InputNormMode = "auto"
    init: InitMode = "published"
    normed_taps: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not is_whole(self.in_channels) or not 1 <= self.in_channels <= MOST_CHANNELS:
            raise ValueError(f"the image has {quoted(self.in_channels)} channels; from 1 to {MOST_CHANNELS} are taken.")
        for name in ("taps", "normed_taps"):
            given = getattr(self, name)
            if isinstance(given, str):
                raise ValueError(f"{name} is {quoted(given)}; give a sequence of taps: ({quoted(given)},).")
            object.__setattr__(self, name, None if given is None else tuple(given))
        for name in ("drop_path_rate", "input_norm", "init"):
            value = getattr(self, name)
            if name != "drop_path_rate" or value is not None:
                ROW_OPTIONS[name].check(name, value)

    def __repr__(self) -> str:
        """Only what differs from the defaults, since Ultralytics prints it in its table of layers."""
        values = ((field, getattr(self, field.name)) for field in fields(self))
        return f"Options({', '.join(f'{field.name}={value!r}' for field, value in values if value != field.default)})"

    def choose_taps(self, offered: Iterable[str], name: str) -> tuple[str, ...]:
        """The taps that are asked for, out of those on offer, shallow to deep; `name` is what errors call the backbone.

        Raises:
            ValueError: for taps that are not on offer, or not listed shallow to deep, each once.
        """
        levels = list(offered)
        taps = tuple(levels if self.taps is None else self.taps)
        if unknown := [tap for tap in taps if tap not in levels]:
            raise ValueError(f"{name} has no tap {', '.join(map(quoted, unknown))}. Allowed: {', '.join(levels)}.")
        if not taps or list(taps) != [level for level in levels if level in taps]:
            raise ValueError(
                f"taps are {taps!r}; list at least one, each once, shallow to deep, out of {', '.join(levels)}."
            )
        if not set(self.normed_taps) <= set(taps):
            raise ValueError(
                f"normed_taps are {quoted(self.normed_taps)}; they must be among the taps, {', '.join(taps)}."
            )
        return taps

    @classmethod
    def of(cls, options: Options | None, named: Mapping[str, Any]) -> Options:
        """The options of a constructor that takes them as a value or by name.

        Raises:
            TypeError: for both at once, for an unknown name, and for a value that is not `Options`.
            ValueError: for a value that is not allowed.
        """
        if options is None:
            return cls(**named)
        if not isinstance(options, Options) or named:
            given = f"{quoted(options)} and {', '.join(named)}" if named else quoted(options)
            raise TypeError(f"The options are {given}; give Options(taps=..., ...), or names such as taps=... only.")
        return options

"""The card of a family of backbones: everything known about it besides its code, as one record of plain data.

A family's `Card` holds its name, its paper, the variant of each scale letter, the published figures, and where weights
are. It is read by `lightbackbones list`, `new` and `convert`, by the model YAMLs, and when weights are loaded or
recognised. Everything but the title is optional. This module knows neither torch nor a family.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from yolo_lightbackbones.messages import did_you_mean, listed, quoted

STATUSES = ("by hand", "none listed", "none released")
"""Allowed values of `Card.weights`, for variants without a release."""


@dataclass(frozen=True)
class Figures:
    """Published figures of the image classifier with a variant as its backbone.

    Args:
        top1: accuracy on ImageNet-1k, in percent.
        source: where the numbers were published.
        parameters: in millions, with the classifier.
        gmacs: billions of multiply-adds at `image_size`.
        image_size: side of the images, in pixels.
        note: the conditions of the accuracy, such as distillation.
    """

    top1: float
    source: str
    parameters: float | None = None
    gmacs: float | None = None
    image_size: int = 224
    note: str = ""


@dataclass(frozen=True)
class Release:
    """One published file of weights.

    Args:
        name: the name that `lightbackbones convert` takes for this file.
        url: the address of the file.
        filename: its name in the download cache; by default `name` with the suffix of the address.
        variant: short name of the variant that the weights belong to.
        repo_id: its repository on the Hugging Face hub, if it is there.
        sha256: its checksum, if somebody published one.

    Raises:
        ValueError: if the name or the file name cannot be the name of a file.
    """

    name: str
    url: str
    filename: str = ""
    variant: str | None = None
    repo_id: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if not self.filename:
            object.__setattr__(self, "filename", self.name + PurePosixPath(urlsplit(self.url).path).suffix)
        for title, value in (("name", self.name), ("file name", self.filename)):
            if not re.fullmatch(r"\w[\w.+-]*", value):
                raise ValueError(
                    f"The {title} of the release at {quoted(self.url)} is {quoted(value)}; it must be letters, digits, "
                    "'_', '.', '+' and '-', and begin with a letter, a digit or '_'."
                )


@dataclass(frozen=True)
class Card:
    """Everything known about one family of backbones besides its code. Variants are given by their short names.

    Args:
        title: the family's name as its paper writes it: `"ParC-Net"`.
        paper: its number on arXiv: `"2203.03952"`.
        repository: address of the published code, without `https://`.
        licence: licence of the published code.
        former_names: other names of the family, which error messages recognise.
        letters: scale letter -> variant, for model YAMLs of the whole family.
        figures: variant -> published figures.
        releases: files that can be downloaded. The full name of a variant stands for its first release.
        weights: variant without a release -> one of `STATUSES`.
        by_hand: sentences that say how to get the weights that no release offers.
        notes: variant -> what a user must know about it, such as sizes that are not the paper's.
        layouts: dotted name of a module whose `LAYOUTS` is a tuple of `checkpoints.rules.Layout`, one for each naming
            of parameters in published files. It is imported when weights are loaded.

    Raises:
        ValueError: for a value that is not allowed; the message says what is allowed.
    """

    title: str
    paper: str | None = None
    repository: str | None = None
    licence: str | None = None
    former_names: tuple[str, ...] = ()
    letters: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, Figures] = field(default_factory=dict)
    releases: tuple[Release, ...] = ()
    weights: Mapping[str, str] = field(default_factory=dict)
    by_hand: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    layouts: str | None = None

    def __post_init__(self) -> None:
        for name in ("title", "paper", "repository", "licence", "layouts"):
            value = getattr(self, name)
            one_line = isinstance(value, str) and value.isprintable() and value.strip()
            self._check(name, one_line or (value is None and name != "title"), "a text of one line")
        self._check(
            "paper", not self.paper or re.fullmatch(r"\d{4}\.\d{4,5}", self.paper), "a number of arXiv: '2203.03952'"
        )
        is_module = all(part.isidentifier() for part in (self.layouts or "a").split("."))
        self._check("layouts", is_module, "the dotted name of a module: 'package.layouts'")
        self._check("former_names", _is_tuple_of(self.former_names, str), "a tuple of texts")
        self._check("letters", _is_mapping_to(self.letters, str), "a mapping from scale letter to variant")
        for letter in self.letters:
            if not re.fullmatch("[a-z]", letter):
                raise ValueError(
                    f"The card of {self.title} has the scale letter {quoted(letter)}; it must be one small letter, as "
                    "'n' in yolo11n."
                )
        self._check("figures", _is_mapping_to(self.figures, Figures), "a mapping from variant to Figures")
        self._check("releases", _is_tuple_of(self.releases, Release), "a tuple of Release")
        self._check(
            "weights",
            _is_mapping_to(self.weights, str) and set(self.weights.values()) <= set(STATUSES),
            f"a mapping from variant to one of {', '.join(map(repr, STATUSES))}",
        )
        self._check("by_hand", isinstance(self.by_hand, str), "a text")
        self._check("notes", _is_mapping_to(self.notes, str), "a mapping from variant to text")
        if both := [variant for variant in self.weights if self.release_of(variant)]:
            raise ValueError(f"The card of {self.title} has {both[0]!r} both in weights and in releases; keep one.")

    def check_variants(self, variants: Collection[str]) -> None:
        """Refuse a card that names a variant which the family does not have.

        Raises:
            ValueError: for the first such variant, with the closest match.
        """
        for place, variant in self._named_variants():
            if variant not in variants:
                raise ValueError(
                    f"The card of {self.title} names the variant {quoted(variant)} in {place}, which the family does "
                    f"not have.{did_you_mean(variant, variants)} Allowed: {listed(variants, 100)}."
                )

    def release_of(self, variant: str) -> Release | None:
        """The file that is downloaded for a variant; None if there is none."""
        return next((release for release in self.releases if release.variant == variant), None)

    def weights_of(self, variant: str) -> str | None:
        """`"download"`, or the status that the card gives; None if nothing is known about weights."""
        return "download" if self.release_of(variant) else self.weights.get(variant)

    @property
    def origin(self) -> str:
        """Paper, address and licence of the published code, as far as they are known."""
        paper = f"arXiv {self.paper}" if self.paper else ""
        licence = f" ({self.licence})" if self.licence else ""
        return ", ".join(part for part in (paper, f"{self.repository}{licence}" if self.repository else "") if part)

    def _check(self, name: str, allowed: Any, must_be: str) -> None:
        if not allowed:
            owner = "a card" if name == "title" else f"the card of {self.title}"
            raise ValueError(f"The {name} of {owner} is {quoted(getattr(self, name))}; it must be {must_be}.")

    def _named_variants(self) -> Iterator[tuple[str, str]]:
        yield from (("letters", variant) for variant in self.letters.values())
        yield from (("figures", variant) for variant in self.figures)
        yield from (("releases", release.variant) for release in self.releases if release.variant is not None)
        yield from (("weights", variant) for variant in self.weights)
        yield from (("notes", variant) for variant in self.notes)


def _is_tuple_of(values: Any, kind: type) -> bool:
    return isinstance(values, tuple) and all(isinstance(value, kind) for value in values)


def _is_mapping_to(values: Any, kind: type) -> bool:
    return isinstance(values, Mapping) and all(
        isinstance(key, str) and isinstance(value, kind) for key, value in values.items()
    )

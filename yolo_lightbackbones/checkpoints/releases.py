"""Finds a published file of weights by name, among those on the cards of the families."""

from __future__ import annotations

from yolo_lightbackbones import registry
from yolo_lightbackbones.card import Release
from yolo_lightbackbones.messages import did_you_mean, listed


def by_name() -> dict[str, Release]:
    """All published files by name: full names of variants (`repvit_m0_9`) first, then the names of the files."""
    cards = [(cls.family, cls.card) for cls in registry.families().values()]
    files = [(family, release) for family, card in cards for release in card.releases]
    best: dict[str, Release] = {}
    for family, release in files:
        if release.variant is not None:
            best.setdefault(f"{family}_{release.variant}", release)
    return best | {release.name: release for _, release in files}


def find(name: str) -> Release:
    """Find a published file by name: a variant (`repvit_m0_9`), an official file's stem, or timm's name.

    Raises:
        ValueError: if there is none; the message says what to do instead.
    """
    known = by_name()
    wanted = name.strip().removesuffix(".pth")
    release = known.get(wanted) or known.get(wanted.replace(".", "_"))
    if release:
        return release
    family = registry.family_in(wanted)
    if family is not None and (not family.card.releases or wanted in registry.list_backbones(family.family)):
        advice = family.card.by_hand or f"The card of {family.card.title} lists no file for it: give the path of yours."
        raise ValueError(f"{name!r} cannot be downloaded. {advice}")
    raise ValueError(
        f"{name!r} is neither a file nor the name of published weights.{did_you_mean(wanted, known)} "
        f"Names: {listed(known, 100)}."
    )

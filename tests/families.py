"""The families that come with the package, for tests that every one of them has to pass."""

from __future__ import annotations

from yolo_lightbackbones import registry

LISTED = [cls for cls in registry.built_in() if not cls.is_open]
"""Families that list their variants."""

CLASSES = {cls.family: cls.__name__ for cls in LISTED}
"""Family -> module in model YAMLs."""

FAMILIES = list(CLASSES)

AT_SCALE_N = {cls.family: f"{cls.family}_{cls.card.letters.get('n')}" for cls in LISTED}
"""Family -> full name of the variant in model YAMLs at scale n."""

SMALLEST = {cls.family: f"{cls.family}_{next(iter(cls.variants))}" for cls in LISTED}
"""Family -> full name of its first variant."""

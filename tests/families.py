"""The families that come with the package, for tests that every one of them has to pass."""

from __future__ import annotations

from yolo_lightbackbones import registry

_WITH_VARIANTS = [cls for cls in registry.built_in() if not cls.is_open]
"""The families with a list of variants: all but timm's, which has tests of its own."""

CLASSES = {cls.family: cls.__name__ for cls in _WITH_VARIANTS}
"""Family -> module in model YAMLs."""

FAMILIES = list(CLASSES)

AT_SCALE_N = {cls.family: f"{cls.family}_{cls.card.letters.get('n')}" for cls in _WITH_VARIANTS}
"""Family -> full name of the variant in model YAMLs at scale n."""

SMALLEST = {cls.family: f"{cls.family}_{next(iter(cls.variants))}" for cls in _WITH_VARIANTS}
"""Family -> full name of its first variant."""

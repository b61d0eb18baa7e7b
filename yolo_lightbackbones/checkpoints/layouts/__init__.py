"""Layouts of published weights, one module per family; a family's card names its module."""

from __future__ import annotations

import importlib

from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.checkpoints.rules import OURS, Layout
from yolo_lightbackbones.messages import quoted


def layouts_of(family: type[Backbone]) -> tuple[Layout, ...]:
    """The layouts of a family's weights: ours first, then those of the module that its card names.

    Raises:
        ValueError: if that module cannot be imported, or has no `LAYOUTS` of this kind.
    """
    module = family.card.layouts
    if module is None:
        return (OURS,)
    says = f"The card of {family.card.title} names the layouts {module!r}"
    try:
        layouts = getattr(importlib.import_module(module), "LAYOUTS", None)
    except ImportError as error:
        raise ValueError(f"{says}, and that module cannot be imported: {error}.") from error
    if not isinstance(layouts, tuple) or not all(isinstance(layout, Layout) for layout in layouts):
        raise ValueError(f"{says}, and its LAYOUTS is {quoted(layouts)}; it must be a tuple of Layout.")
    return (OURS, *layouts)

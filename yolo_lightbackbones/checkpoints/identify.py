"""Finds the backbone that weights belong to, by comparing names and shapes with those of every variant."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from yolo_lightbackbones import registry
from yolo_lightbackbones.backbone import Backbone, Options
from yolo_lightbackbones.checkpoints.layouts import layouts_of
from yolo_lightbackbones.checkpoints.rules import OURS, Converted, Layout, convert
from yolo_lightbackbones.layers import PYRAMID

Shapes = Mapping[str, tuple[int, ...]]

FEWEST, MOST = 100, 5_000
"""Fewest and most tensors that a backbone may have; the smallest has 240, the largest 1,000."""

MOST_NAMES = 10_000
"""Most names compared in one file, which can have any number of parts that might be a backbone."""


@dataclass(frozen=True)
class Variant:
    """A variant of a family, as in `list_backbones`."""

    family: type[Backbone]
    short_name: str

    def __str__(self) -> str:
        return self.family.full_name(self.short_name)


@dataclass(frozen=True)
class Recognised:
    """The variants that weights resemble most; several only if their parameters do not differ.

    `similarity` is the share of names that both have with the same shape, 1 for a perfect match. `prefix` is the start
    of the names if the weights are part of a larger model.
    """

    variants: tuple[Variant, ...]
    similarity: float
    prefix: str = ""


def matching_variants(backbone: Backbone) -> list[Variant]:
    """The variants that have parameters of the same shapes as this backbone; none for a custom config.

    There are several only if the stages in which they differ were not built.
    """
    family = type(backbone)
    if backbone.variant is not None:
        return [Variant(family, backbone.variant)]
    found = backbone.image_conv()
    # a pyramid and its taps are no part of a variant
    taps = None if getattr(backbone, PYRAMID, None) is not None else backbone.taps
    options = Options(in_channels=found[1].weight.shape[1] if found else 3, taps=taps)
    shapes = _shapes(backbone)
    matching = []
    for name in family.variants:
        with contextlib.suppress(ValueError):  # for a variant without these taps
            if _built(family, name, options) == shapes:
                matching.append(Variant(family, name))
    return matching


def full_shapes(variant: Variant) -> Shapes:
    """Name and shape of everything in a variant's state dict, with all its taps; nothing if it cannot be built."""
    with contextlib.suppress(Exception):  # somebody else's family must not keep others from being found
        return _built(variant.family, variant.short_name, Options(taps=None))
    return {}


def recognise(state: Mapping[str, Tensor]) -> Recognised | None:
    """Find the backbone that the weights resemble most, also inside a larger model; None if they resemble none.

    Args:
        state: tensors by name, as the file has them.
    """
    layouts = {family: _usable_layouts(family) for family in registry.families().values()}
    best: Recognised | None = None
    for prefix in _prefixes(state):
        inside = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        for family, its_layouts in layouts.items():
            files = [_shapes_of(convert(layout, inside), family) for layout in its_layouts]
            strange: set[type] = set()
            for name, config in family.variants.items():
                if type(config) in strange:
                    continue
                variant = Variant(family, name)
                shapes = full_shapes(variant)
                if not any(shapes.keys() & file.keys() for file in files):
                    strange.add(type(config))  # variants with configs of one class share names: none has any of these
                    continue
                similarity = max(_similarity(shapes, file, family) for file in files)
                if similarity > (best.similarity if best else 0):
                    best = Recognised((variant,), similarity, prefix)
                elif best and (similarity, prefix) == (best.similarity, best.prefix):
                    best = Recognised((*best.variants, variant), similarity, prefix)
        if best and best.similarity == 1:
            break  # nothing deeper in the names fits better
    return best


def _usable_layouts(family: type[Backbone]) -> tuple[Layout, ...]:
    """The layouts of a family; only ours, with a warning, if its card names a module that does not work."""
    try:
        return layouts_of(family)
    except ValueError as error:  # somebody else's card must not keep the weights of other families from being found
        warnings.warn(str(error), stacklevel=3)
        return (OURS,)


def _similarity(variant: Shapes, file: Shapes, family: type[Backbone]) -> float:
    """Share of names that both have with the same shape, 0..1, over the stages that the file has.

    Counters and the number of image channels do not matter.
    """
    stem = next(iter(variant))
    stages = max(map(family.stage_of, file), default=-1)
    ours, theirs = (
        {key for key in shapes if not key.endswith(".num_batches_tracked") and family.stage_of(key) <= stages}
        for shapes in (variant, file)
    )
    same = [
        key for key in ours & theirs if variant[key] == file[key] or (key == stem and variant[key][:1] == file[key][:1])
    ]
    return len(same) / len(ours | theirs)


def _prefixes(state: Mapping[str, Tensor], depth: int = 3) -> list[str]:
    """The empty prefix, and all prefixes that are shared by as many tensors as a backbone may have."""
    counts = Counter(
        ".".join(parts[:i]) + "."
        for parts in (key.split(".", depth + 1) for key in state)
        for i in range(1, min(depth, len(parts) - 1) + 1)
    )
    likely = [p for p, n in counts.items() if FEWEST <= n <= MOST]
    whole = [""] if len(state) <= MOST else []
    prefixes = [*whole, *sorted(likely, key=lambda p: (p.count("."), p))]
    names = accumulate(counts[prefix] if prefix else len(state) for prefix in prefixes)
    return [prefix for prefix, so_far in zip(prefixes, names, strict=True) if so_far <= MOST_NAMES]


def _built(family: type[Backbone], variant: str, options: Options) -> Shapes:
    """Name and shape of everything in the state dict of a variant, built without memory.

    Building takes up to half a second, and one message may need all variants, so the answer is kept for as long as the
    config of the variant is the same one.
    """
    config, key = family.config_of(variant), (family, variant, options)
    known = _known.get(key)
    if known is None or known[0] is not config:
        with torch.device("meta"):
            known = _known[key] = (config, _shapes(family(variant, options)))
    return known[1]


_known: dict[tuple[type[Backbone], str, Options], tuple[Any, Shapes]] = {}


def _shapes(backbone: Backbone) -> Shapes:
    state = backbone.state_dict()
    return {key: tuple(tensor.shape) for key, tensor in state.items() if _is_of_variant(key, type(backbone))}


def _shapes_of(converted: Converted, family: type[Backbone]) -> Shapes:
    placed = converted.placed.items()
    return {ours: tuple(sources[0][1].shape) for ours, sources in placed if _is_of_variant(ours, family)}


def _is_of_variant(key: str, family: type[Backbone]) -> bool:
    return not family.is_extra(key) and not family.is_setting(key)

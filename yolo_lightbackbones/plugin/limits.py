"""Refuses model YAMLs that would take an unbounded amount of memory or time.

A YAML can come from anybody. A few aliases in it can stand for millions of values, and numbers in it say how many
layers are built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolo_lightbackbones.bounds import MOST_VALUES, BoundsError, check_scalar, extent, is_number
from yolo_lightbackbones.messages import flow, quoted
from yolo_lightbackbones.plugin.row import ConfigError, as_list, where_of

LARGEST_FACTOR = 10
"""Largest depth, and largest width, that a scale may have."""

_MOST_REPEATS = 200
_NUMBERS = ("nc", "reg_max", "kpt_shape", "ne", "channels", "depth_multiple", "width_multiple")
"""Keys, besides the rows and `scales`, whose values Ultralytics reads as numbers."""


def check_bounds(config: Mapping[str, Any]) -> None:
    """Refuse a model config that would take an unbounded amount of memory or time; checks all rows, ours or not.

    Raises:
        ConfigError: for aliases that stand for very many values, for values that contain themselves or are nested very
            deeply, and for numbers and texts in rows that are too large, naming the row or the key.
    """
    where, depth = where_of(config), max(_factors(config))
    seen: dict[int, tuple[int, int] | None] = {}
    total = number = 0
    for part in ("backbone", "head"):
        for row in as_list(config.get(part)):
            try:
                total += extent(row, seen, check_scalar)[0]
                _check_repeats(row, depth)
            except BoundsError as error:
                raise ConfigError(f"{where}row {number} {flow(row)}: {error}") from None
            number += 1
    for key, value in config.items():
        if key in ("backbone", "head") and isinstance(value, list | tuple):
            continue
        try:
            total += extent(value, seen, check_scalar if key in _NUMBERS else None)[0]
        except BoundsError as error:
            raise ConfigError(f"{where}{quoted(key)} is {flow(value)}: {error}") from None
    if total > MOST_VALUES:
        raise ConfigError(f"{where}the model has {total:,} values; at most {MOST_VALUES:,} are allowed.")


def _check_repeats(row: Any, depth: float) -> None:
    """Refuse a row with too many repeats; Ultralytics multiplies them by the depth of the scale."""
    repeats = row[1] if isinstance(row, list | tuple) and len(row) > 1 else 1
    if is_number(repeats) and repeats > 1 and repeats * depth > _MOST_REPEATS:
        times = f" times a depth of {quoted(depth)}" if depth != 1 else ""
        raise BoundsError(f"repeats is {quoted(repeats)}{times}; at most {_MOST_REPEATS:,} are allowed.")


def _factors(config: Mapping[str, Any]) -> list[float]:
    """Collect the depths above 1 that the model may be built with, and 1."""
    scales = config.get("scales")
    factors = (
        [value[0] for value in scales.values() if isinstance(value, list | tuple) and value]
        if (isinstance(scales, Mapping))
        else []
    )
    return [1, *(value for value in (*factors, config.get("depth_multiple")) if is_number(value) and value > 1)]

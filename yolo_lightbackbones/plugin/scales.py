"""The scale letter of a model YAML, and the factors that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolo_lightbackbones.bounds import is_number
from yolo_lightbackbones.messages import flow, listed, quoted
from yolo_lightbackbones.plugin import limits
from yolo_lightbackbones.plugin.row import Row


def scale_of(row: Row, config: Mapping[str, Any]) -> str | None:
    """Return the scale letter of the model; if the file name has none, Ultralytics takes the first of `scales`."""
    scales, scale = config.get("scales"), config.get("scale")
    if scale is not None and not isinstance(scale, str | int):
        raise row.error(f"the scale is {flow(scale)}; it must be a letter.")
    if not scales:
        return str(scale) if scale else None
    if not isinstance(scales, Mapping) or not all(_is_scale(factors) for factors in scales.values()):
        raise row.error(
            f"'scales' is {flow(scales)}; it must map letters to [depth, width, largest number of channels], depth "
            f"and width above 0 and at most {limits.LARGEST_FACTOR}."
        )
    scale = scale or next(iter(scales))
    if scale not in scales:
        raise row.error(f"no scale {quoted(scale)} in this model's 'scales'. Allowed: {listed(scales)}.")
    return str(scale)


def _is_scale(factors: Any) -> bool:
    if not isinstance(factors, list | tuple) or len(factors) != 3 or not all(map(is_number, factors)):
        return False
    depth, width, channels = factors
    return bool(0 < depth <= limits.LARGEST_FACTOR and 0 < width <= limits.LARGEST_FACTOR and channels >= 1)

"""How much a value of a stranger's YAML may stand for.

Aliases make a YAML short and its values many: seven lines of nine aliases each are 4,782,969 values. Loading such a
file takes no time, since an alias is a reference; code that walks through the values does not come back. `extent`
visits what is repeated once, and refuses what is too much.
"""

from __future__ import annotations

import ast
import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, TypeGuard

from yolo_lightbackbones.messages import quoted

MOST_VALUES = 100_000
"""In a model YAML, with every alias written out; the bundled ones have under 1,000."""
DEEPEST = 32
LARGEST_NUMBER = 1_000_000
"""Largest number of classes, of channels, or of anything else that a row counts."""
LONGEST_TEXT = 200
"""Characters of a text in a row. Ultralytics reads all of them as Python literals, whose parser has limits."""


class BoundsError(ValueError):
    """A value is too much; the message goes behind what it is called."""


def children(value: Any) -> Iterable[Any] | None:
    """The items of a container; None for a single value."""
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, Sequence | Set) and not isinstance(value, str | bytes):
        return value
    return None


def extent(
    value: Any,
    seen: dict[int, tuple[int, int] | None],
    check: Callable[[Any], None] | None = None,
    inside: Callable[[Any], Iterable[Any] | None] = children,
    level: int = 0,
) -> tuple[int, int]:
    """How many values a value stands for when its aliases are written out, and how deeply they are nested.

    Args:
        value: what a YAML file gives.
        seen: what has been visited, by `id`, and its extent; None while it is being visited.
        check: called for every single value.
        inside: what a value holds.
        level: how deep the value itself is.

    Raises:
        BoundsError: for more than `MOST_VALUES`, more than `DEEPEST` levels, or a value that contains itself.
    """
    items = inside(value)
    if items is None:
        if check is not None:
            check(value)
        return 1, 0
    if id(value) in seen:
        if (known := seen[id(value)]) is None:
            raise BoundsError("it contains itself. Write it without the alias.")
        return known
    if level > DEEPEST:
        raise BoundsError(f"it is nested deeper than {DEEPEST} levels. Write it flat.")
    seen[id(value)] = None
    count, height = 1, 0
    for item in items:
        inner, levels = extent(item, seen, check, inside, level + 1)
        count, height = count + inner, max(height, levels + 1)
    if height > DEEPEST:
        raise BoundsError(f"it is nested deeper than {DEEPEST} levels. Write it flat.")
    if count > MOST_VALUES:
        raise BoundsError(f"with its aliases written out it has {count:,} values; at most {MOST_VALUES:,} are taken.")
    seen[id(value)] = count, height
    return count, height


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number; `True` and `1.0` are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a number; `True` is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_scalar(value: Any) -> None:
    """Refuse a number or a text that nobody means.

    Raises:
        BoundsError: for numbers beyond `LARGEST_NUMBER`, as they are or in a text, and for texts over `LONGEST_TEXT`.
    """
    if isinstance(value, str):
        if len(value) > LONGEST_TEXT:
            raise BoundsError(f"it has a text of {len(value):,} characters; at most {LONGEST_TEXT} are taken.")
        read: Any = None
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            read = ast.literal_eval(value)
        if not isinstance(read, str):
            extent(read, {}, check_scalar)
    elif isinstance(value, int | float) and LARGEST_NUMBER < abs(value) != math.inf:
        raise BoundsError(f"it has the number {quoted(value)}; at most {LARGEST_NUMBER:,} is taken.")

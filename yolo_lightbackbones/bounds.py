"""Limits for the values of a YAML of unknown origin.

Aliases let a short YAML stand for many values: seven lines of nine aliases each are 4,782,969 values. Such a file loads
at once, because an alias is a reference, but code that walks through all values never ends. `extent` visits a repeated
value once, and refuses a value that is too large.
"""

from __future__ import annotations

import ast
import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, TypeGuard

from yolo_lightbackbones.messages import quoted

MOST_VALUES = 100_000
"""Most values in a model YAML, with every alias written out; the bundled ones have under 1,000."""
DEEPEST = 32
"""Most levels of nesting."""
LARGEST_NUMBER = 1_000_000
"""Largest number of classes, of channels, or of anything else that a row counts."""
LONGEST_TEXT = 200
"""Longest text in a row, in characters. Ultralytics reads every text as a Python literal, whose parser has limits."""


class BoundsError(ValueError):
    """A value is too large or too deep. The message calls it "it": the caller puts the name of the value in front."""


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
    """Count the values that a value stands for when its aliases are written out, and their levels of nesting.

    Args:
        value: any value that was read from a YAML file.
        seen: extents of the containers visited so far, by `id`; None while a container is being visited.
        check: called with every single value.
        inside: gives the items of a container, None for a single value.
        level: depth of the value itself.

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
    """Whether `value` is a whole number; `True` and `1.0` are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether `value` is a number; `True` is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_scalar(value: Any) -> None:
    """Refuse a number or a text that is too large to be meant.

    Raises:
        BoundsError: for a number above `LARGEST_NUMBER`, also inside a text, and for a text above `LONGEST_TEXT`.
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

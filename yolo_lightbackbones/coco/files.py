"""JSON files of the user's, and lists of what is wrong with them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from yolo_lightbackbones.bounds import is_whole
from yolo_lightbackbones.messages import flow

MAX_EXAMPLES = 5
MAX_COORDINATE = 2**31
"""Pixels. Boxes farther out are no boxes: where x is so large that x + width is x, an IoU comes out wrong."""


@dataclass
class Tally:
    """How often something was seen, with the first few examples, cut at some length and printable."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: object, times: int = 1) -> None:
        self.count += times
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(flow(example))

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{', '.join(self.examples)}{more}"


def shortened(values: Iterable[object]) -> str:
    """The first few values as a list in words."""
    tally = Tally()
    for value in values:
        tally.add(value)
    return str(tally)


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file; `what` says in messages which file it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, no file, not JSON, or too large for the memory.
    """
    check_file(path, what)
    try:
        content = path.read_bytes()
        if content.strip():
            return json.loads(content)
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, and numbers of thousands of digits
        raise ValueError(f"The {what} {path} is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"The {what} {path} has brackets within brackets without end.") from error
    except MemoryError as error:
        raise ValueError(f"The {what} {path} does not fit into the memory.") from error
    raise ValueError(f"The {what} {path} is empty (0 bytes of content).")


def check_file(path: Path, what: str) -> None:
    """Whether a file of the user's is there; `what` says in messages which it is.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is a folder.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; the {what} is needed here.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no {what} {path}.")


def is_id(value: object) -> TypeGuard[int]:
    """Whether `value` is a whole number that numpy can hold, as pycocotools needs it."""
    return is_whole(value) and abs(value) < 2**63


def stem(file_name: object) -> str:
    """A file's name without folder and suffix, or "" for what is no text; folders may be written as Windows does."""
    return PurePosixPath(file_name.replace("\\", "/")).stem if isinstance(file_name, str) else ""


def as_id(text: str) -> int | None:
    """A text that is written in digits as the id that it is."""
    return int(text) if text.isdecimal() and len(text) < 19 else None


def is_number(value: object) -> bool:
    """Whether `value` is a number that a float can hold, and finite."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of some hundred digits
        return False


def is_side(value: object) -> TypeGuard[int]:
    """Whether `value` can be the width or height of an image."""
    return is_whole(value) and 0 < value < MAX_COORDINATE


def is_box(value: object) -> bool:
    """Whether `value` is [x, y, width, height] in finite numbers that can be pixels."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(is_number(number) and abs(number) < MAX_COORDINATE for number in value)
    )

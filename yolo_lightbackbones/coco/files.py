"""Reads the user's JSON files, checks their values, and counts what is wrong with them."""

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
"""In pixels; boxes farther out are refused. If x is so large that x + width equals x, the IoU is wrong."""


@dataclass
class Tally:
    """A count of something, with its first few examples, shortened and printable."""

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
    """The first few values as one text, separated by commas."""
    tally = Tally()
    for value in values:
        tally.add(value)
    return str(tally)


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file; messages call it `what`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the path is a folder, or the file is empty, not JSON, or too large for the memory.
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
    """Refuse a path that is not a file; messages call it `what`.

    Raises:
        FileNotFoundError: there is no such file.
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
    """A file's name without folder and suffix, "" if it is not a text; folders may be separated as on Windows."""
    return PurePosixPath(file_name.replace("\\", "/")).stem if isinstance(file_name, str) else ""


def as_id(text: str) -> int | None:
    """The id that a text of digits stands for; None for any other text."""
    return int(text) if text.isdecimal() and len(text) < 19 else None


def is_number(value: object) -> bool:
    """Whether `value` is a finite number that a float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of several hundred digits
        return False


def is_side(value: object) -> TypeGuard[int]:
    """Whether `value` can be the width or height of an image."""
    return is_whole(value) and 0 < value < MAX_COORDINATE


def is_box(value: object) -> bool:
    """Whether `value` is [x, y, width, height] in finite numbers of pixels below `MAX_COORDINATE`."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(is_number(number) and abs(number) < MAX_COORDINATE for number in value)
    )

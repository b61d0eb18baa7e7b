"""Checks masks in COCO's format before pycocotools reads them: its C code checks nothing."""

from __future__ import annotations

from typing import Any

from yolo_lightbackbones.bounds import is_whole
from yolo_lightbackbones.coco.files import is_number

FAR = 1e5
"""Largest coordinate in pixels. pycocotools walks along an outline step by step, and counts the steps in 32 bits."""

LONGEST_OUTLINE = 2e6
"""Longest outline in pixels, all sides together. pycocotools stores five steps per pixel: 200 MB for this length."""

MAX_PIXELS = 2**32
"""Limit for the pixels of an image, which pycocotools counts in 32 bits."""

_LONGEST_RUN = 7  # characters


def is_rle(value: Any, height: int, width: int) -> bool:
    """Whether `value` is a run-length encoding, compressed or as numbers, that covers height x width pixels."""
    if not isinstance(value, dict) or value.get("size") != [height, width]:
        return False
    counts = value.get("counts")
    if isinstance(counts, str):
        if len(counts) > _LONGEST_RUN * (height * width + 1):
            return False  # more runs than pixels
        try:
            counts = decode(counts)
        except ValueError:
            return False
    return isinstance(counts, list) and all(is_whole(n) and n >= 0 for n in counts) and sum(counts) == height * width


def is_polygons(value: Any) -> bool:
    """Whether `value` is one or more outlines [x, y, x, y, ...] of three points or more."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(outline, list) and len(outline) >= 6 and len(outline) % 2 == 0 for outline in value)
        and all(is_number(number) and abs(number) <= FAR for outline in value for number in outline)
        and all(_length(outline) <= LONGEST_OUTLINE for outline in value)
    )


def _length(outline: list[float]) -> float:
    """The number of steps along all sides; each side takes the longer of its two extents."""
    corners = list(zip(outline[::2], outline[1::2], strict=True))
    sides = zip(corners, [*corners[1:], corners[0]], strict=True)
    return sum(max(abs(x2 - x1), abs(y2 - y1)) for (x1, y1), (x2, y2) in sides)


def decode(counts: str) -> list[int]:
    """Decode run lengths from the text into which pycocotools compresses them.

    A number is split into groups of five bits, the lowest first. Each group is one character: code 48 plus the group,
    plus 32 if another group follows. In the last group, bit 16 means that the number is negative. The first three
    numbers are run lengths; from the fourth on, a number is the difference to the run two places before.

    Raises:
        ValueError: the text is no such encoding.
    """
    runs: list[int] = []
    number = shift = 0
    for character in counts:
        group = ord(character) - 48
        if not 0 <= group < 64:
            raise ValueError(f"{character!r} is not in the alphabet of run lengths")
        number |= (group & 31) << shift
        shift += 5
        if group & 32:
            if shift > 30:
                raise ValueError("a run length of more than 32 bits")
            continue
        if group & 16:
            number -= 1 << shift
        runs.append(number)
        number = shift = 0
    if shift:
        raise ValueError("the last run length is cut off")
    for i in range(3, len(runs)):
        runs[i] += runs[i - 2]
    return runs

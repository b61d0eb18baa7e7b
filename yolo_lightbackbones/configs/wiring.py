"""Makes the rows of a model YAML: the taps of a backbone, connected by a neck to a head."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yolo_lightbackbones.backbone import TAPS
from yolo_lightbackbones.configs.necks import EXTRA_LEVEL, LEVELS, Neck, Share, Step

_SIZES = {"P2": "xsmall", "P3": "small", "P4": "medium", "P5": "large", "P6": "xlarge"}


@dataclass(frozen=True)
class Line:
    """A row of a model YAML and the comment after it; with `gap`, an empty line comes before the row."""

    row: list[Any]
    comment: str = ""
    gap: bool = False


def reduction(level: str) -> int:
    """Side of the image divided by the side of the level's feature map: 8 for P3."""
    return int(2 ** int(level.removeprefix("P")))


def check_levels(levels: Sequence[str]) -> None:
    """Refuse levels that a neck cannot work on.

    Raises:
        ValueError: with the given levels and the allowed ones.
    """
    if unknown := [level for level in levels if level not in LEVELS]:
        raise ValueError(f"There is no level {unknown[0]!r}. Allowed: {', '.join(LEVELS)}.")
    start = LEVELS.index(levels[0]) if levels else 0
    if len(levels) < 2 or tuple(levels) != LEVELS[start : start + len(levels)]:
        raise ValueError(
            f"The levels are {','.join(levels) or 'none'}; a neck needs two or more that follow each other, shallow to "
            f"deep, out of {', '.join(LEVELS)}: P3,P4,P5, for example."
        )


def detector(neck: Neck, backbone: list[Any], levels: Sequence[str], task: str) -> tuple[list[Line], list[Line]]:
    """Make the rows of `backbone:` and of `head:` of any model but a classifier.

    Args:
        neck: the neck.
        backbone: module and arguments of row 0, such as `["RepViT", ["m1_0"]]`.
        levels: levels that the neck works on, consecutive, shallow to deep; P6 is made from P5.
        task: one of `TASKS` that the neck has a head for.

    Raises:
        ValueError: for levels that do not fit together, or not to the head.
    """
    check_levels(levels)
    head = neck.heads[task]
    problem = "" if head.shallowest in (None, levels[0]) else f"needs levels from {head.shallowest} on"
    problem = problem if head.levels in (None, len(levels)) else f"takes exactly {head.levels} levels"
    if problem:
        raise ValueError(f"{head.module} {problem}, such as P3,P4,P5; the levels are {','.join(levels)}.")
    width = neck.channels_extra if EXTRA_LEVEL in levels else neck.channels
    deepest = levels[-1]
    lines = [Line([-1, 1, *backbone], "0-all taps")]

    def add(source: Any, step: Step, level: str, comment: str = "") -> int:
        arguments = [_resolved(argument, width, level) for argument in step.arguments]
        lines.append(Line([source, step.repeats, step.module, arguments], comment))
        return len(lines) - 1

    def numbered(source: Any, step: Step, level: str) -> int:
        return add(source, step, level, str(len(lines)))

    rows = {}
    """Level -> the row that the way up takes it from."""
    for level in levels:
        if level in TAPS:
            rows[level] = len(lines)
            lines.append(Line([0, 1, "Tap", [level]], f"{len(lines)}-{level}/{reduction(level)}"))
    if deepest == EXTRA_LEVEL:
        add(-1, neck.extra[0], deepest, f"{len(lines)}-{deepest}/{reduction(deepest)}")
        rows[deepest] = add(-1, neck.extra[1], deepest)
    last_rows = neck.deepest_extra if deepest == EXTRA_LEVEL and neck.deepest_extra else neck.deepest
    for step in last_rows:
        rows[deepest] = numbered(-1, step, deepest)
    split = len(lines)

    inner = dict(rows)
    """Level -> the row that the way down takes it from."""
    for step in neck.encoder:
        inner[deepest] = numbered(-1, step, deepest)
    for level in reversed(levels[:-1]):
        below = LEVELS[LEVELS.index(level) + 1]
        if neck.lateral:
            inner[below] = numbered(-1, neck.lateral, level)
        lines.append(Line([-1, 1, "nn.Upsample", [None, 2, "nearest"]]))
        if neck.project:
            numbered(rows[level], neck.project, level)
        lines.append(Line([[-2, -1] if neck.project else [-1, rows[level]], 1, "Concat", [1]], f"cat backbone {level}"))
        inner[level] = add(-1, neck.up[level], level, _named(len(lines), level if level == levels[0] else None))
    outputs = [inner[level] for level in levels[: -1 if not head.way_down else 1]]
    if neck.guide:
        numbered([inner[level] for level in levels], neck.guide, deepest)
    for above, level in itertools.pairwise(levels if head.way_down else ()):
        add(outputs[-1] if neck.guide and above == levels[0] else -1, neck.downsample[level], level)
        lines.append(Line([[-1, inner[level]], 1, "Concat", [1]], f"cat head {level}"))
        step = neck.last if level == deepest else neck.down[level]
        outputs.append(add(-1, step, level, _named(len(lines), level)))

    names = levels[: len(outputs)]
    lines.append(Line([outputs, 1, head.module, list(head.arguments)], f"{head.module}({', '.join(names)})"))
    return lines[:split], _spaced(lines[split:])


def classifier(backbone: list[Any], deepest: str = TAPS[-1]) -> tuple[list[Line], list[Line]]:
    """Make the rows of `backbone:` and of `head:` of an image classifier on the deepest tap."""
    taps = [
        Line([-1, 1, *backbone], "0-all taps"),
        Line([0, 1, "Tap", [deepest]], f"1-{deepest}/{reduction(deepest)}"),
    ]
    return taps, [Line([-1, 1, "Classify", ["nc"]], "Classify")]


def _resolved(argument: Any, width: Mapping[str, int], level: str) -> Any:
    if not isinstance(argument, Share):
        return argument
    return width[LEVELS[LEVELS.index(level) - argument.above]] // argument.divisor


def _named(number: int, level: str | None) -> str:
    return f"{number} ({level}/{reduction(level)}-{_SIZES[level]})" if level else str(number)


def _spaced(lines: Sequence[Line]) -> list[Line]:
    """Add an empty line after every numbered block, as in Ultralytics' own files."""
    spaced: list[Line] = []
    for previous, line in zip([None, *lines], lines, strict=False):
        gap = previous is not None and previous.comment[:1].isdigit() and previous.row[2] != "Conv"
        spaced.append(Line(line.row, line.comment, gap))
    return spaced

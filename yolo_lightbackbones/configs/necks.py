"""The necks and heads of Ultralytics' generations as data, and the rows that connect them to the taps of a backbone.

All necks are path aggregation networks: a path up from the deepest level to the shallowest, then a path down again.
They differ in the block, in its arguments, and in whether a 1x1 convolution reduces a level's channels before it goes
up. Everything is as in Ultralytics (`cfg/models` of its package; a test compares row by row), for any consecutive
levels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yolo_lightbackbones.backbone import TAPS

EXTRA_LEVEL = "P6"
"""The level that the neck makes, not the backbone: one more downsampling after P5."""
LEVELS = (*TAPS, EXTRA_LEVEL)
SIZES = {"P2": "xsmall", "P3": "small", "P4": "medium", "P5": "large", "P6": "xlarge"}

TASKS = {"detect": "", "segment": "-seg", "pose": "-pose", "obb": "-obb", "classify": "-cls"}
"""Task -> suffix in the name of Ultralytics' YAML."""


@dataclass(frozen=True)
class Step:
    """A row whose first argument is a number of channels; these are its repeats, module and further arguments."""

    repeats: int
    module: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Neck:
    """One generation: depth, width and limit of channels per scale letter, and its rows from the taps to the head."""

    title: str
    scales: Mapping[str, tuple[float, float, int]]
    deepest: tuple[Step, ...]
    """Rows of the deepest level before the way up."""
    extra: Step
    """The block after the convolution that makes P6."""
    up: Step
    down: Step
    last: Step
    """The block of the deepest level on the way down."""
    lateral: bool = False
    """Whether a 1x1 convolution reduces a level's channels before it goes up."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the model YAML that the head needs."""
    heads: Mapping[str, str] = field(
        default_factory=lambda: {"detect": "Detect", "segment": "Segment", "pose": "Pose", "obb": "OBB"}
    )


_V8_SCALES = {
    "n": (0.33, 0.25, 1024),
    "s": (0.33, 0.50, 1024),
    "m": (0.67, 0.75, 768),
    "l": (1.00, 1.00, 512),
    "x": (1.00, 1.25, 512),
}
_11_SCALES = {
    "n": (0.50, 0.25, 1024),
    "s": (0.50, 0.50, 1024),
    "m": (0.50, 1.00, 512),
    "l": (1.00, 1.00, 512),
    "x": (1.00, 1.50, 512),
}

NECKS = {
    "yolov5": Neck(
        title="YOLOv5",
        scales={
            "n": (0.33, 0.25, 1024),
            "s": (0.33, 0.50, 1024),
            "m": (0.67, 0.75, 1024),
            "l": (1.00, 1.00, 1024),
            "x": (1.33, 1.25, 1024),
        },
        deepest=(Step(1, "SPPF", (5,)),),
        extra=Step(3, "C3"),
        up=Step(3, "C3", (False,)),
        down=Step(3, "C3", (False,)),
        last=Step(3, "C3", (False,)),
        lateral=True,
    ),
    "yolov8": Neck(
        title="YOLOv8",
        scales=_V8_SCALES,
        deepest=(Step(1, "SPPF", (5,)),),
        extra=Step(3, "C2f", (True,)),
        up=Step(3, "C2f"),
        down=Step(3, "C2f"),
        last=Step(3, "C2f"),
    ),
    "yolo11": Neck(
        title="YOLO11",
        scales=_11_SCALES,
        deepest=(Step(1, "SPPF", (5,)), Step(2, "C2PSA")),
        extra=Step(2, "C3k2", (True,)),
        up=Step(2, "C3k2", (False,)),
        down=Step(2, "C3k2", (False,)),
        last=Step(2, "C3k2", (True,)),
    ),
    "yolo26": Neck(
        title="YOLO26",
        scales=_11_SCALES,
        deepest=(Step(1, "SPPF", (5, 3, True)), Step(2, "C2PSA")),
        extra=Step(2, "C3k2", (True,)),
        up=Step(2, "C3k2", (True,)),
        down=Step(2, "C3k2", (True,)),
        last=Step(1, "C3k2", (True, 0.5, True)),
        settings={"end2end": True, "reg_max": 1},
        heads={"detect": "Detect", "segment": "Segment26", "pose": "Pose26", "obb": "OBB26"},
    ),
}

_HEAD_ARGUMENTS: Mapping[str, list[Any]] = {
    "detect": ["nc"],
    "segment": ["nc", 32, 256],
    "pose": ["nc", "kpt_shape"],
    "obb": ["nc", 1],
}


@dataclass(frozen=True)
class Line:
    """A row of a model YAML and the comment after it; with `gap`, an empty line comes before the row."""

    row: list[Any]
    comment: str = ""
    gap: bool = False


def channels(levels: Sequence[str]) -> dict[str, int]:
    """Channels of each level before the scale's width, as Ultralytics chooses them."""
    last = {"P5": 768, "P6": 1024} if EXTRA_LEVEL in levels else {"P5": 1024}
    return {"P2": 128, "P3": 256, "P4": 512} | last


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
    """Make the rows of `backbone:` and of `head:` of a detector.

    Args:
        neck: the generation.
        backbone: module and arguments of row 0, such as `["RepViT", ["m1_0"]]`.
        levels: levels that the neck works on, consecutive, shallow to deep; P6 is made from P5.
        task: one of `TASKS` that the neck has a head for.

    Raises:
        ValueError: for levels that do not fit together.
    """
    check_levels(levels)
    width = channels(levels)
    deepest = levels[-1]
    lines = [Line([-1, 1, *backbone], "0-all taps")]

    def add(source: Any, step: Step, level: str, comment: str = "") -> int:
        lines.append(Line([source, step.repeats, step.module, [width[level], *step.arguments]], comment))
        return len(lines) - 1

    rows = {}
    """Level -> the row that the way up takes it from."""
    for level in levels:
        if level in TAPS:
            rows[level] = len(lines)
            lines.append(Line([0, 1, "Tap", [level]], f"{len(lines)}-{level}/{reduction(level)}"))
    if deepest == EXTRA_LEVEL:
        add(-1, Step(1, "Conv", (3, 2)), deepest, f"{len(lines)}-{deepest}/{reduction(deepest)}")
        rows[deepest] = add(-1, neck.extra, deepest)
    for step in neck.deepest:
        rows[deepest] = add(-1, step, deepest, str(len(lines)))
    split = len(lines)

    inner = dict(rows)
    """Level -> the row that the way down takes it from."""
    for level in reversed(levels[:-1]):
        below = LEVELS[LEVELS.index(level) + 1]
        if neck.lateral:
            inner[below] = add(-1, Step(1, "Conv", (1, 1)), level, str(len(lines)))
        lines.append(Line([-1, 1, "nn.Upsample", [None, 2, "nearest"]]))
        lines.append(Line([[-1, rows[level]], 1, "Concat", [1]], f"cat backbone {level}"))
        inner[level] = add(-1, neck.up, level, _named(len(lines), level if level == levels[0] else None))
    outputs = [inner[levels[0]]]
    for above, level in itertools.pairwise(levels):
        add(-1, Step(1, "Conv", (3, 2)), above)
        lines.append(Line([[-1, inner[level]], 1, "Concat", [1]], f"cat head {level}"))
        outputs.append(add(-1, neck.last if level == deepest else neck.down, level, _named(len(lines), level)))

    head = neck.heads[task]
    lines.append(Line([outputs, 1, head, list(_HEAD_ARGUMENTS[task])], f"{head}({', '.join(levels)})"))
    return lines[:split], _spaced(lines[split:])


def classifier(backbone: list[Any], deepest: str = TAPS[-1]) -> tuple[list[Line], list[Line]]:
    """Make the rows of `backbone:` and of `head:` of an image classifier on the deepest tap."""
    taps = [
        Line([-1, 1, *backbone], "0-all taps"),
        Line([0, 1, "Tap", [deepest]], f"1-{deepest}/{reduction(deepest)}"),
    ]
    return taps, [Line([-1, 1, "Classify", ["nc"]], "Classify")]


def _named(number: int, level: str | None) -> str:
    return f"{number} ({level}/{reduction(level)}-{SIZES[level]})" if level else str(number)


def _spaced(lines: Sequence[Line]) -> list[Line]:
    """Add an empty line after every numbered block, as in Ultralytics' own files."""
    spaced: list[Line] = []
    for previous, line in zip([None, *lines], lines, strict=False):
        gap = previous is not None and previous.comment[:1].isdigit() and previous.row[2] != "Conv"
        spaced.append(Line(line.row, line.comment, gap))
    return spaced

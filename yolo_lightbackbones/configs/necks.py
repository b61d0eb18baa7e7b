"""The necks and heads of Ultralytics' models as data, for any consecutive levels; `wiring` makes rows of them.

Every neck leads up from the deepest level to the shallowest and, for most heads, down again. The necks differ in the
blocks, in their arguments, in whether 1x1 convolutions bring levels to the neck's channels, and in what the deepest
level goes through first (RT-DETR: a transformer layer). Everything is as in Ultralytics: `cfg/models` of its package; a
test compares row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from yolo_lightbackbones.backbone import TAPS

EXTRA_LEVEL = "P6"
"""The level that the neck makes, not the backbone: one more downsampling after P5."""
LEVELS = (*TAPS, EXTRA_LEVEL)

TASKS = {
    "detect": "",
    "segment": "-seg",
    "pose": "-pose",
    "obb": "-obb",
    "classify": "-cls",
    "semantic": "-sem",
    "depth": "-depth",
}
"""Task -> suffix in the name of Ultralytics' YAML."""


@dataclass(frozen=True)
class Share:
    """An argument that depends on the level of its row: the level's channels, divided.

    `above` takes the channels of the next shallower level instead.
    """

    divisor: int = 1
    above: bool = False


C, HALF, ABOVE = Share(), Share(2), Share(above=True)


@dataclass(frozen=True)
class Step:
    """A row at a level: repeats, module, and arguments, which may contain `Share`s."""

    repeats: int
    module: str
    arguments: tuple[Any, ...]


Steps = Mapping[str, Step]
"""Level -> the step there."""


def everywhere(step: Step) -> dict[str, Step]:
    """The same step at every level."""
    return dict.fromkeys(LEVELS, step)


@dataclass(frozen=True)
class Head:
    """The last row of a model, and what it needs."""

    module: str
    arguments: tuple[Any, ...] = ("nc",)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the model YAML that the head needs; `nc` only if it is not 80."""
    way_down: bool = True
    """Whether the head takes the maps of the way down; otherwise those of the way up, and there is no way down."""
    shallowest: str | None = None
    """The shallowest level that the head must have, because its outputs are enlarged by a fixed factor."""
    levels: int | None = None
    """The number of levels that the head is built for; None: any."""


HEADS = {
    "detect": Head("Detect"),
    "segment": Head("Segment", ("nc", 32, 256)),
    "pose": Head("Pose", ("nc", "kpt_shape"), {"kpt_shape": [17, 3]}),
    "obb": Head("OBB", ("nc", 1)),
    "semantic": Head("SemanticSegment", settings={"nc": 19}, way_down=False, shallowest="P3"),
    "depth": Head("Depth", (256,), {"nc": 1}, shallowest="P3"),
}

_SPPF = Step(1, "SPPF", (C, 5))
_UNACTIVATED_SPPF = Step(1, "SPPF", (C, 5, 3, True))
_C2PSA = Step(2, "C2PSA", (C,))
_DOWN = Step(1, "Conv", (C, 3, 2))


@dataclass(frozen=True)
class Neck:
    """One neck with its heads: its scales, its channels, and its rows from the taps to the head."""

    title: str
    scales: Mapping[str, tuple[float, float, int]]
    """Scale letter -> depth, width, and limit of channels."""
    extra: tuple[Step, Step]
    """Downsampling and block that make P6."""
    up: Steps
    down: Steps
    last: Step
    """The block of the deepest level on the way down."""
    deepest: tuple[Step, ...] = ()
    """Rows of the deepest level before the way up, at the end of the backbone."""
    deepest_extra: tuple[Step, ...] | None = None
    """The same where P6 is the deepest level, if it differs."""
    encoder: tuple[Step, ...] = ()
    """Rows of the deepest level before the way up, at the start of the head."""
    project: Step | None = None
    """The convolution that brings a tap to the neck's channels before it is concatenated."""
    lateral: Step | None = None
    """The convolution of a level's map before it goes up, with the channels of the level that it goes to."""
    guide: Step | None = None
    """A row between the way up and the way down that takes all levels."""
    downsample: Steps = field(default_factory=lambda: everywhere(Step(1, "Conv", (ABOVE, 3, 2))))
    """Level -> the row that leads down to it."""
    channels: Mapping[str, int] = field(default_factory=lambda: {"P2": 128, "P3": 256, "P4": 512, "P5": 1024})
    """Level -> channels before the scale's width."""
    channels_extra: Mapping[str, int] = field(
        default_factory=lambda: {"P2": 128, "P3": 256, "P4": 512, "P5": 768, "P6": 1024}
    )
    """The same with P6."""
    heads: Mapping[str, Head] = field(default_factory=lambda: HEADS)
    """Task -> head."""
    name_part: str = ""
    """Text in the name of a model YAML by which Ultralytics chooses the class of the model."""


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

_C3 = Step(3, "C3", (C, False))
_YOLOV5 = Neck(
    title="YOLOv5",
    scales={
        "n": (0.33, 0.25, 1024),
        "s": (0.33, 0.50, 1024),
        "m": (0.67, 0.75, 1024),
        "l": (1.00, 1.00, 1024),
        "x": (1.33, 1.25, 1024),
    },
    deepest=(_SPPF,),
    extra=(_DOWN, Step(3, "C3", (C,))),
    up=everywhere(_C3),
    down=everywhere(_C3),
    last=_C3,
    lateral=Step(1, "Conv", (C, 1, 1)),
)

_C2F = Step(3, "C2f", (C,))
_YOLOV8 = Neck(
    title="YOLOv8",
    scales=_V8_SCALES,
    deepest=(_SPPF,),
    extra=(_DOWN, Step(3, "C2f", (C, True))),
    up=everywhere(_C2F),
    down=everywhere(_C2F),
    last=_C2F,
)

_GUIDED = Step(3, "C2fAttn", (C, HALF, Share(64)))
_WORLD = replace(
    _YOLOV8,
    up=everywhere(_GUIDED),
    down=everywhere(_GUIDED),
    last=_GUIDED,
    name_part="-world",
)

_YOLOE_HEADS = {
    "detect": Head("YOLOEDetect", ("nc", 512, True), levels=3),
    "segment": Head("YOLOESegment", ("nc", 32, 256, 512, True), levels=3),
}


def _yolov9(size: str, letter: str, channels: tuple[int, ...], down: Step, repeats: int) -> Neck:
    """YOLOv9 has a YAML per size and no scales; `channels` are those of P2 to P6."""
    block = Step(1, "RepNCSPELAN4", (C, C, HALF, repeats))
    widths = dict(zip(LEVELS, channels, strict=True))
    return Neck(
        title=f"YOLOv9{size}",
        scales={letter: (1.0, 1.0, 1024)},
        deepest=(Step(1, "SPPELAN", (C, HALF)),),
        extra=(replace(down, arguments=(C,)), block),
        up=everywhere(block),
        down=everywhere(block),
        last=block,
        downsample=everywhere(down),
        channels=widths,
        channels_extra=widths,
    )


_AVERAGED = Step(1, "AConv", (HALF,))

_CIB = Step(3, "C2fCIB", (C, True))
_LARGE_KERNEL_CIB = Step(3, "C2fCIB", (C, True, True))


def _yolov10(size: str, letters: str, up: Steps, down: Steps, last: Step = _CIB) -> Neck:
    """YOLOv10 has other blocks in larger models, so not all of its scales fit into one YAML."""
    return Neck(
        title=f"YOLOv10{size}",
        scales={letter: _V8_SCALES[letter] for letter in letters},
        deepest=(_SPPF, Step(1, "PSA", (C,))),
        extra=(Step(1, "SCDown", (C, 3, 2)), Step(3, "C2f", (C, True))),
        up=up,
        down=down,
        last=last,
        downsample=everywhere(Step(1, "Conv", (ABOVE, 3, 2)))
        | dict.fromkeys(("P5", "P6"), Step(1, "SCDown", (ABOVE, 3, 2))),
        heads={"detect": Head("v10Detect")},
    )


_PLAIN = everywhere(_C2F)
_DEEP_CIB = _PLAIN | dict.fromkeys(("P4", "P5", "P6"), _CIB)

_YOLO11 = Neck(
    title="YOLO11",
    scales=_11_SCALES,
    deepest=(_SPPF, _C2PSA),
    extra=(_DOWN, Step(2, "C3k2", (C, True))),
    up=everywhere(Step(2, "C3k2", (C, False))),
    down=everywhere(Step(2, "C3k2", (C, False))),
    last=Step(2, "C3k2", (C, True)),
)

# A2C2f needs 64 channels or more, which P2 does not have at scale n; YOLO12 itself has C3k2 in its shallow stages.
_A2C2F = everywhere(Step(2, "A2C2f", (C, False, -1))) | {"P2": Step(2, "C3k2", (C, False))}

_END_TO_END = {"end2end": True, "reg_max": 1}
_YOLO26 = Neck(
    title="YOLO26",
    scales=_11_SCALES,
    deepest=(_UNACTIVATED_SPPF, _C2PSA),
    deepest_extra=(Step(1, "SPPF", (C, 5, 3, False)), _C2PSA),
    extra=(_DOWN, Step(2, "C3k2", (C, True))),
    up=everywhere(Step(2, "C3k2", (C, True))),
    down=everywhere(Step(2, "C3k2", (C, True))),
    last=Step(1, "C3k2", (C, True, 0.5, True)),
    heads={
        "detect": Head("Detect", settings=_END_TO_END),
        "segment": Head("Segment26", ("nc", 32, 256), _END_TO_END),
        "pose": Head("Pose26", ("nc", "kpt_shape"), {"kpt_shape": [17, 3], **_END_TO_END}),
        "obb": Head("OBB26", ("nc", 1), _END_TO_END),
        "semantic": HEADS["semantic"],
        "depth": HEADS["depth"],
    },
)
_YOLOE_26 = {**_END_TO_END, "text_model": "mobileclip2:b"}


def _rtdetr(size: str, letters: str, channels: int, hidden: int) -> Neck:
    """RT-DETR: all levels get the same channels, and the deepest goes through a transformer layer."""
    project = Step(1, "Conv", (C, 1, 1, None, 1, 1, False))
    block = Step(3, "RepC3", (C,))
    widths = dict.fromkeys(LEVELS, channels)
    return Neck(
        title=f"RT-DETR{size}",
        scales=dict.fromkeys(letters, (1.0, 1.0, hidden)),
        encoder=(project, Step(1, "AIFI", (hidden, 8))),
        extra=(_DOWN, block),
        project=project,
        lateral=Step(1, "Conv", (C, 1, 1)),
        up=everywhere(block),
        down=everywhere(block),
        last=block,
        channels=widths,
        channels_extra=widths,
        heads=_DECODER,
        name_part="rtdetr",
    )


_DECODER = {"detect": Head("RTDETRDecoder")}

NECKS = {
    "yolov5": _YOLOV5,
    "yolov8": _YOLOV8,
    "yolov8-rtdetr": replace(_YOLOV8, title="YOLOv8-RT-DETR", heads=_DECODER, name_part="rtdetr"),
    "yolov8-world": replace(
        _WORLD,
        title="YOLOv8-World",
        guide=Step(1, "ImagePoolingAttn", (256,)),
        heads={"detect": Head("WorldDetect", ("nc", 512, False))},
    ),
    "yolov8-worldv2": replace(_WORLD, title="YOLOv8-Worldv2", heads={"detect": Head("WorldDetect", ("nc", 512, True))}),
    "yoloe-v8": replace(_YOLOV8, title="YOLOE-v8", heads=_YOLOE_HEADS, name_part="yoloe"),
    "yolov9t": _yolov9("t", "n", (32, 64, 96, 128, 160), _AVERAGED, 3),
    "yolov9s": _yolov9("s", "s", (64, 128, 192, 256, 320), _AVERAGED, 3),
    "yolov9m": _yolov9("m", "m", (120, 240, 360, 480, 600), _AVERAGED, 1),
    "yolov9c": _yolov9("c", "l", (128, 256, 512, 512, 512), Step(1, "ADown", (ABOVE,)), 1),
    "yolov10": _yolov10("", "ns", _PLAIN, _PLAIN, _LARGE_KERNEL_CIB),
    "yolov10m": _yolov10("m", "m", _PLAIN, _DEEP_CIB),
    "yolov10l": _yolov10("l", "l", _DEEP_CIB, _DEEP_CIB),
    "yolov10x": _yolov10("x", "x", _DEEP_CIB, _DEEP_CIB),
    "yolo11": _YOLO11,
    "yoloe-11": replace(_YOLO11, title="YOLOE-11", heads=_YOLOE_HEADS, name_part="yoloe"),
    "yolo12": replace(
        _YOLO11,
        title="YOLO12",
        deepest=(),
        extra=(_DOWN, Step(4, "A2C2f", (C, True, 1))),
        up=_A2C2F,
        down=_A2C2F,
    ),
    "yolo26": _YOLO26,
    "yoloe-26": replace(
        _YOLO26,
        title="YOLOE-26",
        heads={
            "detect": Head("YOLOEDetect", ("nc", 512, True), _YOLOE_26, levels=3),
            "segment": Head("YOLOESegment26", ("nc", 32, 256, 512, True), _YOLOE_26, levels=3),
        },
        name_part="yoloe",
    ),
    "rtdetr": _rtdetr("", "nsmlx", 256, 1024),
    "rtdetr-x": _rtdetr("-X", "x", 384, 2048),
}


def modules() -> set[str]:
    """Names of all modules of Ultralytics that the necks and heads are made of."""
    found = {"Classify", "Concat"}
    for neck in NECKS.values():
        steps = [*neck.extra, *neck.deepest, *neck.encoder, neck.last, neck.project, neck.lateral, neck.guide]
        steps += [step for steps in (neck.up, neck.down, neck.downsample) for step in steps.values()]
        found |= {step.module for step in steps if step} | {head.module for head in neck.heads.values()}
    return found

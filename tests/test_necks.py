"""Necks and heads are Ultralytics' own: compared row by row with the YAMLs of the installed package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ultralytics
import yaml
from meta_models import reductions, shape_of

from yolo_lightbackbones.configs import writer
from yolo_lightbackbones.configs.necks import LEVELS, NECKS, TASKS
from yolo_lightbackbones.configs.wiring import check_levels

THEIRS = Path(ultralytics.__file__).parent / "cfg" / "models"
P2, P3, P6 = LEVELS[:4], LEVELS[1:4], LEVELS[1:5]
CASES = [  # not yolov8-p6, where Ultralytics has C2 for C2f, as nowhere else
    ("v5/yolov5.yaml", "yolov5", P3, "detect"),
    ("v5/yolov5-p6.yaml", "yolov5", P6, "detect"),
    ("v8/yolov8.yaml", "yolov8", P3, "detect"),
    ("v8/yolov8-p2.yaml", "yolov8", P2, "detect"),
    ("v8/yolov8-seg.yaml", "yolov8", P3, "segment"),
    ("v8/yolov8-pose.yaml", "yolov8", P3, "pose"),
    ("v8/yolov8-obb.yaml", "yolov8", P3, "obb"),
    ("v8/yolov8-rtdetr.yaml", "yolov8-rtdetr", P3, "detect"),
    ("v8/yolov8-world.yaml", "yolov8-world", P3, "detect"),
    ("v8/yolov8-worldv2.yaml", "yolov8-worldv2", P3, "detect"),
    ("v8/yoloe-v8.yaml", "yoloe-v8", P3, "detect"),
    ("v8/yoloe-v8-seg.yaml", "yoloe-v8", P3, "segment"),
    ("v9/yolov9t.yaml", "yolov9t", P3, "detect"),
    ("v9/yolov9s.yaml", "yolov9s", P3, "detect"),
    ("v9/yolov9m.yaml", "yolov9m", P3, "detect"),
    ("v9/yolov9c.yaml", "yolov9c", P3, "detect"),
    ("v9/yolov9c-seg.yaml", "yolov9c", P3, "segment"),
    ("v10/yolov10n.yaml", "yolov10", P3, "detect"),
    ("v10/yolov10s.yaml", "yolov10", P3, "detect"),
    ("v10/yolov10m.yaml", "yolov10m", P3, "detect"),
    ("v10/yolov10l.yaml", "yolov10l", P3, "detect"),
    ("v10/yolov10x.yaml", "yolov10x", P3, "detect"),
    ("11/yolo11.yaml", "yolo11", P3, "detect"),
    ("11/yolo11-seg.yaml", "yolo11", P3, "segment"),
    ("11/yolo11-pose.yaml", "yolo11", P3, "pose"),
    ("11/yolo11-obb.yaml", "yolo11", P3, "obb"),
    ("11/yoloe-11.yaml", "yoloe-11", P3, "detect"),
    ("11/yoloe-11-seg.yaml", "yoloe-11", P3, "segment"),
    ("12/yolo12.yaml", "yolo12", P3, "detect"),
    ("12/yolo12-seg.yaml", "yolo12", P3, "segment"),
    ("12/yolo12-pose.yaml", "yolo12", P3, "pose"),
    ("12/yolo12-obb.yaml", "yolo12", P3, "obb"),
    ("26/yolo26.yaml", "yolo26", P3, "detect"),
    ("26/yolo26-p2.yaml", "yolo26", P2, "detect"),
    ("26/yolo26-p6.yaml", "yolo26", P6, "detect"),
    ("26/yolo26-seg.yaml", "yolo26", P3, "segment"),
    ("26/yolo26-pose.yaml", "yolo26", P3, "pose"),
    ("26/yolo26-obb.yaml", "yolo26", P3, "obb"),
    ("26/yolo26-sem.yaml", "yolo26", P3, "semantic"),
    ("26/yolo26-depth.yaml", "yolo26", P3, "depth"),
    ("26/yoloe-26.yaml", "yoloe-26", P3, "detect"),
    ("26/yoloe-26-seg.yaml", "yoloe-26", P3, "segment"),
    ("26/yolo26-cls.yaml", "yolo26", P3, "classify"),
    ("rt-detr/rtdetr-l.yaml", "rtdetr", P3, "detect"),
    ("rt-detr/rtdetr-x.yaml", "rtdetr-x", P3, "detect"),
]


def halvings(module: str, arguments: list[Any]) -> int:
    """How often a row of Ultralytics' backbones halves the sides of its map."""
    if module in {"Conv", "SCDown", "DWConv"}:
        return int(arguments[2] == 2)
    return {"AConv": 1, "ADown": 1, "HGStem": 2}.get(module, 0)


def by_meaning(config: dict[str, Any], levels: tuple[str, ...]) -> list[list[Any]]:
    """The head's rows with every row number of the backbone replaced by the level that it stands for.

    A level is the last row of its resolution; the deepest is what the whole backbone ends with.
    """
    backbone, names = config["backbone"], {}
    if backbone[1][2] == "Tap":
        names = {i: row[3][0] for i, row in enumerate(backbone) if row[2] == "Tap"}
    else:
        reduction = 0
        for i, (_, _, module, arguments) in enumerate(backbone):
            reduction += halvings(module, arguments)
            if i + 1 == len(backbone) or halvings(*backbone[i + 1][2:]):
                names[i] = f"P{reduction}"
    names[len(backbone) - 1] = levels[-1]

    def name(source: int, number: int) -> Any:
        absolute = source if source >= 0 else number + source
        return names.get(absolute, absolute - len(backbone))

    rows = []
    for number, (source, repeats, module, arguments) in enumerate(config["head"], len(backbone)):
        sources = source if isinstance(source, list) else [source]
        rows.append([[name(each, number) for each in sources], repeats, module, arguments])
    return rows


@pytest.mark.parametrize(("theirs", "neck", "levels", "task"), CASES, ids=[case[0] for case in CASES])
def test_head_scales_and_settings_are_ultralytics(theirs: str, neck: str, levels: tuple[str, ...], task: str) -> None:
    if not (file := THEIRS / theirs).is_file():
        pytest.skip(f"the installed Ultralytics has no {theirs}")
    expected = yaml.safe_load(file.read_text())
    ours = yaml.safe_load(writer.write("repvit", neck, levels=levels, task=task))
    assert by_meaning(ours, levels) == by_meaning(expected, levels)
    scales = {key: tuple(value) for key, value in ours["scales"].items()}
    theirs_scales = {key: tuple(value) for key, value in expected.get("scales", {}).items()}
    if len(theirs_scales) > 1:
        assert scales == theirs_scales
    elif theirs_scales:  # a YAML for one size; ours has more of them where the rows are the same
        assert theirs_scales.items() <= scales.items()
    else:
        assert set(scales.values()) == {(1.0, 1.0, 1024)}  # what the parser does without scales
    kept = {"kpt_shape"} if task == "classify" else {"kpt_shape", "end2end", "reg_max", "text_model"}
    kept |= set() if theirs == "v8/yolov8-pose.yaml" else {"nc"}  # persons alone there; 80 classes in yolo11-pose
    assert {k: ours.get(k) for k in kept} == {k: expected.get(k) for k in kept}


def test_what_the_deepest_level_goes_through_is_ultralytics() -> None:
    """From SPPF (YOLOv9: SPPELAN) on; a generation's P6 rows as well."""
    compared = set()
    for theirs, neck, levels, task in CASES:
        if task == "classify" or not NECKS[neck].deepest or not (file := THEIRS / theirs).is_file():
            continue
        expected = yaml.safe_load(file.read_text())["backbone"]
        ours = yaml.safe_load(writer.write("repvit", neck, levels=levels, task=task))["backbone"]
        pooled = next(i for i, row in enumerate(reversed(expected), 1) if row[2] in {"SPPF", "SPPELAN"})
        start = -pooled - 2 * ("P6" in levels)
        assert ours[start:] == expected[start:], theirs
        compared.add(neck)
    assert compared == {neck for neck in NECKS if neck not in {"yolo12", "rtdetr", "rtdetr-x"}}


RUNS = [("yolo11", levels) for levels in [("P4", "P5"), ("P2", "P3"), ("P2", "P3", "P4"), ("P5", "P6")]]
RUNS += [(neck, LEVELS) for neck in NECKS if not neck.startswith("yoloe")]
RUNS += [("yoloe-v8", ("P2", "P3", "P4")), ("yoloe-11", ("P4", "P5", "P6")), ("yoloe-26", ("P4", "P5", "P6"))]


@pytest.mark.parametrize(("neck", "levels"), RUNS)
def test_any_run_of_levels_builds(neck: str, levels: tuple[str, ...], tmp_path: Path) -> None:
    text = writer.write("repvit_m0_6", neck, levels=levels)
    (file := tmp_path / "mine.yaml").write_text(text)
    model = shape_of(file)
    seen = reductions(model) if "rtdetr" in neck else model.stride.tolist()  # RT-DETR's decoder has no strides
    assert seen == [2 ** int(level[1]) for level in levels]


@pytest.mark.parametrize(
    ("neck", "task", "levels", "message"),
    [
        ("yoloe-11", "detect", P2, "YOLOEDetect takes exactly 3 levels, such as P3,P4,P5; the levels are P2"),
        ("yoloe-26", "segment", P3[:2], "YOLOESegment26 takes exactly 3 levels"),
        (
            "yolo26",
            "semantic",
            P2,
            "SemanticSegment needs levels from P3 on, such as P3,P4,P5; the levels are P2",
        ),
        ("yolo26", "depth", ("P4", "P5"), "Depth needs levels from P3 on"),
        (
            "yolov10",
            "segment",
            P3,
            "yolov10 has no head for the task 'segment'. It has heads for detect;",
        ),
        ("yoloe-11", "pose", P3, "heads for detect, segment; necks with a head for pose: yolov5, yolov8, yolov9t, "),
    ],
)
def test_heads_say_what_they_do_not_take(neck: str, task: str, levels: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        writer.write("repvit", neck, levels=levels, task=task)


@pytest.mark.parametrize("levels", [(), ("P3",), ("P3", "P5"), ("P5", "P4"), ("P1", "P2"), ("P3", "P3")])
def test_levels_that_fit_no_neck_are_refused(levels: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="P2, P3, P4, P5, P6"):
        check_levels(levels)


def test_unknown_names_are_refused_with_what_is_allowed() -> None:
    for wrong, arguments in (
        ("yolov10m", {"backbone": "repvit", "neck": "yolov7"}),
        ("segment", {"backbone": "repvit", "neck": "yolo11", "task": "seg"}),
        ("conv2former", {"backbone": "resnet", "neck": "yolo11"}),
        ("m0_9", {"backbone": "repvit_m9", "neck": "yolo11"}),
    ):
        with pytest.raises(ValueError, match=wrong):
            writer.write(**arguments)
    assert set(TASKS) == set(writer.TASK_TITLES) == set(writer.EXAMPLE_DATA)

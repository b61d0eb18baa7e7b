"""Necks and heads are Ultralytics' own: compared row by row with the YAMLs of the installed package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ultralytics
import yaml

from yolo_lightbackbones.configs import writer
from yolo_lightbackbones.configs.necks import LEVELS, NECKS, TASKS, check_levels

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
    ("11/yolo11.yaml", "yolo11", P3, "detect"),
    ("11/yolo11-seg.yaml", "yolo11", P3, "segment"),
    ("11/yolo11-pose.yaml", "yolo11", P3, "pose"),
    ("11/yolo11-obb.yaml", "yolo11", P3, "obb"),
    ("26/yolo26.yaml", "yolo26", P3, "detect"),
    ("26/yolo26-p2.yaml", "yolo26", P2, "detect"),
    ("26/yolo26-p6.yaml", "yolo26", P6, "detect"),
    ("26/yolo26-seg.yaml", "yolo26", P3, "segment"),
    ("26/yolo26-pose.yaml", "yolo26", P3, "pose"),
    ("26/yolo26-obb.yaml", "yolo26", P3, "obb"),
    ("26/yolo26-cls.yaml", "yolo26", P3, "classify"),
]


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
            reduction += module == "Conv" and arguments[2] == 2
            following = backbone[i + 1] if i + 1 < len(backbone) else None
            if following is None or (following[2] == "Conv" and following[3][2] == 2):
                names[i] = f"P{reduction}"
    names[len(backbone) - 1] = levels[-1]

    def name(source: int) -> Any:
        return source if source < 0 else names.get(source, source - len(backbone))

    rows = []
    for source, repeats, module, arguments in config["head"]:
        rows.append(
            [[name(s) for s in source] if isinstance(source, list) else name(source), repeats, module, arguments]
        )
    return rows


@pytest.mark.parametrize(("theirs", "neck", "levels", "task"), CASES, ids=[case[0] for case in CASES])
def test_head_scales_and_settings_are_ultralytics(theirs: str, neck: str, levels: tuple[str, ...], task: str) -> None:
    if not (file := THEIRS / theirs).is_file():
        pytest.skip(f"the installed Ultralytics has no {theirs}")
    expected = yaml.safe_load(file.read_text())
    ours = yaml.safe_load(writer.write("repvit", neck, levels=levels, task=task))
    assert by_meaning(ours, levels) == by_meaning(expected, levels)
    assert ours["scales"] == expected["scales"]
    kept = {"kpt_shape"} if task == "classify" else {"kpt_shape", "end2end", "reg_max"}
    kept |= set() if theirs == "v8/yolov8-pose.yaml" else {"nc"}  # persons alone there; 80 classes in yolo11-pose
    assert {k: ours.get(k) for k in kept} == {k: expected.get(k) for k in kept}


def test_what_the_deepest_level_goes_through_is_ultralytics() -> None:
    """From SPPF on; a generation's P6 rows as well, except yolo26's, whose SPPF has another last argument there."""
    for theirs, neck, levels, task in CASES:
        if task != "detect" or (neck, levels) in {("yolo26", P2), ("yolo26", P6)} or not NECKS[neck].deepest:
            continue
        expected = yaml.safe_load((THEIRS / theirs).read_text())["backbone"]
        ours = yaml.safe_load(writer.write("repvit", neck, levels=levels))["backbone"]
        start = -next(i for i, row in enumerate(reversed(expected), 1) if row[2] == "SPPF") - 2 * ("P6" in levels)
        assert ours[start:] == expected[start:]


@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("levels", [("P4", "P5"), ("P2", "P3"), ("P2", "P3", "P4"), ("P5", "P6"), LEVELS])
def test_any_run_of_levels_builds(neck: str, levels: tuple[str, ...], tmp_path: Path) -> None:
    from ultralytics import YOLO

    text = writer.write("repvit_m0_6", neck, levels=levels)
    (file := tmp_path / f"{neck}n_mine.yaml").write_text(text)
    assert YOLO(file).model.stride.tolist() == [2 ** int(level[1]) for level in levels]


@pytest.mark.parametrize("levels", [(), ("P3",), ("P3", "P5"), ("P5", "P4"), ("P1", "P2"), ("P3", "P3")])
def test_levels_that_fit_no_neck_are_refused(levels: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="P2, P3, P4, P5, P6"):
        check_levels(levels)


def test_unknown_names_are_refused_with_what_is_allowed() -> None:
    for wrong, arguments in (
        ("yolov8", {"backbone": "repvit", "neck": "yolov9"}),
        ("segment", {"backbone": "repvit", "neck": "yolo11", "task": "seg"}),
        ("conv2former", {"backbone": "resnet", "neck": "yolo11"}),
        ("m0_9", {"backbone": "repvit_m9", "neck": "yolo11"}),
    ):
        with pytest.raises(ValueError, match=wrong):
            writer.write(**arguments)
    assert set(TASKS) == set(writer.TASK_TITLES) == set(writer.EXAMPLE_DATA)

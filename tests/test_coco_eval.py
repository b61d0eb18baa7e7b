"""`lightbackbones coco-eval`: the official numbers, cross-checked and by hand, and how they are printed."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_numbers import (
    HITS,
    ROW,
    TWELVE,
    Content,
    Save,
    annotation_file,
    assert_refused,
    coco_eval,
    numbers,
    prediction,
    row_and_none,
    saving,
)
from places import COCO

SIDES = (8, 20, 60, 150)  # pixels: small, small, medium and large in COCO's terms (borders at 32 and 96 squared)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    return saving(tmp_path)


def truth_as_predictions(truth: Content) -> list[Content]:
    return [
        prediction(a["image_id"], a["category_id"], a["bbox"], 1.0) for a in truth["annotations"] if not a["iscrowd"]
    ]


def perturbed(truth: Content, seed: int) -> list[Content]:
    """Predictions like a middling detector's: shifted, missed, mistaken, doubled, and some where nothing is."""
    rng = np.random.default_rng(seed)
    categories = [category["id"] for category in truth["categories"]]
    found = []
    for annotation in truth["annotations"]:
        for _ in range(int(rng.choice([0, 1, 2], p=[0.2, 0.6, 0.2]))):
            sides = np.tile(annotation["bbox"][2:], 2)
            box = (annotation["bbox"] + rng.normal(0, 0.08, 4) * sides).round(3)
            wrong = rng.random() < 0.1
            category = int(rng.choice(categories)) if wrong else annotation["category_id"]
            box[2:] = box[2:].clip(1)
            found.append(prediction(annotation["image_id"], category, box.tolist(), float(rng.random().__round__(5))))
    for image in truth["images"]:
        annotated = any(a["image_id"] == image["id"] for a in truth["annotations"])
        for _ in range(int(rng.integers(3)) if annotated else 3):
            box = (rng.uniform(0, 0.5, 4) * np.tile([image["width"], image["height"]], 2)).round(3).tolist()
            found.append(prediction(image["id"], int(rng.choice(categories)), box, float(rng.random().__round__(5))))
    return found


@pytest.fixture(scope="module")
def made_up() -> Content:
    """40 images, five of them without objects, 3 classes of which one is rare, all sizes, and crowd regions."""
    rng = np.random.default_rng(1)
    boxes: dict[int, list[tuple[int, list[float]]]] = {}
    for image in range(1, 41):
        count = 0 if image % 8 == 0 else int(rng.integers(1, 15))
        sides = rng.choice(SIDES, (count, 2)) * rng.uniform(0.8, 1.2, (count, 2))
        corners = rng.uniform(0, [480, 320], (count, 2))
        classes = rng.choice([1, 2, 3], count, p=[0.7, 0.28, 0.02])
        boxes[image] = [
            (int(c), [*map(float, corner.round(2)), *map(float, side.round(2))])
            for c, corner, side in zip(classes, corners, sides, strict=True)
        ]
    truth = annotation_file(boxes, categories=3)
    for annotation in truth["annotations"][::17]:
        annotation["iscrowd"] = 1
        annotation["bbox"][2:] = [200.0, 150.0]
        annotation["area"] = 30000.0
    return truth


@pytest.fixture(scope="module")
def real() -> Content:
    """33 images of val2017 with their annotations."""
    file = COCO / "annotations" / "instances_val2017.json"
    if not file.is_file():
        pytest.skip("the COCO images are not beside this checkout; the same is tested on made-up annotations")
    content: Content = json.loads(file.read_text())
    return content


@pytest.fixture(params=["made_up", "real"])
def truth(request: pytest.FixtureRequest) -> Content:
    content: Content = copy.deepcopy(request.getfixturevalue(request.param))
    return content


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_another_implementation_gives_the_same_twelve(truth: Content, seed: int, save: Save) -> None:
    faster = pytest.importorskip("faster_coco_eval", reason="faster-coco-eval, the second opinion, is not installed")
    predictions = perturbed(truth, seed)
    seen = numbers(save(predictions), save(truth))
    reference = faster.COCO(copy.deepcopy(truth))
    other = faster.COCOeval_faster(reference, reference.loadRes(copy.deepcopy(predictions)), iouType="bbox")
    other.evaluate()
    other.accumulate()
    other.summarize()
    assert 0.05 < seen["AP"] < 0.9, "an AP near 0 or 1 would prove little"
    np.testing.assert_allclose(list(seen.values()), other.stats[:12], rtol=0, atol=1e-6)


def test_the_truth_itself_is_perfect(truth: Content, save: Save) -> None:
    """Also with crowd regions, which are nobody's to find, and with images that have no objects."""
    seen = numbers(save(truth_as_predictions(truth)), save(truth))
    assert any(a["iscrowd"] for a in truth["annotations"])
    np.testing.assert_allclose([seen[name] for name in TWELVE[:6]], 1, rtol=0, atol=1e-9)
    np.testing.assert_allclose([seen[name] for name in TWELVE[8:]], 1, rtol=0, atol=1e-9)


@pytest.fixture
def row() -> Content:
    return row_and_none()


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        # One object missed: precision 1 at 76 of 101 recalls.
        ([], 76 / 101),
        # A false alarm above all, on the image without objects. Precision after each detection: 0/1, 1/2, 2/3, 3/4. The
        # best at recall 0.75 is 3/4, which is also the best for all lower recalls.
        ([prediction(2, 1, ROW[0], 0.95)], 0.75 * 76 / 101),
        # A false alarm after the first hit: 1/1, 1/2, 2/3, 3/4. Precision 1 up to recall 0.25, which is 26 recalls, and
        # 3/4 for the 50 recalls from 0.26 to 0.75.
        ([prediction(1, 1, [300.0, 300.0, 60.0, 60.0], 0.85)], (26 + 0.75 * 50) / 101),
        # The same object twice: the second is a false alarm below all hits, which costs nothing.
        ([prediction(1, 1, ROW[0], 0.1)], 76 / 101),
        # The fourth, shifted by 10 of 60 pixels, below all hits: IoU 50 x 60 / (2 x 3600 - 3000) = 0.714. Found at the
        # five thresholds 0.50 to 0.70, where AP is 1; at the other five it is a false alarm.
        ([prediction(1, 1, [350.0, 40.0, 60.0, 60.0], 0.6)], (5 * 1 + 5 * 76 / 101) / 10),
    ],
    ids=["missed", "alarm-on-empty-image", "alarm-between", "doubled", "shifted"],
)
def test_average_precision_by_hand(row: Content, extra: list[Content], expected: float, save: Save) -> None:
    seen = numbers(save([*HITS, *extra]), save(row))
    assert seen["AP"] == pytest.approx(expected, abs=1e-9)
    assert seen["APm"] == pytest.approx(expected, abs=1e-9)
    assert (seen["APs"], seen["APl"]) == (-1, -1)  # there are no such objects
    assert seen["AR1"] == pytest.approx(1 / 4)  # of four objects in the image, one detection finds one


def test_crowd_regions_neither_count_nor_punish(row: Content, save: Save) -> None:
    row["annotations"][3].update(iscrowd=1, bbox=[300.0, 0.0, 300.0, 300.0], area=90000.0)
    inside = [prediction(1, 1, [310.0 + 40 * i, 100.0, 30.0, 60.0], 0.99) for i in range(4)]
    assert numbers(save([*HITS, *inside]), save(row))["AP"] == pytest.approx(1)
    row["annotations"][3]["iscrowd"] = 0
    assert numbers(save([*HITS, *inside]), save(row))["AP"] < 0.5


def test_pycocotools_that_copies_the_info(row: Content, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    """As 2.0.9 and 2.0.10 do, of which annotations read by us need none."""
    from pycocotools.coco import COCO

    load = COCO.loadRes

    def copying(self: Any, results: Any) -> Any:
        copy.deepcopy(self.dataset["info"])
        return load(self, results)

    monkeypatch.setattr(COCO, "loadRes", copying)
    assert numbers(save(HITS), save(row))


def test_annotation_ids_do_not_matter(row: Content, save: Save) -> None:
    """pycocotools itself takes an annotation with id 0 for one that is never found."""
    for annotation in row["annotations"]:
        annotation["id"] = annotation["id"] - 1
    assert numbers(save(HITS), save(row))["AP"] == pytest.approx(76 / 101)


# --- output -----------------------------------------------------------------------------------------------------------


def test_tables(row: Content, save: Save) -> None:
    row["annotations"][3]["iscrowd"] = 1
    result = coco_eval(save(HITS), save(row), "--per-class")
    assert result.exit_code == 0, result.output
    assert "Evaluated 2 of 2 images: 3 objects, 1 crowd regions, 3 predictions." in result.stdout
    assert "1 of these images have no predictions." in result.stdout
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in result.stdout.splitlines()]
    values = {line[0]: line[-1] for line in cells if len(line) == 6 and line[0]}
    special = {"AR1": "0.333", **dict.fromkeys(["APs", "APl", "ARs", "ARl"], "-")}
    assert values == dict.fromkeys(TWELVE, "1.000") | special
    assert ["class 1", "3", "1.000", "1.000", "1.000"] in cells
    assert ["class 2", "0", "-", "-", "-"] in cells
    assert not re.search("loading|index|Accumulating|DONE", result.output)


def test_json_by_class(row: Content, save: Save) -> None:
    seen = numbers(save(HITS), save(row), "--per-class")
    value = pytest.approx(76 / 101)
    assert seen["per_class"]["class 1"] == {"objects": 4, "AP": value, "AP50": value, "AP75": value}
    assert seen["per_class"]["class 2"] == {"objects": 0, "AP": -1, "AP50": -1, "AP75": -1}


def test_classes_that_share_a_name_are_all_there(row: Content, save: Save) -> None:
    row["categories"][1]["name"] = "class 1"
    assert list(numbers(save(HITS), save(row), "--per-class")["per_class"]) == ["class 1 (1)", "class 1 (2)"]


def test_names_that_look_like_a_name_with_its_number(row: Content, save: Save) -> None:
    row["categories"] = [{"id": n, "name": name} for n, name in enumerate(("a", "a", "a (1)"), 1)]
    assert len(numbers(save(HITS), save(row), "--per-class")["per_class"]) == 3


def test_plot(row: Content, save: Save, tmp_path: Path) -> None:
    import cv2

    plot = tmp_path / "curve.png"
    arguments = (save(HITS), save(row), "--plot", plot)
    result = coco_eval(*arguments)
    assert result.exit_code == 0, result.output
    assert cv2.imread(str(plot)).std() > 10
    plot.write_text("precious")
    assert_refused(coco_eval(*arguments), r"curve\.png exists already\. Add --force")
    assert plot.read_text() == "precious"
    assert coco_eval(*arguments, "--force").exit_code == 0
    assert cv2.imread(str(plot)) is not None
    assert_refused(coco_eval(*arguments[:3], tmp_path / "curve.txt"), r"one of \.png, \.svg, \.pdf")
    assert_refused(coco_eval(*arguments[:3], tmp_path / "nowhere" / "curve.png"), "no folder .*nowhere")
    assert not (tmp_path / "nowhere").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_plot_is_titled_with_whatever_name_the_file_has(row: Content, save: Save, tmp_path: Path) -> None:
    predictions = save(HITS).rename(tmp_path / r"$\frac$ \u5b57.json")
    result = coco_eval(predictions, save(row), "--plot", tmp_path / "curve.png")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""


def test_the_numbers_come_before_a_plot_that_fails(
    row: Content, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yolo_lightbackbones.coco import plot

    def full_disk(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plot, "plot_curves", full_disk)
    result = coco_eval(save(HITS), save(row), "--json", "--plot", tmp_path / "curve.png")
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert json.loads(result.stdout)["AP"] == pytest.approx(76 / 101)


def test_the_curves_are_those_of_the_numbers(made_up: Content, save: Save) -> None:
    from yolo_lightbackbones.coco.evaluation import evaluate
    from yolo_lightbackbones.coco.ground_truth import read_ground_truth

    result = evaluate(read_ground_truth(save(made_up)), perturbed(made_up, 0))
    for threshold, name in (("0.50", "AP50"), ("0.75", "AP75"), ("0.50:0.95", "AP")):
        assert result.curves[threshold].shape == result.recalls.shape == (101,)
        assert result.curves[threshold].mean() == pytest.approx(result.metrics[name], abs=1e-12)


# --- what `yolo val` writes -------------------------------------------------------------------------------------------


def test_importing_the_command_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = """
import sys, yolo_lightbackbones.cli
heavy = {"torch", "ultralytics", "numpy", "pycocotools", "matplotlib", "PIL", "cv2"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)

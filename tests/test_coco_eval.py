"""`lightbackbones coco-eval`: the official numbers, cross-checked, by hand, and on what `yolo val` writes."""

from __future__ import annotations

import copy
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from yolo_lightbackbones.cli import app

TWELVE = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
COCO = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "coco"
SIDES = (8, 20, 60, 150)  # pixels: small, small, medium and large in COCO's terms (borders at 32 and 96 squared)

Content = dict[str, Any]
Save = Callable[[object], Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes content, as JSON or as it is, into a file of its own."""
    count = 0

    def write(content: object) -> Path:
        nonlocal count
        count += 1
        path = tmp_path / f"file{count}.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return write


def coco_eval(predictions: Path, annotations: Path, *options: object) -> Result:
    arguments = ["coco-eval", str(predictions), "--annotations", str(annotations), *map(str, options)]
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})


def numbers(predictions: Path, annotations: Path, *options: object) -> dict[str, Any]:
    """What --json prints, which is all there is on stdout."""
    result = coco_eval(predictions, annotations, "--json", *options)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert [key for key in found if key != "per_class"] == TWELVE
    return found


def assert_refused(result: Result, *messages: str) -> None:
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for message in messages:
        assert re.search(message, result.stderr), result.stderr


def annotation_file(boxes: dict[int, list[tuple[int, list[float]]]], *, categories: int = 2) -> Content:
    """Annotations of images by id, each with (category, box) pairs."""
    annotations: list[Content] = []
    for image, objects in boxes.items():
        for category, box in objects:
            area = box[2] * box[3]
            entry = {"image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **entry})
    return {
        "images": [{"id": image, "file_name": f"{image:06d}.jpg", "width": 640, "height": 480} for image in boxes],
        "annotations": annotations,
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, categories + 1)],
    }


def prediction(image: int | str, category: int, box: list[float], score: float, **more: object) -> Content:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score, **more}


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


ROW = [[40.0 + 100 * i, 40.0, 60.0, 60.0] for i in range(4)]
"""Four objects of medium size (32 squared < 60 squared < 96 squared) that do not touch."""


@pytest.fixture
def row() -> Content:
    """An image with four objects of class 1, and one without any."""
    return annotation_file({1: [(1, box) for box in ROW], 2: []})


# AP is the mean over the 101 recalls 0, 0.01, ..., 1 of the best precision at that recall or a higher one. Three of
# four objects found is recall 0.75, which covers the 76 recalls from 0 to 0.75; beyond it precision counts as 0.
HITS = [prediction(1, 1, box, score) for box, score in zip(ROW, (0.9, 0.8, 0.7), strict=False)]


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


def rle(box: list[float]) -> Content:
    """A rectangle in an image of 480 x 640 as pycocotools encodes it."""
    from pycocotools import mask

    x, y, w, h = map(int, box)
    canvas = np.zeros((480, 640), np.uint8, order="F")
    canvas[y : y + h, x : x + w] = 1
    found = mask.encode(canvas)
    return {"size": [480, 640], "counts": found["counts"].decode()}


def with_masks(truth: Content) -> Content:
    for annotation in truth["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return truth


def test_run_lengths_are_read_as_pycocotools_writes_them() -> None:
    from pycocotools import mask

    from yolo_lightbackbones.coco.masks import decode, is_rle

    rng = np.random.default_rng(0)
    for share in (0.0, 0.01, 0.5, 1.0):
        canvas = np.asfortranarray(rng.random((70, 90)) < share).astype(np.uint8, order="F")
        counts = mask.encode(canvas)["counts"].decode()
        flat = canvas.ravel(order="F")
        borders = np.flatnonzero(np.diff(flat)) + 1
        expected = np.diff([0, *borders, flat.size]).tolist()
        assert decode(counts) == ([0, *expected] if flat[0] else expected)
        assert is_rle({"size": [70, 90], "counts": counts}, 70, 90)
        assert is_rle({"size": [70, 90], "counts": decode(counts)}, 70, 90)
        assert not is_rle({"size": [90, 70], "counts": counts}, 70, 90)


@pytest.mark.parametrize("counts", ["", "abc", "\x00", "~" * 40, "o" * 40, "cut", "doubled", "\ud800"])
def test_masks_that_pycocotools_would_choke_on(counts: str, save: Save) -> None:
    """With such counts its C code goes on without end, or counts the mask as a miss."""
    truth = with_masks(annotation_file({1: [(1, box) for box in ROW], 2: []}))
    mask = rle(ROW[0])
    mask["counts"] = {"cut": mask["counts"][:5], "doubled": mask["counts"] * 2}.get(counts, counts)
    result = coco_eval(save([{**HITS[0], "segmentation": mask}]), save(truth), "--iou-type", "segm")
    assert_refused(result, "1 masks have counts that are no run lengths covering their image: image 1: '")


@pytest.mark.parametrize(
    "segmentation",
    [
        [],
        "abc",
        5,
        [[]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [["a", 1, 2, 3, 4, 5]],
        [[1, 2, 3, 4, 5, 1e18]],
        [[0, 0, 1e5, 1e5] * 20],
        [[1, 2, 3, 4, 5, float("inf")]],
        [[[1, 2, 3, 4, 5, 6]]],
        {},
        {"counts": [480 * 640]},
        {"size": [480, 640], "counts": [-1, 480 * 640 + 1]},
        {"size": [480, 640], "counts": [5]},
        {"size": [640, 480], "counts": [480 * 640]},
    ],
)
def test_annotated_masks_that_pycocotools_would_choke_on(segmentation: object, save: Save) -> None:
    truth = with_masks(annotation_file({1: [(1, box) for box in ROW], 2: []}))
    truth["annotations"][1]["segmentation"] = segmentation
    predictions = save([{**HITS[0], "segmentation": rle(HITS[0]["bbox"])}])
    result = coco_eval(predictions, save(truth), "--iou-type", "segm")
    assert_refused(result, r"1 have a segmentation that is neither polygons nor run lengths .* \(annotation 2\)")


def test_masks_of_more_pixels_than_pycocotools_counts(save: Save) -> None:
    """It counts in 32 bits, so that such a mask would become another one."""
    truth = with_masks(annotation_file({1: [(1, box) for box in ROW], 2: []}))
    truth["images"][1] |= {"height": 10**9, "width": 10**9}
    mask = {"size": [10**9, 10**9], "counts": "0"}
    predictions = save([prediction(2, 1, ROW[0], 0.5, segmentation=mask)])
    refused = coco_eval(predictions, save(truth), "--iou-type", "segm")
    assert_refused(refused, r"1 images .* have 2\^32 pixels or more.*: id 2")


def test_a_mask_with_more_runs_than_pixels_is_refused_at_once(save: Save) -> None:
    truth = with_masks(annotation_file({1: [(1, box) for box in ROW]}))
    mask = {"size": [480, 640], "counts": "0" * 10_000_000}
    started = time.process_time()
    result = coco_eval(save([prediction(1, 1, ROW[0], 0.5, segmentation=mask)]), save(truth), "--iou-type", "segm")
    assert time.process_time() - started < 1.5
    assert_refused(result, "1 masks have counts that are no run lengths")
    assert len(result.stderr) < 1000


def test_masks_of_images_without_size(save: Save) -> None:
    truth = with_masks(annotation_file({1: [(1, box) for box in ROW], 2: []}))
    truth["images"][1]["height"] = 0
    predictions = save([{**HITS[0], "segmentation": rle(HITS[0]["bbox"])}])
    assert_refused(coco_eval(predictions, save(truth), "--iou-type", "segm"), "1 images .* above 0: id 2")


def test_masks(save: Save) -> None:
    """Rectangles as masks get what their boxes get, whatever box comes along."""
    truth = with_masks(annotation_file({1: [(1, box) for box in ROW], 2: []}))
    predictions = [{**hit, "bbox": [0.0, 0.0, 1.0, 1.0], "segmentation": rle(hit["bbox"])} for hit in HITS]
    seen = numbers(save(predictions), save(truth), "--iou-type", "segm")
    assert seen["AP"] == seen["APm"] == pytest.approx(76 / 101)
    predictions[0]["segmentation"]["size"] = [640, 480]
    wrong = coco_eval(save(predictions), save(truth), "--iou-type", "segm")
    assert_refused(wrong, r"1 masks are not of their image's size.*image 1: \[640, 480\], not \[480, 640\]")
    predictions[0]["segmentation"] = [[1, 2, 3]]
    assert_refused(coco_eval(save(predictions), save(truth), "--iou-type", "segm"), "1 whose segmentation is not")
    assert_refused(coco_eval(save(HITS), save(truth), "--iou-type", "segm"), "3 without segmentation: entry 0, entry 1")
    del truth["annotations"][0]["segmentation"]
    assert_refused(coco_eval(save(HITS), save(truth), "--iou-type", "segm"), "1 have no segmentation")


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


# --- which images -----------------------------------------------------------------------------------------------------


@pytest.fixture
def three() -> Content:
    """Three images with an object each."""
    return annotation_file({image: [(1, ROW[0])] for image in (1, 2, 3)})


def test_a_list_of_images(three: Content, save: Save, tmp_path: Path) -> None:
    truth, predictions = save(three), save([prediction(1, 1, ROW[0], 0.9), prediction(2, 1, ROW[0], 0.9)])
    # Two of three objects: recall 2/3 covers the 67 recalls up to 0.66.
    assert numbers(predictions, truth)["AP"] == pytest.approx(67 / 101)
    chosen = tmp_path / "list.txt"
    chosen.write_text("./images/val2017/000001.jpg\n\n/elsewhere/000003.png\n")
    result = coco_eval(predictions, truth, "--images", chosen)
    assert "Evaluated 2 of 3 images: 2 objects" in result.stdout
    assert "1 predictions on other images were left out." in result.stdout
    # One of two: recall 0.5 covers 51 recalls.
    assert numbers(predictions, truth, "--images", chosen)["AP"] == pytest.approx(51 / 101)
    chosen.write_text("2\n")
    assert numbers(predictions, truth, "--images", chosen)["AP"] == pytest.approx(1)


def test_only_images_with_predictions(three: Content, save: Save) -> None:
    truth, predictions = save(three), save([prediction(2, 1, ROW[0], 0.9)])
    result = coco_eval(predictions, truth, "--only-predicted", "--json")
    assert "Evaluated 1 of 3 images" in result.stderr
    assert json.loads(result.stdout)["AP"] == pytest.approx(1)


def test_a_selection_without_objects_has_no_numbers(row: Content, save: Save, tmp_path: Path) -> None:
    chosen = tmp_path / "list.txt"
    chosen.write_text("000002.jpg")
    for predictions in (HITS, [prediction(2, 1, ROW[0], 0.5)]):  # elsewhere only; and on the image
        seen = numbers(save(predictions), save(row), "--images", chosen, "--plot", tmp_path / "p.png", "--force")
        assert set(seen.values()) == {-1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"000001.jpg\n000009.jpg\n77\n", r"2 lines of .*list\.txt name no image of .*: 000009\.jpg, 77"),
        (b"\n \n", "names no image"),
        (b"\xff\xfe\x00", r"list\.txt is not text"),
        (b"9" * 5000, "1 lines of .* name no image"),
        (None, r"no image list .*list\.txt"),
    ],
)
def test_mistakes_in_a_list(content: bytes | None, message: str, *, three: Content, save: Save, tmp_path: Path) -> None:
    chosen = tmp_path / "list.txt"
    if content is not None:
        chosen.write_bytes(content)
    predictions = save([prediction(2, 1, ROW[0], 0.9)])
    assert_refused(coco_eval(predictions, save(three), "--images", chosen), message)
    both = coco_eval(predictions, save(three), "--images", chosen, "--only-predicted")
    assert_refused(both, "Give one of them")


# --- whose image, which category --------------------------------------------------------------------------------------


def test_file_names_as_image_ids(three: Content, save: Save) -> None:
    """`yolo val` makes the id of the file name, and of digits alone a number, which may be another image's id."""
    names = {1: "street", 2: "0001", 3: "0002"}
    for image in three["images"]:
        image["file_name"] = f"{names[image['id']]}.png"
    predictions = [
        prediction("street", 1, ROW[0], 0.9, file_name="street.png"),
        prediction(1, 1, ROW[0], 0.9, file_name="0001.png"),
        prediction(2, 1, ROW[0], 0.9, file_name="0002.png"),
    ]
    result = coco_eval(save(predictions), save(three))
    assert "3 predictions were assigned to their images by file name." in result.stdout
    assert numbers(save(predictions), save(three))["AP"] == pytest.approx(1)
    for entry in predictions:
        del entry["file_name"]
    # Without names, 1 and 2 are ids and `street` is image 1 as well: a hit, a double, a hit, and image 3 is missed.
    # Precision 1 up to recall 1/3, which is 34 recalls, and 2/3 for the 33 up to 0.66.
    assert numbers(save(predictions), save(three))["AP"] == pytest.approx((34 + 33 * 2 / 3) / 101)


def test_file_names_that_contradict_the_ids(three: Content, save: Save) -> None:
    """Files numbered from 1, as custom data is: their numbers are ids of other images by coincidence."""
    for image, name in zip(three["images"], ("street.png", "house.png", "tree.png"), strict=True):
        image["file_name"] = name
    predictions = [prediction(image, 1, ROW[0], 0.9, file_name=f"{image:06}.jpg") for image in (1, 1, 2)]
    message = (
        "3 of 3 predictions are on 2 images that .* lists under other file names: image_id 1: 000001.jpg, not "
        "street.png, image_id 2: 000002.jpg, not house.png.*take file_name out of the predictions"
    )
    assert_refused(coco_eval(save(predictions), save(three)), message)
    for image in three["images"]:
        del image["file_name"]
    assert numbers(save(predictions[1:]), save(three))["AP"] == pytest.approx(67 / 101)


def test_images_of_one_name_are_told_apart_by_their_ids(three: Content, save: Save, tmp_path: Path) -> None:
    for image, name in zip(three["images"], ("cam1/0003.jpg", "cam2/0003.jpg", "tree.png"), strict=True):
        image["file_name"] = name
    predictions = [prediction(image, 1, ROW[0], 0.9, file_name="0003.jpg") for image in (1, 2)]
    assert numbers(save(predictions), save(three))["AP"] == pytest.approx(67 / 101)
    predictions.append(prediction(3, 1, ROW[0], 0.9, file_name="0003.jpg"))
    assert_refused(coco_eval(save(predictions), save(three)), "1 of 3 .*image_id 3: 0003.jpg, not tree.png")
    chosen = tmp_path / "list.txt"
    chosen.write_text("images/cam1/0003.jpg\n")
    result = coco_eval(save(predictions[:2]), save(three), "--images", chosen)
    assert_refused(result, "1 lines of .* name several images of .*: images/cam1/0003.jpg. Write their ids instead")


def test_folders_as_windows_writes_them(three: Content, save: Save) -> None:
    for image in three["images"]:
        image["file_name"] = f"val\\cam{image['id']}\\{image['id'] + 1:04}.jpg"
    predictions = [prediction(image + 1, 1, ROW[0], 0.9, file_name=f"{image + 1:04}.jpg") for image in (1, 2, 3)]
    assert numbers(save(predictions), save(three))["AP"] == pytest.approx(1)


def test_texts_as_image_ids(three: Content, save: Save) -> None:
    """File names may have dots, and only what follows the last one can be a suffix; numbers may be written as texts."""
    for image, name in zip(three["images"], ("cam1.jpg", "cam1.2.jpg", "a_jpg.rf.77.jpg"), strict=True):
        image["file_name"] = name
    for texts in (("cam1", "cam1.2", "a_jpg.rf.77"), ("cam1.jpg", "cam1.2.JPG", "a_jpg.rf.77.jpg"), ("1", "2", "3")):
        predictions = save([prediction(text, 1, ROW[0], 0.9) for text in texts])
        assert numbers(predictions, save(three))["AP"] == pytest.approx(1)
    stranger = save([prediction("cam1.3", 1, ROW[0], 0.9)])
    assert_refused(coco_eval(stranger, save(three)), "1 of 1 predictions .* does not list.*image_id cam1.3")


def test_unknown_images(three: Content, save: Save) -> None:
    strangers = [prediction(image, 1, ROW[0], 0.5) for image in (1, 11, 12, 12, "x", 14, 15, 16)]
    result = coco_eval(save(strangers), save(three))
    assert_refused(result, "7 of 8 predictions are on 6 images that .* does not list.*image_id 11, 12, x, 14, 15, ...")


@pytest.fixture
def coco_categories() -> Content:
    """One image with an object of each of COCO's 80 categories, 1 to 90."""
    from ultralytics.data.converter import coco80_to_coco91_class

    ids = coco80_to_coco91_class()
    boxes = [[60.0 * (i % 10), 50.0 * (i // 10), 50.0, 40.0] for i in range(80)]
    truth = annotation_file({1: list(zip(ids, boxes, strict=True))})
    return {**truth, "categories": [{"id": number, "name": f"category {number}"} for number in ids]}


@pytest.mark.parametrize(("first", "option"), [(0, "coco80"), (1, "coco80-from-1")])
def test_contiguous_categories_are_told_and_mapped(
    first: int, option: str, coco_categories: Content, save: Save
) -> None:
    entries = coco_categories["annotations"]
    predictions = save([prediction(1, first + i, entry["bbox"], 0.9) for i, entry in enumerate(entries)])
    truth = save(coco_categories)
    refused = coco_eval(predictions, truth)
    if first:
        assert_refused(refused, "9 of 80 predictions have 9 category ids .*: 12, 26, 29, 30, 45, ...")
    else:
        assert_refused(refused, "10 of 80 predictions have 10 category ids .*: 0, 12, 26, 29, 30, ...")
    assert re.search(rf"add --category-map {option} \(class ids {first} to {first + 79}\)\.", refused.stderr)
    assert numbers(predictions, truth, "--category-map", option)["AP"] == pytest.approx(1)


def test_numbers_that_may_be_wrong_are_doubted(coco_categories: Content, save: Save) -> None:
    """Ids 1 to 11 exist with both numberings, and mean the same; from 13 on they do not."""
    entries = [entry for entry in coco_categories["annotations"] if entry["category_id"] in (1, 13, 90)]
    truth = save(coco_categories)
    predictions = save([prediction(1, entry["category_id"], entry["bbox"], 0.9) for entry in entries[:2]])
    result = coco_eval(predictions, truth, "--json")
    assert re.search(
        "Note: COCO's category ids go up to 90.* add --category-map coco80 or .*coco80-from-1", result.stderr
    )
    assert "Note" not in coco_eval(predictions, truth, "--category-map", "coco80-from-1").output
    predictions = save([prediction(1, entry["category_id"], entry["bbox"], 0.9) for entry in entries])
    assert "Note" not in coco_eval(predictions, truth).output


def test_classes_numbered_from_0_are_doubted(three: Content, save: Save) -> None:
    predictions = save([prediction(1, 1, ROW[0], 0.9)])
    assert "Note" not in coco_eval(predictions, save(three)).output
    three["categories"].append({"id": 0, "name": "the first"})
    assert "Note: The annotations number their classes from 0" in coco_eval(predictions, save(three), "--json").stderr
    predictions = save([prediction(1, number, ROW[0], 0.9) for number in (0, 1)])
    assert "Note" not in coco_eval(predictions, save(three)).output


def test_categories_that_fit_no_map(coco_categories: Content, three: Content, save: Save) -> None:
    predictions = save([prediction(1, 12, ROW[0], 0.5), prediction(1, 3, ROW[0], 0.5)])
    both = r"--category-map coco80 \(class ids 0 to 79\) or --category-map coco80-from-1 \(class ids 1 to 80\)"
    assert_refused(coco_eval(predictions, save(coco_categories)), both)
    assert_refused(
        coco_eval(predictions, save(three)),
        "2 of 2 .*: 3, 12.*Its categories are 1 class 1, 2 class 2, those of the predictions 3 to 12",
    )
    strangers = save([prediction(1, number, ROW[0], 0.5) for number in (80, 90, 90, 5)])
    mapped = coco_eval(strangers, save(coco_categories), "--category-map", "coco80")
    assert_refused(mapped, r"--category-map coco80 maps .* 0 to 79; 3 predictions have 2 other ids: 80, 90")


# --- files that are wrong ---------------------------------------------------------------------------------------------

GOOD = prediction(1, 1, ROW[0], 0.5)


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ([], ["holds no predictions"]),
        (b"", ["is empty"]),
        (b" \n", ["is empty"]),
        (b"{", ["is not JSON"]),
        (b"\xff\xfe", ["is not JSON"]),
        (b"[" * 200000, ["brackets within brackets"]),
        (b'[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1%s}]' % (b"0" * 400), ["1 whose score"]),
        ({"a": 1}, ["no predictions file: it holds a dict"]),
        ({"annotations": []}, ["Are the two files swapped"]),
        ([GOOD, 5, [1]], ["2 of 3 entries", r"2 are no objects: entry 1 5, entry 2 \[1\]"]),
        ([{"image_id": 1}] * 7, ["7 without category_id, score, bbox: entry 0, .*entry 4, \\.\\.\\."]),
        ([GOOD, {**GOOD, "bbox": [1, 2, 3]}], [r"1 whose bbox is not four finite numbers: entry 1 \[1, 2, 3\]"]),
        ([{**GOOD, "bbox": [1, 2, 3, float("nan")]}], [r"not four finite numbers: entry 0 \[1, 2, 3, nan\]"]),
        ([{**GOOD, "bbox": [1, 2, 3, "4"]}], ["1 whose bbox is not four finite numbers"]),
        ([{**GOOD, "bbox": [1, 2, -3, 4]}], [r"1 whose bbox has a negative width or height: entry 0 \[1, 2, -3, 4\]"]),
        ([{**GOOD, "score": float("inf")}], ["1 whose score is not a finite number: entry 0 inf"]),
        ([{**GOOD, "bbox": [1e17, 0, 9, 9]}], ["1 whose bbox is not four finite numbers"]),
        ([{**GOOD, "bbox": [0, 0, 1e5, 1.1e5]}], ["1 whose bbox is larger than 1e.10 square pixels"]),
        ([{**GOOD, "file_name": ["a.jpg"]}], [r"1 whose file_name is no text: entry 0 \['a.jpg'\]"]),
        ([{**GOOD, "score": None}], ["1 whose score is not a finite number: entry 0 None"]),
        ([{**GOOD, "category_id": "cat"}], ["1 whose category_id is not a whole number: entry 0 'cat'"]),
        ([{**GOOD, "category_id": True}], ["1 whose category_id is not a whole number"]),
        ([{**GOOD, "image_id": 1.5}], ["1 whose image_id is neither a whole number nor a text: entry 0 1.5"]),
        ([{**GOOD, "score": "x"}, {**GOOD, "bbox": 1}], ["2 of 2 entries", "1 whose score", "1 whose bbox"]),
    ],
)
def test_predictions_that_are_none(content: object, messages: list[str], *, row: Content, save: Save) -> None:
    assert_refused(coco_eval(save(content), save(row)), *messages)


def test_a_box_without_area_is_a_false_alarm_and_no_mistake(row: Content, save: Save) -> None:
    flat = prediction(1, 1, [1.0, 1.0, 0.0, 5.0], 0.95)
    assert numbers(save([*HITS, flat]), save(row))["AP"] == pytest.approx(0.75 * 76 / 101)


def changed(content: Content, section: str, **values: object) -> Content:
    """The content with the first entry of a section changed; None removes a key."""
    found = copy.deepcopy(content)
    entry = found[section][0]
    entry.update(values)
    found[section][0] = {key: value for key, value in entry.items() if value is not None}
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: [1], "it holds a list, .*swapped"),
        (lambda row: {"images": [], "info": {}}, "no list of annotations, categories"),
        (lambda row: {**row, "images": []}, "lists 0 images and 2 categories"),
        (lambda row: {**row, "images": row["images"] * 2}, "2 ids are there more than once among the images.*: 1, 2"),
        (lambda row: changed(row, "images", id="a"), "1 images .* have no whole number of at most 64 bits as id"),
        (
            lambda row: changed(row, "categories", id=None),
            "1 categories .* have no whole number",
        ),
        (
            lambda row: changed(row, "annotations", area=None),
            r"1 of 4 annotations(.|\n)*1 have no area \(annotation 1\)",
        ),
        (lambda row: changed(row, "annotations", iscrowd=2), "1 have an iscrowd that is neither"),
        (
            lambda row: changed(row, "annotations", category_id=9),
            r"1 are of a category that the file does not list \(annotation 1: 9\)",
        ),
        (lambda row: changed(row, "annotations", bbox=[1, 2]), "1 have a bbox that is not four finite numbers"),
        (lambda row: changed(row, "annotations", bbox=[1, 2, -3, 4]), "1 have a bbox with a negative width or height"),
        (lambda row: changed(row, "annotations", area=float("nan")), r"1 have an area that is no number .*: nan\)"),
        (lambda row: changed(row, "annotations", area=-1), "1 have an area that is no number from 0 to 1e.10"),
        (lambda row: changed(row, "annotations", area=float("inf")), r"1 have an area that is no number .*: inf\)"),
        (lambda row: changed(row, "annotations", area=1.1e10), "1 have an area that is no number from 0 to 1e.10"),
        (lambda row: {**row, "annotations": [3]}, r"1 are no objects \(annotation number 0: 3\)"),
        (lambda row: changed(row, "annotations", image_id=[1]), r"1 have an image_id .* \(annotation 1: \[1\]\)"),
        (lambda row: changed(row, "annotations", image_id="1"), r"1 have an image_id .* \(annotation 1: '1'\)"),
        (lambda row: changed(row, "annotations", category_id=[1]), r"1 are of a category .*: \[1\]"),
        (lambda row: changed(row, "annotations", category_id=True), "1 are of a category .*: True"),
        (lambda row: changed(row, "annotations", area=10**400), "1 have an area that is no number"),
        (lambda row: changed(row, "annotations", bbox=[1e17, 0, 9, 9]), "1 have a bbox that is not four finite"),
        (
            lambda row: {**row, "categories": [{"id": n} for n in range(20_001)]},
            "lists 20001 categories; at most 20000 are evaluated",
        ),
        (lambda row: changed(row, "categories", id=2**63), "1 categories .* have no whole number of at most 64 bits"),
        (
            lambda row: {**row, "annotations": [{**a, "image_id": a["image_id"] + 7} for a in row["annotations"]]},
            "None of the 4 annotations .* image_id are 8, 8, 8, 8, the images' ids 1, 2",
        ),
    ],
)
def test_annotations_that_are_wrong(
    change: Callable[[Content], object], message: str, *, row: Content, save: Save
) -> None:
    assert_refused(coco_eval(save(HITS), save(change(row))), message)


LONG = "x" * 1_000_000
DEEP: object = 1
for _ in range(900):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "value",
    [LONG, 10**4000, DEEP, {"a": [LONG, DEEP]}, "a\nb\x1b[2J\ud800"],
    ids=["long", "many digits", "deep", "long and deep", "unprintable"],
)
def test_messages_about_huge_values_are_short(value: object, row: Content, save: Save) -> None:
    """Also with a stack that leaves less room than there was when the file was read."""
    seven = range(7)
    truths = [
        {**row, "images": [{"id": value}] * 7},
        {**row, "categories": [value] * 7},
        *(
            {**row, "annotations": [{**row["annotations"][0], key: value} for _ in seven]}
            for key in row["annotations"][0]
        ),
        {**row, "annotations": [{**row["annotations"][0], "image_id": str(n)} for n in range(2000)]},
        {**row, "annotations": [value] * 7},
    ]
    predictions: list[object] = [
        *([{**GOOD, key: value} for _ in seven] for key in (*GOOD, "file_name")),
        [value] * 7,
        [{**GOOD, "image_id": 7, "file_name": value} for _ in seven],
    ]
    good, good_truth = save(HITS), save(row)
    results = [coco_eval(good, save(truth)) for truth in truths]
    results += [coco_eval(save(content), good_truth) for content in predictions]
    for result in results:
        if result.exit_code:
            assert_refused(result)
            assert len(result.stderr) < 4000
            assert all(c.isprintable() or c == "\n" for c in result.stderr)
    assert sum(bool(result.exit_code) for result in results) >= len(results) - 3  # `id` may be anything


def test_names_of_classes_that_no_terminal_prints(row: Content, save: Save, tmp_path: Path) -> None:
    row["categories"][0]["name"] = "\ud800\x1b[2J"
    row["categories"][1]["name"] = DEEP
    truth, predictions = save(row), save(HITS)
    result = coco_eval(predictions, truth, "--per-class")
    assert result.exit_code == 0, result.output
    assert r"\ud800\x1b[2J" in result.stdout
    assert "\x1b" not in result.stdout
    printed = coco_eval(predictions, truth, "--per-class", "--json").stdout_bytes
    assert set(json.loads(printed.decode("utf-8"))["per_class"]) == {"\ud800\x1b[2J", "[" * 9 + "..." + "]" * 9}


def test_annotations_of_images_that_are_not_listed_are_counted(three: Content, save: Save) -> None:
    """As in an annotation file whose images were cut down to a few."""
    three["images"] = three["images"][:2]
    predictions = save([prediction(1, 1, ROW[0], 0.9)])
    result = coco_eval(predictions, save(three))
    assert "Evaluated 2 of 2 images: 2 objects" in result.stdout
    assert re.search("1 annotations of images that .* does not list were left out.", result.stdout)


def test_files_that_are_not_there(row: Content, save: Save, tmp_path: Path) -> None:
    missing = r"no predictions file .*no\.json.*save_json=True, and none where nothing was detected"
    assert_refused(coco_eval(tmp_path / "no.json", save(row)), missing)
    assert_refused(coco_eval(save(HITS), tmp_path / "no.json"), r"no annotation file .*no\.json")
    assert_refused(coco_eval(tmp_path, save(row)), "is a folder; the predictions file is needed")


# --- what `yolo val` writes -------------------------------------------------------------------------------------------

VAL = {"imgsz": 96, "batch": 1, "rect": False, "conf": 0.01, "max_det": 100, "plots": False, "workers": 0}


def validate(model: Path, data: Path, name: str) -> tuple[float, Path]:
    """mAP50-95 by Ultralytics, and the predictions file."""
    from ultralytics import YOLO

    options = {**VAL, "save_json": True, "project": str(data.parent), "name": name, "verbose": False, "device": "cpu"}
    result = YOLO(model).val(data=str(data), **options)
    return float(result.box.map), data.parent / name / "predictions.json"


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A folder with a detector of ten classes, digits pictures, and annotations that it finds about half of.

    The detector is not trained: its own boxes, some of them, moved a little, are made the objects. So the numbers are
    far from 0 and 1, and depend on every box and score.
    """
    pytest.importorskip("sklearn")
    import cv2
    import torch
    from detectors import awake_detector

    from yolo_lightbackbones.configs.finding import config_dir
    from yolo_lightbackbones.datasets.digits import IMAGE_SIZE, build_digits

    folder = tmp_path_factory.mktemp("detector")
    digits = build_digits(folder / "digits", train_images=1, val_images=16)
    width, height = IMAGE_SIZE, IMAGE_SIZE * 3 // 4  # as COCO's images, which `yolo val` pads for exported models alone
    for path in (digits / "images" / "val").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path))[:height])
    (folder / "data.yaml").write_text(f"path: {digits}\ntrain: images/val\nval: images/val\nnc: 10\n")
    text = (config_dir() / "yolov5_edgevit.yaml").read_text()
    (folder / "yolov5_ten.yaml").write_text(re.sub("(?m)^nc: 80", "nc: 10", text))
    detector = awake_detector(str(folder / "yolov5n_ten.yaml"))
    with torch.no_grad():
        for branch in detector.model.model[-1].cv2:  # towards short distances, or every box would fill the image
            branch[-1].bias.copy_(-torch.arange(branch[-1].bias.numel() // 4).repeat(4))
    detector.save(folder / "detector.pt")

    _, first = validate(folder / "detector.pt", folder / "data.yaml", "first")
    annotations = json.loads((digits / "annotations" / "instances_val.json").read_text())
    annotations["annotations"] = objects = moved(json.loads(first.read_text()), width, height)
    for image in annotations["images"]:
        image["height"] = height
        rows = [
            f"{entry['category_id'] - 1} {(x + w / 2) / width:.7f} {(y + h / 2) / height:.7f} "
            f"{w / width:.7f} {h / height:.7f}\n"
            for entry in objects
            if entry["image_id"] == image["id"]
            for x, y, w, h in [entry["bbox"]]
        ]
        (digits / "labels" / "val" / f"{image['id']:06d}.txt").write_text("".join(rows))
    (folder / "annotations.json").write_text(json.dumps(annotations))
    for cache in digits.rglob("*.cache"):
        cache.unlink()
    return folder


def moved(predictions: list[Content], width: int, height: int) -> list[Content]:
    """Objects made of every third box, from the surest down, in those classes that have at least 30 of them.

    With fewer, a single box on the border of a threshold would change the mean by more than the tests allow.
    """
    rng = np.random.default_rng(0)
    objects: list[Content] = []
    for entry in sorted(predictions, key=lambda entry: (entry["image_id"], -entry["score"]))[::3]:
        box = entry["bbox"] + rng.uniform(-0.1, 0.1, 4) * np.tile(entry["bbox"][2:], 2)
        # At the border, predictions.json holds clipped boxes, while Ultralytics compares whole ones.
        if box[:2].min() > 10 and (box[:2] + box[2:] < np.array([width, height]) - 10).all():
            values = {"image_id": entry["image_id"], "category_id": entry["category_id"], "bbox": box.tolist()}
            objects.append({"id": len(objects) + 1, **values, "area": float(box[2] * box[3]), "iscrowd": 0})
    classes = Counter(entry["category_id"] for entry in objects)
    return [entry for entry in objects if classes[entry["category_id"]] >= 30]


@pytest.mark.slow
def test_yolo_val_of_a_checkpoint(detector: Path) -> None:
    """Ultralytics interpolates precision linearly, COCO takes the best to the right: close, not equal."""
    theirs, predictions = validate(detector / "detector.pt", detector / "data.yaml", "checkpoint")
    ours = numbers(predictions, detector / "annotations.json")["AP"]
    assert ours > 0.05
    assert ours == pytest.approx(theirs, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("format", "package"), [("onnx", "onnx"), ("openvino", "openvino"), ("ncnn", "pnnx")])
def test_yolo_val_of_exported_models(
    format: str, package: str, *, detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package)
    from ultralytics import YOLO

    if format == "openvino":
        use_float32(monkeypatch)
    if format == "ncnn":
        use_one_thread(monkeypatch)
    copied = tmp_path / "detector.pt"
    copied.write_bytes((detector / "detector.pt").read_bytes())
    file = Path(YOLO(copied).export(format=format, imgsz=VAL["imgsz"], verbose=False))
    truth = detector / "annotations.json"
    expected = numbers(validate(detector / "detector.pt", detector / "data.yaml", f"for-{format}")[1], truth)
    seen = numbers(validate(file, detector / "data.yaml", format)[1], truth)
    assert expected["AP"] > 0.05
    assert seen == pytest.approx(expected, abs=1e-3)


def use_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs with bfloat16 use it unasked in OpenVINO, and a few boxes are then suppressed differently."""
    import openvino

    compile_model = openvino.Core.compile_model

    def compile_exactly(core: Any, model: Any, device_name: Any = None, config: Any = None, **more: Any) -> Any:
        return compile_model(core, model, "CPU", {**(config or {}), "INFERENCE_PRECISION_HINT": "f32"}, **more)

    monkeypatch.setattr(openvino.Core, "compile_model", compile_exactly)


def use_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCNN's threads spin while they wait for each other, which on a busy machine takes minutes."""
    import ncnn

    def net(create: Callable[[], Any] = ncnn.Net) -> Any:
        made = create()
        made.opt.num_threads = 1
        return made

    monkeypatch.setattr(ncnn, "Net", net)


def test_importing_the_command_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = """
import sys, yolo_lightbackbones.cli
heavy = {"torch", "ultralytics", "numpy", "pycocotools", "matplotlib", "PIL", "cv2"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)

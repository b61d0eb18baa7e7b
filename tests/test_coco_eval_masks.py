"""`lightbackbones coco-eval --iou-type segm`: masks, and those that are wrong."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from coco_numbers import (
    HITS,
    ROW,
    Content,
    Save,
    annotation_file,
    assert_refused,
    coco_eval,
    numbers,
    prediction,
    saving,
)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    return saving(tmp_path)


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

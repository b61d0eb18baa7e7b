"""`lightbackbones coco-eval`: predictions and annotations that are wrong."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from coco_numbers import (
    HITS,
    ROW,
    Content,
    Save,
    assert_refused,
    coco_eval,
    numbers,
    prediction,
    row_and_none,
    saving,
    three_images,
)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    return saving(tmp_path)


@pytest.fixture
def row() -> Content:
    return row_and_none()


@pytest.fixture
def three() -> Content:
    return three_images()


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

"""`lightbackbones coco-eval`: which images count, and whose image and category a prediction names."""

from __future__ import annotations

import json
import re
from pathlib import Path

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


# --- which images -----------------------------------------------------------------------------------------------------


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

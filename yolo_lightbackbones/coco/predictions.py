"""Reads a predictions.json, as `yolo val save_json=True` writes it, checks it, and gives it the annotations' ids.

Every check prevents a wrong number without an error: the evaluation itself would leave out, or count as something else,
a category that COCO lacks, an image that the annotations lack, or an impossible box.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from yolo_lightbackbones.bounds import is_whole
from yolo_lightbackbones.coco.files import Tally, as_id, is_box, is_number, read_json, shortened, stem
from yolo_lightbackbones.coco.ground_truth import MAX_AREA, GroundTruth
from yolo_lightbackbones.messages import flow, quoted

IouType = Literal["bbox", "segm"]
REGIONS: Final[dict[IouType, str]] = {"bbox": "bbox", "segm": "segmentation"}
"""Kind of IoU -> key of a prediction with the region to compare."""

CLASSES = 80
"""Number of COCO's classes."""

Prediction = dict[str, Any]


@dataclass(frozen=True)
class Matched:
    """Predictions with the annotations' ids, ready for pycocotools."""

    predictions: list[Prediction]
    by_name: int  # how many were assigned to their image by file name: image_id is another id, or a text


def read_predictions(path: Path, iou_type: IouType = "bbox") -> list[Prediction]:
    """Read the entries of a predictions file, with its own ids.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, not JSON, or holds entries that are no predictions; the message counts them.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"There is no predictions file {path}. `yolo val` writes one for COCO, a val2017.txt with 'coco' in its "
            "path, or with save_json=True, and none where nothing was detected."
        )
    content = read_json(path, "predictions file")
    if not isinstance(content, list):
        swapped = " Are the two files swapped?" if isinstance(content, dict) and "annotations" in content else ""
        raise ValueError(
            f"{path} is no predictions file: it holds a {type(content).__name__}, where a list of objects is "
            f"needed, as `yolo val save_json=True` writes it.{swapped}"
        )
    if not content:
        raise ValueError(f"{path} holds no predictions, so there is nothing to evaluate. Was `conf` set too high?")
    faults: dict[str, Tally] = {}
    for position, entry in enumerate(content):
        fault = _fault(entry, iou_type)
        if fault:
            what, value = fault
            faults.setdefault(what, Tally()).add(f"entry {position}{value}")
    if faults:
        raise ValueError(
            f"{sum(tally.count for tally in faults.values())} of {len(content)} entries in {path} are no "
            "predictions:"
            + "".join(f"\n  {tally.count} {what}: {tally}" for what, tally in faults.items())
            + f"\nEach needs image_id, category_id, score and {REGIONS[iou_type]}"
            + (" [x, y, width, height] in pixels." if iou_type == "bbox" else " as compressed RLE.")
        )
    return content


def _fault(entry: Any, iou_type: IouType) -> tuple[str, str] | None:
    """The problem of an entry and the wrong value; None if there is no problem."""
    if not isinstance(entry, dict):
        return "are no objects", f" {quoted(entry)}"
    region = REGIONS[iou_type]
    absent = [key for key in ("image_id", "category_id", "score", region) if key not in entry]
    if absent:
        return f"without {', '.join(absent)}", ""
    value = entry[region]
    checks = {
        "whose image_id is neither a whole number nor a text": (
            is_whole(entry["image_id"]) or isinstance(entry["image_id"], str),
            entry["image_id"],
        ),
        "whose category_id is not a whole number": (is_whole(entry["category_id"]), entry["category_id"]),
        "whose score is not a finite number": (is_number(entry["score"]), entry["score"]),
        "whose file_name is no text": (isinstance(entry.get("file_name", ""), str), entry.get("file_name")),
    }
    if iou_type == "bbox":
        checks["whose bbox is not four finite numbers"] = (is_box(value), value)
        checks["whose bbox has a negative width or height"] = (not is_box(value) or min(value[2:]) >= 0, value)
        # pycocotools would not even count them as false positives.
        area = f"whose bbox is larger than {MAX_AREA:.0e} square pixels"
        checks[area] = (not is_box(value) or value[2] * value[3] <= MAX_AREA, value)
    else:
        checks["whose segmentation is not compressed RLE, {size: [height, width], counts: text}"] = (
            isinstance(value, dict)
            and isinstance(value.get("counts"), str)
            and isinstance(value.get("size"), list)
            and len(value["size"]) == 2
            and all(map(is_whole, value["size"])),
            value,
        )
    for what, (fine, seen) in checks.items():
        if not fine:
            return what, f" {quoted(seen)}"
    return None


# --- ids ---------------------------------------------------------------------------------------------------------


def map_categories(predictions: Sequence[Prediction], table: Mapping[int, int], name: str) -> list[Prediction]:
    """Translate the category ids of predictions by `table`, which messages call `name`.

    Raises:
        ValueError: the table lacks ids of the predictions.
    """
    strangers = Counter(p["category_id"] for p in predictions if p["category_id"] not in table)
    if strangers:
        raise ValueError(
            f"{name} maps the category ids {min(table)} to {max(table)}; {sum(strangers.values())} predictions have "
            f"{len(strangers)} other ids: {shortened(sorted(strangers))}."
        )
    return [{**prediction, "category_id": table[prediction["category_id"]]} for prediction in predictions]


def match_images(predictions: Sequence[Prediction], truth: GroundTruth) -> Matched:
    """Give predictions the image ids of the annotations.

    A prediction's file name decides if exactly one image of the annotations has this name: Ultralytics makes the id
    from the file name, and in data other than COCO such an id may be a text, or the id of another image. Otherwise the
    id decides: several images may share a name, or a prediction may have none.

    Raises:
        ValueError: the annotations do not list an image, or list it under another file name.
    """
    by_stem = truth.ids_by_stem()
    suffixes = {PurePosixPath(str(image.get("file_name", ""))).suffix.lower() for image in truth.images.values()}
    strangers: Counter[str] = Counter()
    renamed: dict[str, int] = {}
    matched, by_name = [], 0
    for prediction in predictions:
        image = prediction["image_id"]
        if "file_name" in prediction:
            name = stem(prediction["file_name"])
        elif isinstance(image, str):  # a file name with or without suffix: what follows a dot may belong to the name
            suffixed = image not in by_stem and PurePosixPath(image).suffix.lower() in suffixes
            name = stem(image) if suffixed else image
        else:
            name = ""
        named = by_stem.get(name, [])
        number = as_id(image) if isinstance(image, str) else image
        if len(named) == 1:
            by_name += named[0] != image
            matched.append({**prediction, "image_id": named[0]})
        elif number not in truth.images:
            strangers[flow(image)] += 1
        elif "file_name" in prediction and stem(truth.images[number].get("file_name", "")) not in {"", name}:
            names = (flow(name, 80) for name in (prediction["file_name"], truth.images[number]["file_name"]))
            told = f"image_id {flow(image, 40)}: {', not '.join(names)}"
            renamed[told] = renamed.get(told, 0) + 1
        else:
            matched.append({**prediction, "image_id": number})
    if strangers:
        raise ValueError(
            f"{sum(strangers.values())} of {len(predictions)} predictions are on {len(strangers)} images that "
            f"{truth.path} does not list, by id or by file name: image_id {shortened(strangers)}. "
            "Give the annotations of the images that were predicted."
        )
    if renamed:
        raise ValueError(
            f"{sum(renamed.values())} of {len(predictions)} predictions are on {len(renamed)} images that {truth.path} "
            f"lists under other file names: {shortened(renamed)}. `yolo val` makes image ids of file names: give the "
            "annotations of the images that were predicted. Where the ids are right and the names are not, take "
            "file_name out of the predictions."
        )
    return Matched(matched, by_name)


def may_be_numbered_otherwise(
    predictions: Sequence[Prediction], truth: GroundTruth, maps: Callable[[], Mapping[str, Mapping[int, int]]]
) -> list[str]:
    """Names of the category maps that the predictions may need although the annotations list all of their ids.

    This is possible if the annotations have COCO's ids, which go up to 90 for 80 classes, and no prediction's id is
    above 80.
    """
    highest = max(prediction["category_id"] for prediction in predictions)
    if len(truth.categories) != CLASSES or highest > CLASSES:  # the maps take seconds to import
        return []
    return [
        name for name, table in maps().items() if set(truth.categories) == set(table.values()) and highest <= max(table)
    ]


def may_be_numbered_from_1(predictions: Sequence[Prediction], truth: GroundTruth) -> bool:
    """Whether the annotations number their classes from 0, but the predictions perhaps from 1, as `yolo val` does."""
    return min(truth.categories) == 0 and min(prediction["category_id"] for prediction in predictions) > 0


def check_categories(
    predictions: Sequence[Prediction], truth: GroundTruth, maps: Callable[[], Mapping[str, Mapping[int, int]]]
) -> None:
    """Refuse predictions of categories that the annotations lack; `maps` gives the options that could help.

    Raises:
        ValueError: a predicted category is not in the annotations.
    """
    seen = Counter(prediction["category_id"] for prediction in predictions)
    strangers = sorted(number for number in seen if number not in truth.categories)
    if not strangers:
        return
    helpful = [
        f"--category-map {name} (class ids {min(table)} to {max(table)})"
        for name, table in maps().items()
        if set(seen) <= set(table) and set(table.values()) <= set(truth.categories)
    ]
    advice = (
        f"If the model has COCO's 80 classes, add {' or '.join(helpful)}."
        if helpful
        else "Its categories are "
        + shortened(f"{number} {name}" for number, name in truth.categories.items())
        + f", those of the predictions {flow(min(seen))} to {flow(max(seen))}. `yolo val` numbers the classes of data "
        "other than COCO from 1: number both alike."
    )
    raise ValueError(
        f"{sum(seen[number] for number in strangers)} of {len(predictions)} predictions have {len(strangers)} category "
        f"ids that {truth.path} does not list: {shortened(strangers)}. {advice}"
    )

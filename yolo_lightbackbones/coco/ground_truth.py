"""Reads annotation files in COCO's format, and checks everything in them that the evaluation relies on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_lightbackbones.coco.files import Tally, is_box, is_id, is_number, is_side, read_json, shortened, stem
from yolo_lightbackbones.coco.masks import MAX_PIXELS, is_polygons, is_rle
from yolo_lightbackbones.messages import flow, quoted

SECTIONS = ("images", "annotations", "categories")
MAX_CATEGORIES = 20_000
"""pycocotools' tables of precision and scores take 200 kB per category, so 4 GB for this many."""

MAX_AREA = 1e10
"""In square pixels. pycocotools leaves larger objects out of every number, also out of "all areas"."""


@dataclass(frozen=True)
class GroundTruth:
    """The content of an annotation file, in COCO's format."""

    path: Path
    images: dict[int, dict[str, Any]]  # by id, in the file's order
    annotations: list[dict[str, Any]]
    categories: dict[int, str]  # id -> name, in the file's order
    unlisted: int = 0  # annotations of images that the file does not list; not among `annotations`

    def ids_by_stem(self) -> dict[str, list[int]]:
        """File name without folder and suffix -> ids of the images of that name."""
        found: dict[str, list[int]] = {}
        for number, image in self.images.items():
            if name := stem(image.get("file_name", "")):
                found.setdefault(name, []).append(number)
        return found


def read_ground_truth(path: Path, *, masks: bool = False) -> GroundTruth:
    """Read an annotation file such as ``instances_val2017.json``; with `masks`, its segmentations are needed too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not in COCO's format; the message counts what is wrong.
    """
    content = read_json(path, "annotation file")
    check_sections(content, path)
    images = by_id(content["images"], f"images of {path}")
    categories = by_id(content["categories"], f"categories of {path}")
    if not images or not categories:
        raise ValueError(f"{path} lists {len(images)} images and {len(categories)} categories: nothing to evaluate on.")
    if len(categories) > MAX_CATEGORIES:
        raise ValueError(f"{path} lists {len(categories)} categories; at most {MAX_CATEGORIES} are evaluated.")
    if masks:
        sides = {number: [image.get("height"), image.get("width")] for number, image in images.items()}
        sizeless = [number for number, size in sides.items() if not all(map(is_side, size))]
        if sizeless:
            raise ValueError(
                f"{len(sizeless)} images of {path} have no height and width above 0: id {shortened(sizeless)}"
            )
        vast = [number for number, image in images.items() if image["height"] * image["width"] >= MAX_PIXELS]
        if vast:
            raise ValueError(
                f"{len(vast)} images of {path} have 2^32 pixels or more, which pycocotools' masks cannot count: id "
                f"{shortened(vast)}"
            )
    faults: dict[str, Tally] = {}
    for position, annotation in enumerate(content["annotations"]):
        fault = _fault(annotation, images, categories, masks)
        if fault:
            what, value = fault
            faults.setdefault(what, Tally()).add(f"annotation {_name(annotation, position)}{value}")
    if faults:
        raise ValueError(
            f"{sum(tally.count for tally in faults.values())} of {len(content['annotations'])} annotations in {path} "
            "cannot be evaluated:" + "".join(f"\n  {tally.count} {fault} ({tally})" for fault, tally in faults.items())
        )
    listed = [annotation for annotation in content["annotations"] if annotation["image_id"] in images]
    unlisted = len(content["annotations"]) - len(listed)
    if unlisted and not listed:
        raise ValueError(
            f"None of the {unlisted} annotations in {path} is of an image that the file lists: their image_id are "
            f"{shortened(annotation['image_id'] for annotation in content['annotations'])}, the images' ids "
            f"{shortened(images)}."
        )
    names = {number: _class_name(category.get("name", number)) for number, category in categories.items()}
    return GroundTruth(path, images, listed, names, unlisted)


def check_sections(content: Any, path: Path) -> None:
    """Refuse a file without the lists that every instances_*.json has.

    Raises:
        ValueError: a list is missing, or the file holds no object.
    """
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} is no annotation file: it holds a {type(content).__name__}, where COCO's instances_*.json hold an "
            f"object with {', '.join(SECTIONS)}. Are the two files swapped?"
        )
    absent = [section for section in SECTIONS if not isinstance(content.get(section), list)]
    if absent:
        raise ValueError(f"{path} is no annotation file of objects: it has no list of {', '.join(absent)}.")


def by_id(entries: list[Any], what: str) -> dict[int, dict[str, Any]]:
    """Index entries of an annotation file by their `id`; messages call them `what`.

    Raises:
        ValueError: an entry without an integer id, or two with the same.
    """
    bad = [entry for entry in entries if not isinstance(entry, dict) or not is_id(entry.get("id"))]
    if bad:
        raise ValueError(
            f"{len(bad)} {what} have no whole number of at most 64 bits as id: {shortened(map(quoted, bad))}"
        )
    found = {entry["id"]: entry for entry in entries}
    if len(found) < len(entries):
        twice = [number for number, times in Counter(entry["id"] for entry in entries).items() if times > 1]
        raise ValueError(f"{len(twice)} ids are there more than once among the {what}: {shortened(twice)}")
    return found


def _fault(annotation: Any, images: dict[int, Any], categories: dict[int, Any], masks: bool) -> tuple[str, str] | None:
    """The problem of an annotation and the wrong value; None if there is no problem."""
    if not isinstance(annotation, dict):
        return "are no objects", f": {quoted(annotation)}"
    needed = ("image_id", "category_id", "bbox", "area", "iscrowd", *(("segmentation",) if masks else ()))
    absent = [key for key in needed if key not in annotation]
    if absent:
        return f"have no {', '.join(absent)}", ""
    number, category, box, area = (annotation[key] for key in ("image_id", "category_id", "bbox", "area"))
    checks = {
        "have an image_id that is no whole number": (is_id(number), number),
        "are of a category that the file does not list": (is_id(category) and category in categories, category),
        "have a bbox that is not four finite numbers of pixels": (is_box(box), box),
        "have a bbox with a negative width or height": (not is_box(box) or min(box[2:]) >= 0, box),
        f"have an area that is no number from 0 to {MAX_AREA:.0e} square pixels": (
            is_number(area) and 0 <= area <= MAX_AREA,
            area,
        ),
        "have an iscrowd that is neither 0 nor 1": (annotation["iscrowd"] in (0, 1), annotation["iscrowd"]),
    }
    for what, (fine, value) in checks.items():
        if not fine:
            return what, f": {quoted(value)}"
    if masks and (image := images.get(number)):
        region = annotation["segmentation"]
        if not is_polygons(region) and not is_rle(region, image["height"], image["width"]):
            return "have a segmentation that is neither polygons nor run lengths that cover their image", ""
    return None


def _name(annotation: Any, position: int) -> str:
    return flow(annotation["id"], 40) if isinstance(annotation, dict) and "id" in annotation else f"number {position}"


def _class_name(name: Any) -> str:
    return name if isinstance(name, str) else flow(name, 80)

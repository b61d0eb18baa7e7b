"""Annotation files in COCO's format, checked as far as the evaluation relies on them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_lightbackbones.coco.files import Tally, is_box, is_id, is_number, is_side, read_json, shortened, stem
from yolo_lightbackbones.coco.masks import is_polygons, is_rle

SECTIONS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class GroundTruth:
    """What an annotation file says, in its own words."""

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
    if masks:
        sides = {number: (image.get("height"), image.get("width")) for number, image in images.items()}
        sizeless = [number for number, size in sides.items() if not all(map(is_side, size))]
        if sizeless:
            raise ValueError(
                f"{len(sizeless)} images of {path} have no height and width above 0: id {shortened(sizeless)}"
            )
    faults: dict[str, Tally] = {}
    for position, annotation in enumerate(content["annotations"]):
        fault = _fault(annotation, images, categories, masks)
        if fault:
            faults.setdefault(fault, Tally()).add(f"annotation {_name(annotation, position)}")
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
    names = {number: str(category.get("name", number)) for number, category in categories.items()}
    return GroundTruth(path, images, listed, names, unlisted)


def check_sections(content: Any, path: Path) -> None:
    """Whether a file has the lists that every instances_*.json has.

    Raises:
        ValueError: it has not.
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
    """Entries of an annotation file by their `id`.

    Raises:
        ValueError: an entry without an integer id, or two with the same.
    """
    bad = [entry for entry in entries if not isinstance(entry, dict) or not is_id(entry.get("id"))]
    if bad:
        raise ValueError(f"{len(bad)} {what} have no whole number of at most 64 bits as id: {shortened(bad)}")
    found = {entry["id"]: entry for entry in entries}
    if len(found) < len(entries):
        twice = [number for number, times in Counter(entry["id"] for entry in entries).items() if times > 1]
        raise ValueError(f"{len(twice)} ids are there more than once among the {what}: {shortened(twice)}")
    return found


def _fault(annotation: Any, images: dict[int, Any], categories: dict[int, Any], masks: bool) -> str | None:
    """What is wrong with an annotation, or None."""
    if not isinstance(annotation, dict):
        return "are no objects"
    needed = ("image_id", "category_id", "bbox", "area", "iscrowd", *(("segmentation",) if masks else ()))
    absent = [key for key in needed if key not in annotation]
    if absent:
        return f"have no {', '.join(absent)}"
    if not is_id(annotation["image_id"]):
        return f"have {annotation['image_id']!r} as image_id, which is no whole number"
    if not is_id(annotation["category_id"]) or annotation["category_id"] not in categories:
        return f"are of category {annotation['category_id']!r}, which the file does not list"
    values = {
        "have a bbox that is not four finite numbers": is_box(annotation["bbox"]),
        "have a bbox with a negative width or height": not is_box(annotation["bbox"])
        or min(annotation["bbox"][2:]) >= 0,
        "have an area that is not a finite number": is_number(annotation["area"]),
        "have an iscrowd that is neither 0 nor 1": annotation["iscrowd"] in (0, 1),
    }
    if masks and (image := images.get(annotation["image_id"])):
        region = annotation["segmentation"]
        sound = is_polygons(region) or is_rle(region, image["height"], image["width"])
        values["have a segmentation that is neither polygons nor run lengths that cover their image"] = sound
    return next((fault for fault, fine in values.items() if not fine), None)


def _name(annotation: Any, position: int) -> str:
    return str(annotation["id"]) if isinstance(annotation, dict) and "id" in annotation else f"number {position}"

"""Annotation files in COCO's format, checked as far as the evaluation relies on them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from yolo_lightbackbones.coco.files import Tally, is_box, is_integer, is_number, read_json, shortened

SECTIONS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class GroundTruth:
    """What an annotation file says, in its own words."""

    path: Path
    images: dict[int, dict[str, Any]]  # by id, in the file's order
    annotations: list[dict[str, Any]]
    categories: dict[int, str]  # id -> name, in the file's order

    def ids_by_stem(self) -> dict[str, int]:
        """File name without folder and suffix -> image id, for the names that belong to one image only."""
        stems = {number: PurePosixPath(str(image.get("file_name", ""))).stem for number, image in self.images.items()}
        shared = Counter(stems.values())
        return {stem: number for number, stem in stems.items() if stem and shared[stem] == 1}


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
        sizeless = [n for n, i in images.items() if not (is_integer(i.get("height")) and is_integer(i.get("width")))]
        if sizeless:
            raise ValueError(f"{len(sizeless)} images of {path} have no height and width: id {shortened(sizeless)}")
    faults: dict[str, Tally] = {}
    for position, annotation in enumerate(content["annotations"]):
        fault = _fault(annotation, categories, masks)
        if fault:
            faults.setdefault(fault, Tally()).add(f"annotation {_name(annotation, position)}")
    if faults:
        raise ValueError(
            f"{sum(tally.count for tally in faults.values())} of {len(content['annotations'])} annotations in {path} "
            "cannot be evaluated:" + "".join(f"\n  {tally.count} {fault} ({tally})" for fault, tally in faults.items())
        )
    names = {number: str(category.get("name", number)) for number, category in categories.items()}
    return GroundTruth(path, images, content["annotations"], names)


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
    bad = [entry for entry in entries if not isinstance(entry, dict) or not is_integer(entry.get("id"))]
    if bad:
        raise ValueError(f"{len(bad)} {what} have no whole number as id: {shortened(bad)}")
    found = {entry["id"]: entry for entry in entries}
    if len(found) < len(entries):
        twice = [number for number, times in Counter(entry["id"] for entry in entries).items() if times > 1]
        raise ValueError(f"{len(twice)} ids are there more than once among the {what}: {shortened(twice)}")
    return found


def _fault(annotation: Any, categories: dict[int, Any], masks: bool) -> str | None:
    """What is wrong with an annotation, or None."""
    if not isinstance(annotation, dict):
        return "are no objects"
    needed = ("image_id", "category_id", "bbox", "area", "iscrowd", *(("segmentation",) if masks else ()))
    absent = [key for key in needed if key not in annotation]
    if absent:
        return f"have no {', '.join(absent)}"
    if annotation["category_id"] not in categories:
        return f"are of category {annotation['category_id']!r}, which the file does not list"
    values = {
        "have a bbox that is not four finite numbers": is_box(annotation["bbox"]),
        "have an area that is not a finite number": is_number(annotation["area"]),
        "have an iscrowd that is neither 0 nor 1": annotation["iscrowd"] in (0, 1),
    }
    return next((fault for fault, fine in values.items() if not fine), None)


def _name(annotation: Any, position: int) -> str:
    return str(annotation["id"]) if isinstance(annotation, dict) and "id" in annotation else f"number {position}"

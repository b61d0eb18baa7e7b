"""Reads from an instances_*.json only what `coco-prepare` needs: all of train2017's would take gigabytes of memory."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolo_lightbackbones.coco import names
from yolo_lightbackbones.coco.files import Tally, is_box, is_id, is_side, read_json, shortened
from yolo_lightbackbones.coco.ground_truth import by_id, check_sections
from yolo_lightbackbones.messages import quoted

TOLERANCE = 0.01
"""How far a box's centre and size, as shares of the image, may be outside 0..1 before Ultralytics drops the image."""


@dataclass(frozen=True)
class Image:
    """An entry of the list of images: its `file_name`, and its size in pixels."""

    name: str
    width: int
    height: int


@dataclass
class Instances:
    """The images of one annotation file, and what is wrong with its annotations."""

    images: dict[int, Image]  # by id; only those with usable names
    badly_named: dict[int, Any] = field(default_factory=dict)  # id -> file_name of the others
    name_problems: dict[str, Tally] = field(default_factory=dict)  # kind of problem -> examples
    annotations: int = 0
    crowds: int = 0
    annotated: set[int] = field(default_factory=set)  # ids of images with any annotation, crowd regions included
    flat: Tally = field(default_factory=Tally)  # boxes without area, which get no label
    unknown_category: Tally = field(default_factory=Tally)
    outside: Tally = field(default_factory=Tally)
    unlisted_image: Tally = field(default_factory=Tally)
    bad_images: set[int] = field(default_factory=set)  # ids of images that an annotation makes unusable


def read_instances(path: Path, categories: Mapping[int, str]) -> Instances:
    """Read and check an annotation file; `categories` are COCO's own, id -> name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not in COCO's format, or has other categories than COCO.
    """
    content = read_json(path, "annotation file")
    check_sections(content, path)
    _check_categories(content["categories"], categories, path)
    found = _images(content["images"], path)
    malformed = Tally()
    for position, annotation in enumerate(content["annotations"]):
        if not _is_sound(annotation):
            malformed.add(f"number {position}")
            continue
        _count(annotation, found, categories.keys())
    if malformed.count:
        raise ValueError(
            f"{malformed.count} annotations of {path} have no image_id and category_id in whole numbers, no bbox of "
            f"four finite numbers, or no iscrowd of 0 or 1: {malformed}. Download the file again."
        )
    return found


def for_labels(path: Path, instances: Instances) -> dict[str, Any]:
    """Read the part of the file that the conversion to labels needs.

    Images with unusable names or annotations are left out.
    """
    content = read_json(path, "annotation file")
    kept = instances.images.keys() - instances.bad_images
    images, annotations = ("id", "file_name", "width", "height"), ("image_id", "category_id", "bbox", "iscrowd")
    return {
        "images": [{key: image[key] for key in images} for image in content["images"] if image["id"] in kept],
        "annotations": [
            {key: annotation[key] for key in annotations}
            for annotation in content["annotations"]
            if annotation["image_id"] in kept
        ],
    }


def _check_categories(entries: list[Any], categories: Mapping[int, str], path: Path) -> None:
    """Refuse other categories than COCO's: labels hold class numbers, which would be read as COCO's."""
    others = [
        f"{number} {quoted(entry.get('name'))}"
        for number, entry in by_id(entries, f"categories of {path}").items()
        if number in categories and entry.get("name") != categories[number]
    ]
    if others:
        raise ValueError(
            f"{path} is not COCO's: {len(others)} of its categories have another name there, such as "
            f"{shortened(others)}. This command prepares COCO itself."
        )


def _images(entries: list[Any], path: Path) -> Instances:
    listed = by_id(entries, f"images of {path}")
    bad = Tally()
    for number, entry in listed.items():
        if not is_side(entry.get("width")) or not is_side(entry.get("height")):
            bad.add(f"id {number}: {quoted(entry.get('width'))} x {quoted(entry.get('height'))}")
    if bad.count:
        raise ValueError(f"{bad.count} images of {path} have no width and height in whole pixels above 0: {bad}")
    faults = {number: fault for number, entry in listed.items() if (fault := names.fault(entry.get("file_name")))}
    faults |= names.clashes({number: entry["file_name"] for number, entry in listed.items() if number not in faults})
    found = Instances(
        {
            number: Image(entry["file_name"], entry["width"], entry["height"])
            for number, entry in listed.items()
            if number not in faults
        },
        badly_named={number: listed[number].get("file_name") for number in faults},
    )
    for number, fault in faults.items():
        found.name_problems.setdefault(fault, Tally()).add(f"id {number}: {quoted(found.badly_named[number])}")
    return found


def _is_sound(annotation: Any) -> bool:
    return (
        isinstance(annotation, dict)
        and is_id(annotation.get("image_id"))
        and is_id(annotation.get("category_id"))
        and is_box(annotation.get("bbox"))
        and annotation.get("iscrowd") in (0, 1)
    )


def _count(annotation: dict[str, Any], found: Instances, categories: Set[int]) -> None:
    found.annotations += 1
    number = annotation["image_id"]
    image = found.images.get(number)
    if image is None and number not in found.badly_named:
        found.unlisted_image.add(f"image_id {number}")
        return
    found.annotated.add(number)
    found.crowds += bool(annotation["iscrowd"])
    if image is None:
        return
    category = annotation["category_id"]
    if category not in categories:
        found.unknown_category.add(f"{category} in {image.name}")
        found.bad_images.add(number)
    if annotation["iscrowd"]:
        return  # crowd regions get no label
    x, y, width, height = annotation["bbox"]
    if width <= 0 or height <= 0:
        found.flat.add(f"{annotation['bbox']} in {image.name}")
        return
    shares = (x + width / 2) / image.width, (y + height / 2) / image.height, width / image.width, height / image.height
    if min(shares) < -TOLERANCE or max(shares) > 1 + TOLERANCE:
        found.outside.add(f"{annotation['bbox']} in {image.name}, {image.width} x {image.height}")
        found.bad_images.add(number)

"""The report of `coco-prepare`: what was found in a COCO folder, and what was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from yolo_lightbackbones.coco.files import Tally

NAMES = {
    "unnamed_images": "images have no text as file_name",
    "names_with_nul": "image names have a NUL, which no file name can have",
    "names_with_line_breaks": "image names have a line break, which would make two lines of one in an image list",
    "names_not_utf8": "image names have half a surrogate pair, which UTF-8 and so an image list cannot hold",
    "names_with_blanks": "image names begin or end with a blank, which Ultralytics strips from a list",
    "names_outside": "image names are no plain paths below the images folder: /x, ../x, a//x, C:x and a\\\\x are not",
    "names_in_images": "images are in another folder `images`, beside which Ultralytics would look for their labels",
    "names_without_suffix": "image names do not end in .jpg, .jpeg or .png, as Ultralytics needs it",
    "names_too_long": "image names are longer than 255 bytes, or 1024 with their folders",
    "names_twice": "images share one file name",
    "shared_labels": "image names differ only in their suffix, or one is a folder of another's label: their labels "
    "would share one file",
}
"""Kind of problem with an image's file name -> message, which follows the number of cases."""

PROBLEMS = {
    "missing_images": "annotated images are not there",
    "corrupt_images": "images cannot be used",
    "wrong_sizes": "images are of another size than the annotations say",
    "unknown_categories": "annotations are of a category that COCO does not have",
    "outside_boxes": "boxes leave their image, and Ultralytics would drop such images",
    "unlisted_images": "annotations are of images that the file does not list",
    **NAMES,
    "labels_differ": "label files differ from those in the folder that is there already",
    "list_differs": "lines differ in the image list that is there already",
}
"""Kind of any problem -> message, which follows the number of cases."""

NOTES = {
    "strangers": "files among the images are not in the annotations; the lists leave them out",
    "unfinished_jpegs": "JPEGs do not end with their end marker; Ultralytics rewrites such files when it reads them",
    "flat_boxes": "annotations have no width or height, and get no label",
}
"""Kind of note about something that is no problem -> message, which follows the number of cases."""


@dataclass
class SplitReport:
    """What was found in one split, and what was written for it."""

    images: int = 0  # in the annotations
    annotations: int = 0
    crowds: int = 0
    images_without_annotations: int = 0
    listed: int = 0  # images that the list file holds
    labels: str = "not written"
    list_file: str = "not written"
    problems: dict[str, Tally] = field(default_factory=dict)
    notes: dict[str, Tally] = field(default_factory=dict)

    def problem(self, kind: str, example: object, times: int = 1) -> None:
        self.problems.setdefault(kind, Tally()).add(example, times)

    def note(self, kind: str, example: object, times: int = 1) -> None:
        self.notes.setdefault(kind, Tally()).add(example, times)

    def as_json(self) -> dict[str, Any]:
        counts = {key: value for key, value in vars(self).items() if key not in ("problems", "notes")}
        return {**counts, "problems": _as_json(self.problems), "notes": _as_json(self.notes)}


@dataclass
class Report:
    """What was found in a COCO folder, and what was written in it."""

    root: str
    splits: dict[str, SplitReport] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)  # split -> what is missing
    yaml: str = "not written"
    remarks: list[str] = field(default_factory=list)
    ok: bool = False  # whether everything is in place

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "splits": {name: split.as_json() for name, split in self.splits.items()}}


def _as_json(tallies: dict[str, Tally]) -> dict[str, Any]:
    return {kind: {"count": tally.count, "examples": tally.examples} for kind, tally in tallies.items()}

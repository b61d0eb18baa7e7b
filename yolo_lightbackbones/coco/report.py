"""What was found in a COCO folder and done to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from yolo_lightbackbones.coco.files import Tally

PROBLEMS = {
    "missing_images": "annotated images are not there",
    "corrupt_images": "images cannot be used",
    "wrong_sizes": "images are of another size than the annotations say",
    "unknown_categories": "annotations are of a category that COCO does not have",
    "outside_boxes": "boxes leave their image, for which Ultralytics would drop it",
    "unlisted_images": "annotations are of images that the file does not list",
    "labels_differ": "label files differ from those in the folder that is there already",
    "list_differs": "lines differ in the image list that is there already",
}
"""Kind of problem -> how it is told, behind its count."""

NOTES = {
    "strangers": "files among the images are not in the annotations; the lists leave them out",
    "unfinished_jpegs": "JPEGs have something behind their end; Ultralytics writes such files anew when it reads them",
    "flat_boxes": "annotations have no width or height, and get no label",
}
"""The same for what is no problem."""


@dataclass
class SplitReport:
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
    root: str
    splits: dict[str, SplitReport] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)  # split -> what of it is not there
    yaml: str = "not written"
    remarks: list[str] = field(default_factory=list)
    ok: bool = False  # whether everything is in place

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "splits": {name: split.as_json() for name, split in self.splits.items()}}


def _as_json(tallies: dict[str, Tally]) -> dict[str, Any]:
    return {kind: {"count": tally.count, "examples": tally.examples} for kind, tally in tallies.items()}

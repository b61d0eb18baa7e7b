"""Annotations and predictions to evaluate, `lightbackbones coco-eval` on them, and what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from yolo_lightbackbones.cli import app

TWELVE = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]

Content = dict[str, Any]
Save = Callable[[object], Path]


def saving(folder: Path) -> Save:
    """Writes content, as JSON or as it is, into a file of its own."""
    count = 0

    def write(content: object) -> Path:
        nonlocal count
        count += 1
        path = folder / f"file{count}.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return write


def coco_eval(predictions: Path, annotations: Path, *options: object) -> Result:
    arguments = ["coco-eval", str(predictions), "--annotations", str(annotations), *map(str, options)]
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})


def numbers(predictions: Path, annotations: Path, *options: object) -> dict[str, Any]:
    """Run the command with --json and parse its stdout, which must hold nothing else."""
    result = coco_eval(predictions, annotations, "--json", *options)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert [key for key in found if key != "per_class"] == TWELVE
    return found


def assert_refused(result: Result, *messages: str) -> None:
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for message in messages:
        assert re.search(message, result.stderr), result.stderr


def annotation_file(boxes: dict[int, list[tuple[int, list[float]]]], *, categories: int = 2) -> Content:
    """Annotations of images by id, each with (category, box) pairs."""
    annotations: list[Content] = []
    for image, objects in boxes.items():
        for category, box in objects:
            area = box[2] * box[3]
            entry = {"image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **entry})
    return {
        "images": [{"id": image, "file_name": f"{image:06d}.jpg", "width": 640, "height": 480} for image in boxes],
        "annotations": annotations,
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, categories + 1)],
    }


def prediction(image: int | str, category: int, box: list[float], score: float, **more: object) -> Content:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score, **more}


# --- the numbers ------------------------------------------------------------------------------------------------------


ROW = [[40.0 + 100 * i, 40.0, 60.0, 60.0] for i in range(4)]
"""Four objects of medium size (32 squared < 60 squared < 96 squared) that do not touch."""


def row_and_none() -> Content:
    """An image with four objects of class 1, and one without any."""
    return annotation_file({1: [(1, box) for box in ROW], 2: []})


# AP is the mean over the 101 recalls 0, 0.01, ..., 1 of the best precision at that recall or a higher one. Three of
# four objects found is recall 0.75, which covers the 76 recalls from 0 to 0.75; beyond it precision counts as 0.
HITS = [prediction(1, 1, box, score) for box, score in zip(ROW, (0.9, 0.8, 0.7), strict=False)]


# --- which images -----------------------------------------------------------------------------------------------------


def three_images() -> Content:
    """Three images with an object each."""
    return annotation_file({image: [(1, ROW[0])] for image in (1, 2, 3)})

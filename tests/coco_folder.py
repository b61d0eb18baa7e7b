"""A small folder in COCO's form, `lightbackbones coco-prepare` on it, and what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from yolo_lightbackbones.cli import app

Content = dict[str, Any]

OBJECTS: dict[str, dict[str, list[tuple[int, list[float], int]]]] = {
    "train2017": {
        "000000000001.jpg": [(1, [10, 10, 20, 20], 0), (90, [0, 0, 64, 48], 0), (90, [0, 0, 64, 48], 0)],
        "000000000002.jpg": [(13, [5.5, 6.5, 30.25, 20], 0), (1, [0, 0, 60, 40], 1)],
        "000000000003.jpg": [],
    },
    "val2017": {
        "000000000011.jpg": [(2, [1, 2, 3, 4], 0)],
        "000000000012.jpg": [(3, [0, 0, 10, 10], 1)],
        "000000000013.jpg": [(1, [4, 4, 0, 9], 0), (44, [32, 24, 32, 24], 0)],
    },
}
"""Split -> image -> objects as (category of COCO, box, crowd), with a double, a flat box and two crowd regions."""

LABELS = {
    "train2017/000000000001.txt": [[0, 20 / 64, 20 / 48, 20 / 64, 20 / 48], [79, 0.5, 0.5, 1, 1]],
    "train2017/000000000002.txt": [[11, 20.625 / 64, 16.5 / 48, 30.25 / 64, 20 / 48]],
    "val2017/000000000011.txt": [[1, 2.5 / 64, 4 / 48, 3 / 64, 4 / 48]],
    "val2017/000000000012.txt": [],
    "val2017/000000000013.txt": [[39, 0.75, 0.75, 0.5, 0.5]],
}
"""By hand: category 13 (stop sign) is class 11, 44 (bottle) class 39, 90 (toothbrush) class 79."""


def category_entries() -> list[Content]:
    from ultralytics.data.converter import coco80_to_coco91_class

    from yolo_lightbackbones.configs.finding import config_dir

    names = yaml.safe_load((config_dir() / "datasets" / "coco.yaml").read_text())["names"].values()
    return [{"id": n, "name": name} for n, name in zip(coco80_to_coco91_class(), names, strict=True)]


def write_image(path: Path, width: int = 64, height: int = 48, seed: int = 0) -> None:
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), picture)


def write_split(root: Path, split: str, images: Path) -> None:
    entries: list[Content] = []
    annotations: list[Content] = []
    for name, objects in OBJECTS[split].items():
        number = int(Path(name).stem)
        entries.append({"id": number, "file_name": name, "width": 64, "height": 48})
        write_image(images / split / name, seed=number)
        for category, box, crowd in objects:
            values = {"image_id": number, "category_id": category, "bbox": box, "iscrowd": crowd}
            annotations.append({"id": len(annotations) + 1, **values, "area": box[2] * box[3]})
    content = {"images": entries, "annotations": annotations, "categories": category_entries()}
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def write_coco(folder: Path) -> Path:
    """Both splits, as the archives unpack into images/."""
    folder.mkdir()
    for split in OBJECTS:
        write_split(folder, split, folder / "images")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


def prepare(root: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["coco-prepare", str(root), *options], env={"COLUMNS": "160"})


def report(root: Path, *options: str, exit_code: int = 0) -> Content:
    """Run the command with --json and parse its stdout, which must hold nothing else."""
    result = prepare(root, "--json", *options)
    assert result.exit_code == exit_code, result.output
    found: Content = json.loads(result.stdout)
    return found


def assert_refused(result: Result, *messages: str) -> None:
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.stderr
    for message in messages:
        assert re.search(message, result.stderr), result.stderr


def change(root: Path, split: str, section: str, index: int, **values: object) -> None:
    """Change an entry of an annotation file."""
    path = root / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    content[section][index].update(values)
    path.write_text(json.dumps(content))


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of change of every file."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def rows(path: Path) -> np.ndarray:
    return np.array([line.split() for line in path.read_text().splitlines()], np.float64).reshape(-1, 5)


def assert_nothing_written(root: Path) -> None:
    left = {path.name for path in root.iterdir()} - {"annotations", "images", "train2017", "val2017"}
    assert left <= {".coco-prepare.json"}

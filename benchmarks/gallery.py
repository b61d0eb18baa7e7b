"""Pictures to look at: what each trained detector finds on the same few images, and how it confuses classes.

    python benchmarks/gallery.py --data bccd=bccd.yaml --folder runs/learning [--scale n] [--seed 0]

No test runs this: it needs detectors that take hours to train.

Takes the detectors that `benchmarks/learning.py` left in that folder, `yolo predict`s test images with each of them,
and writes docs/gallery-DATA-SCALE.jpg, a row per model, and docs/confusion-DATA-SCALE.png, both small.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from learning import MODELS, ROOT, SIZES, data_yaml, yaml_of

IMAGES = 3
SIDE = 240  # pixels of one picture


def labelled(picture: Any, text: str) -> Any:
    """The picture with a strip above it that says what it is."""
    strip = np.full((22, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, text, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([strip, picture])


def found(weights: Path, files: list[Path], imgsz: int) -> list[Any]:
    """The files with the detector's boxes drawn on them, each SIDE x SIDE."""
    from ultralytics import YOLO

    drawn = []
    for result in YOLO(weights).predict(files, imgsz=imgsz, conf=0.35, verbose=False):
        picture = result.plot(conf=False, line_width=2, font_size=9)
        scale = SIDE / min(picture.shape[:2])
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        drawn.append(picture[:SIDE, :SIDE])
    return drawn


def confusion(weights: Path, data: str, imgsz: int, folder: Path) -> Any:
    """The confusion matrix that `yolo val` draws, at SIDE pixels a picture."""
    from ultralytics import YOLO

    options = {"split": "test", "plots": True, "verbose": False, "workers": 0, "exist_ok": True}
    YOLO(weights).val(data=data, imgsz=imgsz, project=str(folder), name="confusion", **options)
    picture = cv2.imread(str(folder / "confusion" / "confusion_matrix_normalized.png"))
    scale = 1.5 * SIDE / picture.shape[0]
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="NAME=YAML")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "learning")
    parser.add_argument("--scale", default="n")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from ultralytics.data.utils import check_det_dataset

    name, _, given = arguments.data.partition("=")
    folder = arguments.folder.absolute()
    data = data_yaml(name, given, folder)
    imgsz = SIZES[name]["imgsz"]
    test = Path(check_det_dataset(data)["test"])  # a folder, or a list
    listed = map(Path, test.read_text().splitlines()) if test.is_file() else test.iterdir()
    files = sorted(listed)[:IMAGES]
    rows, matrices = [], []
    for model in MODELS:
        run = folder / f"{name}-{arguments.scale}-{model}-{arguments.seed}"
        weights = run / "weights" / "best.pt"
        if not run.with_name(f"{run.name}-test").is_dir():
            print(f"{run} is not there or not finished: {model} is left out")
            continue
        label = yaml_of(model, arguments.scale).removesuffix(".yaml")
        rows.append(labelled(np.hstack(found(weights, files, imgsz)), label))
        matrices.append(labelled(confusion(weights, data, imgsz, folder), label))
    if not rows:
        sys.exit(f"error: no detector of {name} at scale {arguments.scale} is in {folder}. Run learning.py first.")
    docs = ROOT / "docs"
    cv2.imwrite(str(docs / f"gallery-{name}-{arguments.scale}.jpg"), np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 80])
    cv2.imwrite(str(docs / f"confusion-{name}-{arguments.scale}.png"), np.vstack(matrices))


if __name__ == "__main__":
    main()

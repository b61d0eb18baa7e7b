"""`lightbackbones coco-eval` on what `yolo val` writes, of a checkpoint and of what was exported of it."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from coco_numbers import Content, numbers
from exact_runtimes import exact_openvino, single_threaded_ncnn

VAL = {"imgsz": 96, "batch": 1, "rect": False, "conf": 0.01, "max_det": 100, "plots": False, "workers": 0}


def validate(model: Path, data: Path, name: str) -> tuple[float, Path]:
    """mAP50-95 by Ultralytics, and the predictions file."""
    from ultralytics import YOLO

    options = {**VAL, "save_json": True, "project": str(data.parent), "name": name, "verbose": False, "device": "cpu"}
    result = YOLO(model).val(data=str(data), **options)
    return float(result.box.map), data.parent / name / "predictions.json"


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A folder with a detector of ten classes, digits pictures, and annotations that it finds about half of.

    The detector is not trained: its own boxes, some of them, moved a little, are made the objects. So the numbers are
    far from 0 and 1, and depend on every box and score.
    """
    pytest.importorskip("sklearn")
    import cv2
    import torch
    from detectors import awake_detector

    from yolo_lightbackbones.configs.finding import config_dir
    from yolo_lightbackbones.datasets.digits import IMAGE_SIZE, build_digits

    folder = tmp_path_factory.mktemp("detector")
    digits = build_digits(folder / "digits", train_images=1, val_images=16)
    width, height = IMAGE_SIZE, IMAGE_SIZE * 3 // 4  # as COCO's images, which `yolo val` pads for exported models alone
    for path in (digits / "images" / "val").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path))[:height])
    (folder / "data.yaml").write_text(f"path: {digits}\ntrain: images/val\nval: images/val\nnc: 10\n")
    text = (config_dir() / "yolov5_edgevit.yaml").read_text()
    (folder / "yolov5_ten.yaml").write_text(re.sub("(?m)^nc: 80", "nc: 10", text))
    detector = awake_detector(str(folder / "yolov5n_ten.yaml"))
    with torch.no_grad():
        for branch in detector.model.model[-1].cv2:  # towards short distances, or every box would fill the image
            branch[-1].bias.copy_(-torch.arange(branch[-1].bias.numel() // 4).repeat(4))
    detector.save(folder / "detector.pt")

    _, first = validate(folder / "detector.pt", folder / "data.yaml", "first")
    annotations = json.loads((digits / "annotations" / "instances_val.json").read_text())
    annotations["annotations"] = objects = moved(json.loads(first.read_text()), width, height)
    for image in annotations["images"]:
        image["height"] = height
        rows = [
            f"{entry['category_id'] - 1} {(x + w / 2) / width:.7f} {(y + h / 2) / height:.7f} "
            f"{w / width:.7f} {h / height:.7f}\n"
            for entry in objects
            if entry["image_id"] == image["id"]
            for x, y, w, h in [entry["bbox"]]
        ]
        (digits / "labels" / "val" / f"{image['id']:06d}.txt").write_text("".join(rows))
    (folder / "annotations.json").write_text(json.dumps(annotations))
    for cache in digits.rglob("*.cache"):
        cache.unlink()
    return folder


def moved(predictions: list[Content], width: int, height: int) -> list[Content]:
    """Objects made of every third box, from the surest down, in those classes that have at least 30 of them.

    With fewer, a single box on the border of a threshold would change the mean by more than the tests allow.
    """
    rng = np.random.default_rng(0)
    objects: list[Content] = []
    for entry in sorted(predictions, key=lambda entry: (entry["image_id"], -entry["score"]))[::3]:
        box = entry["bbox"] + rng.uniform(-0.1, 0.1, 4) * np.tile(entry["bbox"][2:], 2)
        # At the border, predictions.json holds clipped boxes, while Ultralytics compares whole ones.
        if box[:2].min() > 10 and (box[:2] + box[2:] < np.array([width, height]) - 10).all():
            values = {"image_id": entry["image_id"], "category_id": entry["category_id"], "bbox": box.tolist()}
            objects.append({"id": len(objects) + 1, **values, "area": float(box[2] * box[3]), "iscrowd": 0})
    classes = Counter(entry["category_id"] for entry in objects)
    return [entry for entry in objects if classes[entry["category_id"]] >= 30]


@pytest.mark.slow
def test_yolo_val_of_a_checkpoint(detector: Path) -> None:
    """Ultralytics interpolates precision linearly, COCO takes the best to the right: close, not equal."""
    theirs, predictions = validate(detector / "detector.pt", detector / "data.yaml", "checkpoint")
    ours = numbers(predictions, detector / "annotations.json")["AP"]
    assert ours > 0.05
    assert ours == pytest.approx(theirs, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("format", "package"), [("onnx", "onnx"), ("openvino", "openvino"), ("ncnn", "pnnx")])
def test_yolo_val_of_exported_models(
    format: str, package: str, *, detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package)
    from ultralytics import YOLO

    if format == "openvino":
        exact_openvino(monkeypatch)
    if format == "ncnn":
        single_threaded_ncnn(monkeypatch)
    copied = tmp_path / "detector.pt"
    copied.write_bytes((detector / "detector.pt").read_bytes())
    file = Path(YOLO(copied).export(format=format, imgsz=VAL["imgsz"], verbose=False))
    truth = detector / "annotations.json"
    expected = numbers(validate(detector / "detector.pt", detector / "data.yaml", f"for-{format}")[1], truth)
    seen = numbers(validate(file, detector / "data.yaml", format)[1], truth)
    assert expected["AP"] > 0.05
    assert seen == pytest.approx(expected, abs=1e-3)

"""Small stand-ins for what readers of the pages bring: data sets, weights, detectors, pictures."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import published
import torch
import yaml
from places import COCO, REPOSITORY

TINY = ("coco.yaml", "coco-pose.yaml", "DOTAv1.yaml", "data.yaml", "FILE.yaml", "bccd.yaml")
PICTURES = ("picture.jpg", "street.jpg")
FOLDERS_OF_CLASSES = ("FOLDER", "imagenet")
DETECTORS = ("best.pt", "init.pt")
VIDEOS = ("videos/clip.mp4", "folder/clip.mp4", "clip.mp4")


@cache
def class_names() -> dict[int, str]:
    names: dict[int, str] = yaml.safe_load((REPOSITORY / "cfg" / "datasets" / "coco.yaml").read_text())["names"]
    return names


def write_picture(path: Path, seed: int = 0, height: int = 96, width: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), pixels)


def write_detection_set(path: Path) -> None:
    """A data set YAML with COCO's 80 classes, keypoints included, and beside it 8 pictures with a box each."""
    root = path.parent / f"{path.stem}_pictures"
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        for number in range(count):
            write_picture(root / "images" / split / f"{number}.jpg", number)
            label = root / "labels" / split / f"{number}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(f"{number} 0.5 0.5 0.4 0.3\n")
    content = {
        "path": str(root),
        "train": "images/train",
        "val": "images/val",
        "test": "images/test",
        "names": class_names(),
    }
    path.write_text(yaml.safe_dump({**content, "kpt_shape": [17, 3]}))


def write_semantic_set(path: Path) -> None:
    """A data set YAML for semantic segmentation with 3 classes, and beside it pictures with a mask each."""
    root = path.parent / f"{path.stem}_pictures"
    for split, number in itertools.product(("train", "val"), range(4)):
        write_picture(root / "images" / split / f"{number}.png", number)
        (root / "masks" / split).mkdir(parents=True, exist_ok=True)
        mask = np.zeros((96, 128), np.uint8)
        mask[:, 40:], mask[50:, 80:] = 1, 2
        assert cv2.imwrite(str(root / "masks" / split / f"{number}.png"), mask)
    names = {0: "a", 1: "b", 2: "c"}
    places = {"path": str(root), "train": "images/train", "val": "images/val", "masks_dir": "masks"}
    path.write_text(yaml.safe_dump({**places, "names": names}))


def write_depth_set(path: Path) -> None:
    """A data set YAML for depth estimation, and beside it pictures with a depth map each, in millimetres."""
    root = path.parent / f"{path.stem}_pictures"
    for split, number in itertools.product(("train", "val"), range(4)):
        write_picture(root / "images" / split / f"{number}.png", number)
        (root / "depth" / split).mkdir(parents=True, exist_ok=True)
        depth = np.tile(np.linspace(500, 4000, 128).astype(np.uint16), (96, 1))
        assert cv2.imwrite(str(root / "depth" / split / f"{number}.png"), depth)
    places = {"path": str(root), "train": "images/train", "val": "images/val", "depth_scale": 1000}
    path.write_text(yaml.safe_dump({**places, "nc": 1, "names": {0: "depth"}}))


def write_classes(folder: Path) -> None:
    for split in ("train", "val"):
        for kind in ("a", "b"):
            for number in range(4):
                write_picture(folder / split / kind / f"{number}.jpg", number)


def write_coco(folder: Path) -> None:
    """COCO as its archives unpack: the real images beside this checkout in both splits, or a few noisy ones."""
    for split in ("train2017", "val2017"):
        annotations = folder / "annotations" / f"instances_{split}.json"
        annotations.parent.mkdir(parents=True, exist_ok=True)
        if COCO.is_dir():
            shutil.copytree(COCO / "images" / "val2017", folder / "images" / split)
            shutil.copy(COCO / "annotations" / "instances_val2017.json", annotations)
            continue
        from ultralytics.data.converter import coco80_to_coco91_class

        images, boxes = [], []
        for number in range(1, 9):
            name = f"{number:012}.jpg"
            write_picture(folder / "images" / split / name, number)
            images.append({"id": number, "file_name": name, "width": 128, "height": 96})
            where = {"bbox": [30, 20, 60, 40], "area": 2400, "iscrowd": 0}
            boxes.append({"id": number, "image_id": number, "category_id": number, **where})
        kinds = zip(coco80_to_coco91_class(), class_names().values(), strict=True)
        categories = [{"id": number, "name": name} for number, name in kinds]
        annotations.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))


def write_detector(path: Path) -> None:
    """An untrained YOLOv5n on EdgeViT-XXS, as a checkpoint."""
    from ultralytics import YOLO

    torch.manual_seed(0)
    YOLO("yolov5n_edgevit.yaml").save(path)


def write_published(path: Path) -> None:
    """A file with the names and shapes of the authors' RepViT-M0.9."""
    state = published.make_state(published.golden("repvit_m0_9_96x64")["keys"])
    published.save_checkpoint(state, path, "model")


def write_weights(path: Path, variant: str) -> None:
    from yolo_lightbackbones import create_backbone

    torch.manual_seed(0)
    torch.save(create_backbone(variant).state_dict(), path)


def write_video(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 5, (128, 96))
    for seed in range(3):
        video.write(np.random.default_rng(seed).integers(0, 256, (96, 128, 3), dtype=np.uint8))
    video.release()


def write_model_yaml(path: Path) -> None:
    from yolo_lightbackbones.configs import writer

    path.write_text(writer.write("repvit_m0_9", "yolov5", scale="n"))


def copy_examples(path: Path) -> None:
    """The clone's folder, so that what runs from it writes nothing into this checkout."""
    shutil.copytree(REPOSITORY / "examples", path, ignore=shutil.ignore_patterns("__pycache__"))


MAKERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys(TINY, write_detection_set),
    **dict.fromkeys(PICTURES, write_picture),
    **dict.fromkeys(FOLDERS_OF_CLASSES, write_classes),
    **dict.fromkeys(DETECTORS, write_detector),
    **dict.fromkeys(VIDEOS, write_video),
    "coco": write_coco,
    "repvit_m0_9_distill_450e.pth": write_published,
    "backbone.pth": write_published,
    "my_repvit.yaml": write_model_yaml,
    "examples": copy_examples,
}
"""Name that a page uses -> what makes it."""


def make(folder: Path, names: tuple[str, ...]) -> Path:
    """`folder`, with these stand-ins in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        MAKERS[name](folder / name)
    return folder


def write_settings(folder: Path, datasets: Path, runs: Path) -> Path:
    """Ultralytics' settings, for YOLO_CONFIG_DIR, with these two folders. A small set of digits is among the data sets.

    The runs are nowhere that a page says: a command that looks for results has to say where they go.
    """
    from ultralytics import settings

    from yolo_lightbackbones.datasets.digits import build_digits

    file = folder / "Ultralytics" / "settings.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({**settings, "datasets_dir": str(datasets), "runs_dir": str(runs), "sync": False}))
    build_digits(datasets / "digits", train_images=8, val_images=4)
    return folder

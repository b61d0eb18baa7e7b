"""The main job, as a user types it: the stock `yolo` command trains, validates, predicts and exports, anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from commands import QUIET, Installation, Server

from yolo_lightbackbones.datasets.digits import build_digits

pytestmark = pytest.mark.slow

TRAIN = ["imgsz=64", "epochs=1", "batch=4", "workers=0", "plots=False", "exist_ok=True"]


Yolo = Callable[..., str]


@pytest.fixture(scope="module")
def yolo(here: Installation, server_of: Server) -> Yolo:
    """The stock command, in a process of its own: forked off one with torch, or `started` as a shell starts it."""
    through = here.through(server_of(here))

    def run(
        mode: str,
        *arguments: str,
        cwd: Path,
        name: str = "train",
        fails: bool = False,
        started: bool = False,
        **environment: str,
    ) -> str:
        """Run it; return what it printed. Results go to `cwd`/runs/`name`."""
        places = [] if mode == "settings" else [f"project={cwd / 'runs'}", f"name={name}"]
        result = subprocess.run(
            [*([] if started else through), here.yolo, mode, *arguments, *places],
            cwd=cwd,
            env={**os.environ, **QUIET, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert result.returncode == int(fails), result.stdout[-4000:]
        return result.stdout

    return run


@pytest.fixture(scope="module")
def folder(yolo: Yolo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the checkout with a small data set and a detector trained on it for an epoch."""
    folder = tmp_path_factory.mktemp("elsewhere")
    root = build_digits(folder / "digits", train_images=8, val_images=4)
    names = {i: str(i) for i in range(10)}
    data = {"path": str(root), "train": "images/train", "val": "images/val", "names": names}
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    yolo("train", "model=yolov5n_edgevit.yaml", "data=data.yaml", *TRAIN, cwd=folder)
    return folder


def test_training_writes_a_checkpoint_that_validates(yolo: Yolo, folder: Path) -> None:
    out = yolo("val", "model=runs/train/weights/best.pt", "data=data.yaml", "imgsz=64", "workers=0", cwd=folder)
    assert "YOLOv5n_edgevit summary (fused)" in out
    assert "GFLOPs" in out


def test_predict_writes_pictures(yolo: Yolo, folder: Path) -> None:
    images = folder / "digits" / "images" / "val"
    yolo("predict", "model=runs/train/weights/best.pt", f"source={images}", "imgsz=64", cwd=folder, name="predicted")
    assert len(list((folder / "runs" / "predicted").glob("*.jpg"))) == 4


def test_training_starts_from_a_checkpoint(yolo: Yolo, folder: Path) -> None:
    out = yolo("train", "model=runs/train/weights/best.pt", "data=data.yaml", *TRAIN, cwd=folder, name="again")
    assert "Transferred" in out


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64)])
def test_the_onnx_file_gives_the_outputs_of_the_checkpoint(yolo: Yolo, folder: Path, height: int, width: int) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from ultralytics import YOLO

    weights = folder / f"export_{height}x{width}.pt"
    shutil.copy(folder / "runs" / "train" / "weights" / "best.pt", weights)
    yolo("export", f"model={weights.name}", "format=onnx", f"imgsz={height},{width}", cwd=folder)
    picture = cv2.imread(str(next((folder / "digits" / "images" / "val").iterdir())))
    image = cv2.resize(picture, (width, height))[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 255
    session = onnxruntime.InferenceSession(weights.with_suffix(".onnx"), providers=["CPUExecutionProvider"])
    (seen,) = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(image)})
    model = YOLO(weights).model.eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(np.ascontiguousarray(image)))[0]
    torch.testing.assert_close(torch.from_numpy(seen), expected, rtol=1e-3, atol=2e-3)


def test_the_default_data_set_builds_itself(yolo: Yolo, tmp_path: Path) -> None:
    """`data=digits.yaml` from any folder; the pictures go where Ultralytics keeps data sets."""
    settings = {"YOLO_CONFIG_DIR": str(tmp_path / "settings")}
    yolo("settings", f"datasets_dir={tmp_path / 'datasets'}", cwd=tmp_path, **settings)
    arguments = [*TRAIN, "fraction=0.01", "imgsz=32", "val=False"]
    yolo("train", "model=yolov5n_edgevit.yaml", "data=digits.yaml", *arguments, cwd=tmp_path, **settings)
    assert (tmp_path / "datasets" / "digits" / "annotations" / "instances_val.json").is_file()
    assert (tmp_path / "runs" / "train" / "weights" / "last.pt").is_file()


def test_microscope_images_train_validate_and_export(yolo: Yolo, bccd: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bccd"  # Ultralytics writes label caches beside the labels
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (copy / kind / split).mkdir(parents=True)
            for file in sorted((bccd.parent / kind / split).iterdir())[:16]:
                (copy / kind / split / file.name).symlink_to(file)
    shutil.copy(bccd, copy / "bccd.yaml")
    out = yolo("train", "model=yolov5n_edgevit.yaml", "data=bccd/bccd.yaml", *TRAIN, cwd=tmp_path)
    assert "1 epochs completed" in out
    yolo("val", "model=runs/train/weights/best.pt", "data=bccd/bccd.yaml", "imgsz=64", "workers=0", cwd=tmp_path)
    yolo("export", "model=runs/train/weights/best.pt", "format=torchscript", "imgsz=64", cwd=tmp_path)
    assert (tmp_path / "runs" / "train" / "weights" / "best.torchscript").is_file()


def test_a_recipe_by_name_leaves_only_the_data_to_be_found(yolo: Yolo, tmp_path: Path) -> None:
    arguments = ["cfg=repvit_few_images.yaml", "model=yolo11n_repvit.yaml", "data=missing.yaml"]
    out = yolo("train", *arguments, cwd=tmp_path, fails=True)
    assert "'missing.yaml' does not exist" in out
    assert "Overriding" in out


def test_a_recipe_by_name_trains(yolo: Yolo, folder: Path) -> None:
    settings = ["model=yolov5n_edgevit.yaml", "data=data.yaml", *TRAIN]
    yolo("train", "cfg=edgevit_few_images.yaml", *settings, cwd=folder, name="by", started=True)
    assert (folder / "runs" / "by" / "weights" / "last.pt").is_file()


def test_a_mistake_in_a_yaml_is_one_sentence(yolo: Yolo, tmp_path: Path, repository: Path) -> None:
    text = (repository / "cfg" / "yolov5_edgevit.yaml").read_text().replace("n: xxs", "n: xxxs")
    (tmp_path / "mine.yaml").write_text(text)
    out = yolo("train", "model=mine.yaml", "data=digits.yaml", cwd=tmp_path, fails=True)
    lines = [line for line in out.splitlines() if "xxxs" in line]
    assert "Traceback" not in out
    assert len(lines) == 1
    assert lines[0].startswith("yolo_lightbackbones: mine.yaml, row 0 ")
    (tmp_path / "mine.yaml").write_text(text.replace("n: xxxs", "n: xxs").replace("Detect", "Detekt"))
    assert "Traceback" in yolo("train", "model=mine.yaml", "data=digits.yaml", cwd=tmp_path, fails=True)

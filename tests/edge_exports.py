"""Exported models and pictures for `lightbackbones_edge`, and its command in a process without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from places import EDGE

IMGSZ = (96, 128)  # height, width: unequal, so that mixing them up shows
# Height and width of pictures: enlarged and reduced, borders at the sides and above, even and odd ones.
PICTURES = [(96, 128), (320, 320), (62, 203), (333, 100), (480, 641), (40, 50)]
# ncnn's threads wait for one another at full speed; on a machine with other work that takes seconds for each picture.
PATIENT = {"OMP_WAIT_POLICY": "passive"}


def detector(architecture: str) -> Any:
    """A `YOLO` with random weights whose many boxes depend on the picture."""
    import torch
    from ultralytics import YOLO

    torch.manual_seed(0)
    model = YOLO(architecture, task="detect")
    for name, branch in model.model.model[-1].named_children():
        for level in (
            branch if name.endswith(("cv2", "cv3")) else ()
        ):  # boxes and classes; end-to-end heads have two each
            torch.nn.init.normal_(level[-1].weight, std=0.3)
            torch.nn.init.constant_(level[-1].bias, -5.0 if name.endswith("cv3") else 2.0)
    # Fresh batch norms let the signal fade away on its way down, and with it every trace of the picture: let them
    # normalise one batch of pictures, and keep its statistics.
    for module in model.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        coarse = torch.rand(16, 3, 6, 8)
        model.model.train()(torch.nn.functional.interpolate(coarse, IMGSZ, mode="bicubic").clamp(0, 1))
    model.model.eval().names = {i: f"kind {i}, a 'quoted' näme" for i in range(80)}
    return model


def export(architecture: str, folder: Path, **options: object) -> Path:
    """An ONNX file of `detector`, and its `model.pt`."""
    from ultralytics import YOLO

    detector(architecture).save(folder / "model.pt")
    return Path(YOLO(folder / "model.pt").export(format="onnx", imgsz=IMGSZ, **options))


def write_pictures(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for height, width in PICTURES:
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
        picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{height}x{width}.png"), picture)
    return folder


def run_without_torch(*args: object) -> str:
    """Run the command in a process that cannot import the libraries of training, and return its output."""
    unimportable = dict.fromkeys(("torch", "torchvision", "ultralytics", "onnx", "yaml", "yolo_lightbackbones"))
    code = f"import sys; sys.path.insert(0, {str(EDGE)!r}); sys.modules.update({unimportable})"
    code += "; from lightbackbones_edge.__main__ import main; main()"
    command = [sys.executable, "-c", code, *map(str, args)]
    # As bytes first: runtimes greet in whatever encoding they like.
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", **PATIENT}
    run = subprocess.run(command, capture_output=True, timeout=60, check=False, env=environment)
    assert run.returncode == 0, run.stderr.decode(errors="replace")
    return run.stdout.decode()

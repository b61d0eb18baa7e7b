"""Runs an exported file beside PyTorch: on images, on a data set, and against the clock.

`lightbackbones export` accepts or refuses its file by this, and `benchmarks/exports.py` makes its tables with it.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from yolo_lightbackbones.measure import timing
from yolo_lightbackbones.plugin import formats

Precision = Literal["float", "half", "int8"]

FLOOR = 0.1
"""Boxes with no score above this are not compared: `yolo predict` shows boxes from 0.25 on."""

IMAGES = 16
"""Most images on which the boxes are compared."""

LEAST_MAP = 0.01
"""A data set on which PyTorch itself has a lower mAP50-95 cannot show what an export costs."""


@dataclass(frozen=True)
class Limits:
    """What an export may change.

    Args:
        map: mAP50-95, absolute.
        box: a score, or the overlap of a box with its counterpart, both 0..1.
    """

    map: float
    box: float


LIMITS: dict[Precision, Limits] = {
    "float": Limits(map=0.001, box=0.01),
    "half": Limits(map=0.003, box=0.1),
    "int8": Limits(map=0.015, box=0.2),
}
"""The default limits of `lightbackbones export`, and those of the tables in docs/exports.md."""

_BY_APPLE = {"coreml", "coreai"}


def runs_elsewhere(format: str) -> str | None:
    """Why the files of a format cannot run on this computer; None if they can, with the right packages."""
    row = formats.find(format)
    if not row.bound or (sys.platform == "darwin" and format in _BY_APPLE):
        return None
    return f"{row.title} files run only on {row.on}"


def precision_of(format: str, quantize: int | str | None) -> Precision:
    """The precision of an export: of its weights, and for OpenVINO that of its arithmetic as well.

    On CPUs that have bfloat16, OpenVINO computes float files in it when Ultralytics runs them.
    """
    if quantize in (8, "w8a16", "w8a32"):
        return "int8"
    if quantize == 16 or (format == "openvino" and _openvino_halves()):
        return "half"
    return "float"


def _openvino_halves() -> bool:
    try:
        core = importlib.import_module("openvino").Core()
        return "f32" not in str(core.get_property("CPU", "INFERENCE_PRECISION_HINT"))
    except (ImportError, RuntimeError):  # not installed, or no CPU plugin
        return False


# --- images -----------------------------------------------------------------------------------------------------------


def pictures(places: Iterable[Path]) -> list[Path]:
    """All images in folders and their subfolders, in lists (*.txt, as in data YAMLs), or given as files; sorted."""
    from ultralytics.data.utils import IMG_FORMATS

    found: set[Path] = set()
    for place in places:
        if place.is_dir():
            candidates = list(place.rglob("*"))
        elif place.suffix == ".txt":
            lines = (line.strip() for line in place.read_text(encoding="utf-8", errors="replace").splitlines())
            candidates = [place.parent / line for line in lines if line]
        else:
            candidates = [place]
        found |= {path for path in candidates if path.suffix[1:].lower() in IMG_FORMATS and path.is_file()}
    return sorted(found)


def spread(paths: Sequence[Path], most: int = IMAGES) -> list[Path]:
    """At most `most` of the paths, evenly over all of them."""
    step = max(len(paths) / most, 1)
    return [paths[int(number * step)] for number in range(min(len(paths), most))]


def letterboxed(path: Path, size: tuple[int, int], channels: int = 3) -> Any:
    """An image as Ultralytics gives it to an exported file: (1, C, H, W), RGB, 0..1.

    Raises:
        ValueError: if it cannot be read, or has another number of channels.
    """
    import cv2
    import torch
    from ultralytics.data.augment import LetterBox
    from ultralytics.utils.patches import imread

    image = imread(str(path), cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path} cannot be read as an image.")
    image = image[..., None] if image.ndim == 2 else image
    if image.shape[2] != channels:
        raise ValueError(f"{path} has {image.shape[2]} channels, and the model takes {channels}.")
    image = LetterBox(size, auto=False)(image=image)
    image = image[..., None] if image.ndim == 2 else image
    image = image[..., ::-1] if channels == 3 else image
    # Contiguous, since some runtimes are handed the address of the values.
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].contiguous().float() / 255


# --- running ----------------------------------------------------------------------------------------------------------


def backend(file: Path, device: str = "cpu") -> Callable[[Any], Any]:
    """An exported file as Ultralytics runs it: (1, C, H, W) in, the output of the head out."""
    import torch
    from ultralytics.nn.autobackend import AutoBackend

    place = torch.device(device)
    run = AutoBackend(str(file), device=place)

    def forward(images: Any) -> Any:
        with torch.inference_mode():
            return _on_cpu(run(images.to(place)))

    return forward


def _on_cpu(output: Any) -> Any:
    import torch

    if isinstance(output, tuple | list):
        return [_on_cpu(part) for part in output]
    return torch.as_tensor(output).cpu().clone()  # some runtimes use the memory of an output again


def latencies(
    file: Callable[[Any], Any],
    folded: Callable[[Any], Any],
    images: Any,
    rounds: int,
    progress: Callable[[], object] = lambda: None,
) -> tuple[timing.Latency, float]:
    """The latency of a file, and its ratio to that of the folded PyTorch model, in turns."""
    import torch

    with torch.inference_mode():
        runs = [lambda: file(images), lambda: folded(images)]
        own, reference = timing.interleaved(runs, rounds, warm_up=2, progress=progress)
    return own, timing.ratio(own, reference)


def megabytes(path: Path) -> float:
    """Size of a file, or of all files in a folder, in units of 10^6 bytes."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def opened(file: Path, like: Any) -> Any:
    """An exported file as a model of Ultralytics, of the same kind as the one it was made from: for `validate`."""
    from ultralytics import RTDETR, YOLO

    return RTDETR(str(file)) if isinstance(like, RTDETR) else YOLO(file, task=like.task)


def validate(model: Any, data: str, size: int, *, task: str = "detect", device: str = "cpu") -> float:
    """mAP50-95 on the val split of a data set, of masks or keypoints if that is the task.

    Args:
        model: a model of Ultralytics, or a module that gives what a detection head gives.
        data: the data YAML.
        size: height and width of the images, which are square.
        task: Ultralytics' name of the task.
        device: Ultralytics' `device=`.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "data": data,
            "imgsz": size,
            "batch": 1,
            "rect": False,
            "plots": False,
            "verbose": False,
            "workers": 0,
            "project": folder,
            "device": device,
        }
        if hasattr(model, "val"):
            metrics = model.val(**options)
        else:
            from ultralytics.models.yolo.detect import DetectionValidator

            validator = DetectionValidator(args={**options, "mode": "val", "task": task})
            validator(model=model)
            metrics = validator.metrics
    part = {"segment": "seg", "pose": "pose"}.get(task, "box")
    return float(getattr(metrics, part).map)

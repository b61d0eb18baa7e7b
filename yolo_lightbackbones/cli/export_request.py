"""Reads the options of `lightbackbones export`, and refuses what would fail later, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from yolo_lightbackbones.cli import targets, untrusted
from yolo_lightbackbones.cli.common import UserError, image_size
from yolo_lightbackbones.messages import did_you_mean, listed, quoted
from yolo_lightbackbones.plugin import detections, devices, proof

QUANTIZE: dict[str, int | str] = {"32": 32, "16": 16, "8": 8, "w8a16": "w8a16", "w8a32": "w8a32"}
"""What a user writes -> Ultralytics' `quantize=`."""

INTEGER_ACTIVATIONS = {("litert", 8), ("litert", "w8a16"), ("rknn", 8)}
"""Exports whose outputs are integers: decoded boxes and scores share one scale there."""


@dataclass(frozen=True)
class Export:
    """What to export, and how.

    Args:
        format: Ultralytics' name of the format.
        quantize: Ultralytics' `quantize=`; None for the default of the format.
        chip: Ultralytics' `name=`; empty if the format takes none, or for its default.
        raw_head: whether the file gets the raw maps of the detection head.
        device: name of the device in the table; None if none was given.
    """

    format: str
    quantize: int | str | None
    chip: str
    raw_head: bool
    device: str | None

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of Ultralytics' `export`, without data and image size."""
        optional = {"quantize": self.quantize, "name": self.chip}
        return {"format": self.format, **{key: value for key, value in optional.items() if value}}

    @property
    def precision(self) -> proof.Precision:
        if self.quantize is None and 32 not in (allowed := allowed_precisions(self.format)):
            return "half" if 16 in allowed else "int8"
        return proof.precision_of(self.format, self.quantize)

    @property
    def calibrates(self) -> bool:
        """Whether the export looks at images to find the ranges of activations."""
        return self.precision == "int8" and self.quantize != "w8a32" and "data" in _arguments_of(self.format)

    @property
    def needs_hint(self) -> bool:
        """Whether a raw head would keep accuracy that the decoded output loses."""
        return (self.format, self.quantize) in INTEGER_ACTIVATIONS and not self.raw_head


def read(format: str | None, quantize: str | None, raw_head: bool | None, device: str | None) -> Export:
    """Combine the options with the row of a device; options that are given win.

    Raises:
        UserError, ValueError: the message says what was given, what is allowed and what to do.
    """
    row = None if device is None else devices.find(device)
    if format is None and row is None:
        raise UserError(
            f"Neither a format nor a device is given. Write --format with one of {listed(_formats(), 40)}, or --for "
            f"with one of {listed(devices.DEVICES)}."
        )
    name = (format if format is not None else row.format if row else "").strip().lower()
    if name not in _formats():
        raise UserError(
            f"The format is {quoted(name)}; it must be one of {listed(_formats(), 40)}.{did_you_mean(name, _formats())}"
        )
    if row is not None and row.format != name:
        raise UserError(f"--for {row.name} means format {row.format}, and --format is {name}. Leave one of them out.")
    export = Export(
        format=name,
        quantize=row.quantize if quantize is None and row else _quantize(quantize, name),
        chip=row.chip if row else "",
        raw_head=raw_head if raw_head is not None else bool(row and row.raw_head),
        device=row.name if row else None,
    )
    if export.format == "engine":
        _check_gpu()
    return export


def _formats() -> list[str]:
    from ultralytics.engine.exporter import export_formats

    return [name for name in export_formats()["Argument"] if name.isidentifier()]  # PyTorch's own is called "-"


def _arguments_of(format: str) -> Sequence[str]:
    from ultralytics.engine.exporter import export_formats

    table = export_formats()
    found: Sequence[str] = dict(zip(table["Argument"], table["Arguments"], strict=True))[format]
    return found


def allowed_precisions(format: str) -> list[int | str]:
    """The values of `quantize=` that Ultralytics' own check of a format accepts.

    Raises:
        UserError: if this Ultralytics has no argument `quantize`.
    """
    from ultralytics.cfg import DEFAULT_CFG_DICT
    from ultralytics.engine.exporter import validate_args

    if "quantize" not in DEFAULT_CFG_DICT:
        raise UserError("This Ultralytics has no argument `quantize`, which --quantize means. Install a newer one.")
    allowed = []
    for value in QUANTIZE.values():
        try:
            validate_args(format, SimpleNamespace(quantize=value), list(_arguments_of(format)))
        except AssertionError:
            continue
        allowed.append(value)
    return allowed


def _quantize(text: str | None, format: str) -> int | str | None:
    if text is None:
        return None
    value, allowed = QUANTIZE.get(text.strip().lower()), allowed_precisions(format)
    if value is None or value not in allowed:
        raise UserError(f"--quantize is {quoted(text)}; format {format} can be {listed(allowed) or 'none'}.")
    return value


def _check_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            "TensorRT engines (format engine) are built on the NVIDIA GPU that runs them, and PyTorch sees none here. "
            "Export on that machine, or choose another format."
        )


def tolerance(text: str | None) -> float | None:
    """Read `--tolerance`, a number from 0 to 1."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(f"--tolerance is {quoted(text)}; it must be a number from 0 to 1, such as 0.01.")
    return value


def checkpoint(model: str) -> targets.Target:
    """Read the model to export.

    Raises:
        UserError: if it is not a checkpoint of Ultralytics that can be read safely.
    """
    path = Path(model)
    if path.suffix != ".pt":
        raise UserError(
            f"The model is {model}; only a checkpoint, *.pt, can be exported: the best.pt of a training"
            f"{', or what `lightbackbones convert` writes' if path.suffix in {'.yaml', '.yml'} else ''}."
        )
    if not path.is_file():
        raise UserError(f"There is no checkpoint {model}; nothing is downloaded here. Give the best.pt of a training.")
    target = targets.find(model, None, (640, 640))
    if target.kind != "checkpoint":
        raise UserError(
            f"{model} holds weights without a model of Ultralytics. Put them into one first: lightbackbones convert"
        )
    return target


def size_of(text: str | None, target: targets.Target) -> tuple[int, int]:
    """Height and width of the image: those given, or the size that the model was trained on.

    Raises:
        UserError: if the model cannot take images of that size.
    """
    trained = getattr(target.module, "args", None)
    side = trained.get("imgsz", 640) if isinstance(trained, dict) else 640
    sides = side if isinstance(side, list | tuple) else [side]
    size = image_size(text if text is not None else ",".join(map(str, sides)))
    target.check(size)
    return size


def is_quantised(net: Any) -> bool:
    """Whether a model comes from quantisation-aware training: its ranges are in the checkpoint."""
    from ultralytics.utils import torch_utils

    is_qat = getattr(torch_utils, "is_qat", None)
    return bool(is_qat and is_qat(net))


# --- images and data --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataSet:
    """A data set that is on this computer.

    Args:
        file: the data YAML.
        images: the images of the val split.
    """

    file: Path
    images: list[Path]


def data_set(text: str, classes: int) -> DataSet:
    """Find a data set without downloading it or running its script.

    Raises:
        UserError: if there is no such data set here, or it has other classes than the model.
    """
    from ultralytics.data.utils import check_det_dataset
    from ultralytics.utils.checks import check_file

    if "://" in text or text.startswith("ul:") or Path(text).suffix not in {".yaml", ".yml"}:
        raise UserError(f"The data set is {quoted(text)}; give its data YAML, *.yaml. Nothing is downloaded here.")
    try:
        file = Path(check_file(text))
    except FileNotFoundError as error:
        raise UserError(
            f"There is no data YAML {text}. Give a path, or the name of one that Ultralytics finds."
        ) from error
    untrusted.check_file(file)
    try:
        found = check_det_dataset(str(file), autodownload=False)
    except FileNotFoundError as error:
        raise UserError(
            f"The images of {text} are not on this computer, and nothing is downloaded here: "
            f"{untrusted.shortened(error)} Let `yolo train` or `yolo val` fetch them first."
        ) from error
    except Exception as error:  # of many kinds, for everything that such a file can lack
        raise UserError(f"{text} cannot be used as a data set: {untrusted.shortened(error)}") from error
    if found["nc"] != classes:
        raise UserError(
            f"{text} has {found['nc']} classes, and the model has {classes}. Give the data set that it was trained on."
        )
    val = found.get("val")
    images = proof.pictures(Path(place) for place in (val if isinstance(val, list) else [val]) if place)
    if not images:
        raise UserError(f"The val split of {text} has no images, so the file could not be proven. Add some.")
    return DataSet(file, images)


def images(folder: Path | None, data: DataSet | None, what: str) -> list[Path]:
    """The images on which the file, `what` in messages, is compared with PyTorch.

    Raises:
        UserError: if there are none.
    """
    if folder is None:
        if data is None:
            raise UserError(
                f"{what} is compared with PyTorch on images. Give some with objects that the model knows: --images "
                "FOLDER, or the data set: --data data.yaml."
            )
        return proof.spread(data.images)
    if not folder.exists():
        raise UserError(f"There is no folder or file {folder}.")
    found = proof.pictures([folder])
    if not found:
        raise UserError(f"{folder} has no image that Ultralytics reads, such as *.jpg or *.png.")
    return proof.spread(found)


def head_of(target: targets.Target, size: tuple[int, int]) -> detections.Head | None:
    """What the outputs of the model look like; None if they are not boxes."""
    net = target.module
    task = getattr(net, "task", "detect")
    if task not in detections.TASKS:
        return None
    head = net.model[-1]
    points = getattr(head, "kpt_shape", None)
    return detections.Head(
        task=task,
        classes=int(head.nc),
        size=size,
        points=(int(points[0]), int(points[1])) if points else (0, 0),
        normalised=type(head).__name__.startswith("RTDETR"),
    )

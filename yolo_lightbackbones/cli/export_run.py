"""The work of `lightbackbones export`: the export in a hidden folder, and the proof of its file."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_lightbackbones.cli import models, untrusted
from yolo_lightbackbones.cli.common import UserError, messages, progress

if TYPE_CHECKING:  # they import torch, which `lightbackbones --help` does without
    from yolo_lightbackbones.cli.export_request import DataSet, Export
    from yolo_lightbackbones.cli.targets import Target
    from yolo_lightbackbones.plugin.detections import Head

ROUNDS = 15
"""Rounds of the latency, in each of which the file and PyTorch run once."""


@dataclass(frozen=True)
class Job:
    """What to export, from where and to where, and how to prove it.

    Args:
        model: the checkpoint.
        folder: where the file goes.
        target: the model in the checkpoint, unfused, in float32.
        request: format and options.
        size: height and width of the image.
        data: the data set; None if none was given.
        head: what the outputs are; None if they are not boxes.
        images: the images to compare boxes on.
        tolerance: the given one; None for the default.
        unproven: why the file is not proven; None if it is.
    """

    model: Path
    folder: Path
    target: Target
    request: Export
    size: tuple[int, int]
    data: DataSet | None
    head: Head | None
    images: list[Path]
    tolerance: float | None
    unproven: str | None


# --- exporting --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Ultralytics and converters from printing, and from installing packages; errors come as exceptions."""
    with models.quiet_ultralytics(), warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        from ultralytics.utils import checks

        warnings.simplefilter("ignore")
        disabled, installing = logging.root.manager.disable, getattr(checks, "AUTOINSTALL", None)
        logging.disable()
        checks.AUTOINSTALL = False
        sys.stdout.flush()
        stdout = os.dup(1)  # converters in C++ print to the descriptor
        os.dup2(nowhere.fileno(), 1)
        try:
            with contextlib.redirect_stdout(nowhere):
                yield
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
            checks.AUTOINSTALL = installing
            logging.disable(disabled)


def export(job: Job) -> dict[str, Any]:
    """Export in a hidden folder, prove the file there, and move it to its place; the results as plain data."""
    from yolo_lightbackbones import writing
    from yolo_lightbackbones.checkpoints import modules
    from yolo_lightbackbones.plugin.staging import Staging

    expected = None if job.unproven else _expected(job)
    staging = Staging(job.folder / job.model.name, job.request.format)
    with writing.naming(job.folder), staging.step(last=True):
        place = staging.file.parent / job.model.name
        modules.copy_checked(job.model, place)
        detector = _detector(place)
        with messages().status(f"Exporting to {job.request.format}"):
            file = _exported(detector, job)
        document = _facts(job, file)
        if expected is not None:
            document |= _prove(job, place, file, expected)
        place.unlink()
        _drop_others(file, staging.file.parent)
    return document


def _drop_others(file: Path, folder: Path) -> None:
    """Remove what converters leave beside the file, such as the ONNX file that it was made from: it was not proven."""
    kept = folder / file.relative_to(folder).parts[0]
    for other in folder.iterdir():
        if other == kept:
            continue
        if other.is_dir() and not other.is_symlink():
            shutil.rmtree(other)
        else:
            other.unlink()


def _detector(checkpoint: Path) -> Any:
    from ultralytics import YOLO

    return YOLO(checkpoint)


def _exported(detector: Any, job: Job) -> Path:
    from yolo_lightbackbones.plugin import raw_heads
    from yolo_lightbackbones.writing import CANNOT_WRITE

    data = {"data": str(job.data.file)} if job.request.calibrates and job.data else {}
    asked = raw_heads.asked() if job.request.raw_head else contextlib.nullcontext()
    try:
        with asked:
            return Path(str(detector.export(imgsz=list(job.size), **job.request.arguments, **data)))
    except (UserError, ModuleNotFoundError, ValueError):
        raise
    except Exception as error:  # of any kind, from Ultralytics or a converter
        ours = type(error).__module__.startswith("yolo_lightbackbones.")  # a sentence already
        if ours or (isinstance(error, OSError) and error.errno in CANNOT_WRITE):
            raise
        raise UserError(
            f"Ultralytics could not export {job.model} as {job.request.format}: {untrusted.shortened(error)} What its "
            f"converter prints shows: yolo export model={job.model} format={job.request.format}"
        ) from error


def _facts(job: Job, file: Path) -> dict[str, Any]:
    from yolo_lightbackbones.plugin import proof

    request = job.request
    return {
        "file": str(job.folder / file.name),
        "format": request.format,
        "quantize": request.quantize,
        "device": request.device,
        "raw_head": request.raw_head,
        "imgsz": list(job.size),
        "megabytes": round(proof.megabytes(file), 3),
        "proven": job.unproven is None,
        "not_proven": job.unproven,
        "hint": "Raw heads keep more accuracy in this format: add --raw-head." if request.needs_hint else None,
    }


# --- proving ----------------------------------------------------------------------------------------------------------


def _expected(job: Job) -> list[tuple[Any, Any]]:
    """The images, and what PyTorch finds on them; refused if that is nothing, since nothing could be compared then."""
    import torch

    from yolo_lightbackbones.plugin import detections, proof

    assert job.head is not None, "what is proven has boxes"
    pairs = []
    with progress("PyTorch", len(job.images)) as advance, torch.inference_mode():
        for path in job.images:
            image = proof.letterboxed(path, job.size, job.target.channels)
            with _explained(f"{job.model} does not run on an image of {job.size[0]} x {job.size[1]}"):
                pairs.append((image, detections.read(job.target.module(image), job.head)))
            advance()
    if not any(len(found.visible(proof.FLOOR)) for _, found in pairs):
        raise UserError(
            f"PyTorch finds no box with a score above {proof.FLOOR} on {len(pairs)} images, so nothing could be "
            "compared. Give images with objects that the model knows: --images FOLDER."
        )
    return pairs


def _prove(job: Job, checkpoint: Path, file: Path, expected: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Run the file beside PyTorch.

    Raises:
        UserError: if it differs by more than the tolerance; the message has the figures.
    """
    from yolo_lightbackbones.plugin import proof

    device = "cuda:0" if job.request.format == "engine" else "cpu"
    with _explained(f"The {job.request.format} file does not run here, and was not kept"):
        run = proof.backend(file, device)
        worst = _compare(job, run, expected)
    folded = copy.deepcopy(job.target.module).fuse(verbose=False).eval()
    with progress("Measuring", 2 * (ROUNDS + 2)) as advance:
        latency, ratio = proof.latencies(run, folded, expected[0][0], ROUNDS, advance)
    document: dict[str, Any] = {
        "images": len(expected),
        "boxes": worst.compared,
        "box_px": worst.box_px,
        "score": worst.score,
        "overlap": worst.overlap,
        "latency_ms": round(latency.median, 2),
        "ratio": round(ratio, 3),
        "map50_95": None,
    }
    # Ultralytics validates a checkpoint on square images only, and a file on those of its own size.
    if job.data is not None and job.head is not None and job.size[0] == job.size[1]:
        maps = {}
        like = _detector(checkpoint)
        for name, one in (("pytorch", like), ("file", proof.opened(file, like))):
            failed = f"The {job.request.format} file was not kept, because {job.data.file} could not be validated on"
            with messages().status(f"Validating {name}"), _explained(failed):
                maps[name] = proof.validate(
                    one,
                    str(job.data.file),
                    job.size[0],
                    task=job.head.task,
                    device="0" if name == "file" and device != "cpu" else "cpu",
                )
        document["map50_95"] = maps
    return document | _judge(job, document)


@contextlib.contextmanager
def _explained(failed: str) -> Iterator[None]:
    """Turn errors of every kind, from runtimes and Ultralytics, into one that begins with `failed`."""
    try:
        yield
    except (UserError, ModuleNotFoundError):
        raise
    except Exception as error:
        raise UserError(f"{failed}: {untrusted.shortened(error)}") from error


def _compare(job: Job, run: Any, expected: list[tuple[Any, Any]]) -> Any:
    import torch

    from yolo_lightbackbones.plugin import detections, proof

    assert job.head is not None, "what is proven has boxes"
    net, worst = job.target.module, detections.Difference()
    with progress("Comparing", len(expected)) as advance, torch.inference_mode():
        for image, by_default in expected:
            output, found = run(image), by_default
            try:
                seen = detections.read(output, job.head)
                if seen.by_place != found.by_place and hasattr(type(net), "end2end"):
                    net.end2end = not seen.by_place  # of two heads, the file has the other one
                    found = detections.read(net(image), job.head)
            except ValueError as error:
                raise UserError(f"The {job.request.format} file is wrong, and was not kept: {error}.") from error
            worst = worst.and_(detections.difference(seen, found, proof.FLOOR))
            advance()
    return worst


def _judge(job: Job, document: dict[str, Any]) -> dict[str, Any]:
    """The tolerance that counts.

    Raises:
        UserError: if it is missed.
    """
    from yolo_lightbackbones.plugin import proof

    limits, maps = proof.LIMITS[job.request.precision], document["map50_95"]
    if maps is not None and maps["pytorch"] >= proof.LEAST_MAP:
        kind, limit = "mAP50-95", limits.map
        change = abs(maps["file"] - maps["pytorch"])
        said = f"it changes mAP50-95 from {maps['pytorch']:.4f} to {maps['file']:.4f}, by {change:.4f}"
    else:
        kind, limit = "boxes", limits.box
        change = max(document["score"], 1 - document["overlap"])
        said = (
            f"on {document['images']} images a score differs by {document['score']:.3g}, and a box by "
            f"{document['box_px']:.3g} px (IoU {document['overlap']:.3f})"
        )
    limit = limit if job.tolerance is None else job.tolerance
    if round(change, 6) > limit:
        raise UserError(
            f"The {job.request.format} file differs from PyTorch and was not kept: {said}; the tolerance is {limit:g}."
        )
    return {"tolerance": {"of": kind, "limit": limit}}

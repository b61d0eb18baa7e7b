"""`lightbackbones export`: lets Ultralytics export a checkpoint, and keeps the file only if it finds the same boxes."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from yolo_lightbackbones.cli import models, untrusted
from yolo_lightbackbones.cli.common import (
    IMAGE_SIZE_HELP,
    UserError,
    errors_for_users,
    messages,
    print_json,
    progress,
)

ROUNDS = 15
"""Rounds of the latency, in each of which the file and PyTorch run once."""


def export(
    model: Annotated[str, typer.Argument(help="The checkpoint to export, *.pt: the best.pt of a training.")] = "",
    *,
    format: Annotated[str | None, typer.Option("--format", help="Ultralytics' name of a format: onnx.")] = None,
    device: Annotated[
        str | None, typer.Option("--for", help="A device of the table (--list), instead of format and options.")
    ] = None,
    quantize: Annotated[
        str | None, typer.Option("--quantize", help="16, 8, w8a16 or w8a32, as far as the format can; 8 takes --data.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Data YAML: calibrates INT8, and mAP is measured on its val split.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Images to compare boxes on; else the val split."),
    ] = None,
    imgsz: Annotated[
        str | None, typer.Option("--imgsz", help=f"{IMAGE_SIZE_HELP} By default, the size of the training.")
    ] = None,
    raw_head: Annotated[
        bool | None,
        typer.Option("--raw-head/--no-raw-head", help="Write the raw maps of the detection head, decoded afterwards."),
    ] = None,
    tolerance: Annotated[
        str | None,
        typer.Option(
            "--tolerance",
            help="With --data, the largest change of mAP50-95 (default: 0.001 for float, 0.003 for 16 bit, 0.015 for "
            "8 bit). Without, the largest change of a score, and of 1 - IoU of a box with its counterpart "
            "(default: 0.01, 0.1 and 0.2).",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the file; by default, that of the checkpoint.")
    ] = None,
    list_devices: Annotated[bool, typer.Option("--list", help="Print the table of devices and leave.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")
    ] = False,
) -> None:
    """Export a checkpoint with Ultralytics' exporter, and prove the file: it must find what PyTorch finds.

    The file is run beside the unfused PyTorch model in float32. If it differs by more than the tolerance, the exit code
    is 1, and no file is left: an older one of that name stays. Formats that cannot run here are converted and reported
    as not proven.
    """
    with errors_for_users():
        if list_devices:
            _list_devices(as_json)
            return
        if not model:
            raise UserError("No checkpoint is given. Write: lightbackbones export best.pt --format onnx --images ...")
        with _quiet():
            job = _read(
                model,
                format=format,
                quantize=quantize,
                raw_head=raw_head,
                device=device,
                data=data,
                images=images,
                imgsz=imgsz,
                tolerance=tolerance,
                output=output,
            )
            document = _export(job)
    if as_json:
        print_json(document)
    else:
        _print(document)


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    model: Path
    folder: Path
    target: Any
    request: Any
    size: tuple[int, int]
    data: Any
    head: Any
    images: list[Path]
    tolerance: float | None
    unproven: str | None


def _read(
    model: str,
    *,
    format: str | None,
    quantize: str | None,
    raw_head: bool | None,
    device: str | None,
    data: str | None,
    images: Path | None,
    imgsz: str | None,
    tolerance: str | None,
    output: Path | None,
) -> _Job:
    """Refuse, before any work is done, what would fail after it."""
    from yolo_lightbackbones import plugin
    from yolo_lightbackbones.cli import export_request
    from yolo_lightbackbones.plugin import proof

    with messages().status("Reading"):
        plugin.register()  # where autoload is off
        limit = export_request.tolerance(tolerance)
        request = export_request.read(format, quantize, raw_head, device)
        if request.raw_head:
            _raw_heads()
        folder = Path(model).parent if output is None else output
        if output is not None and not output.is_dir():
            raise UserError(f"There is no folder {output} to write to. Create it first.")
        target = export_request.checkpoint(model)
        size = export_request.size_of(imgsz, target)
        head = export_request.head_of(target, size)
        found = None
        if data is not None:
            classes = head.classes if head else len(target.module.names)
            found = export_request.data_set(data, classes)
        elif request.calibrates and not export_request.is_quantised(target.module):
            raise UserError(
                f"{request.format} with integer activations is calibrated on images. Give the data set that the model "
                "was trained on: --data data.yaml."
            )
        unproven = proof.runs_elsewhere(request.format)
        if head is None and unproven is None:
            unproven = f"this command compares boxes, and the task of the model is {target.module.task}"
        wanted = [] if unproven and images is None else export_request.images(images, found, f"A {request.format} file")
    return _Job(Path(model), folder, target, request, size, found, head, wanted, limit, unproven)


def _raw_heads() -> Any:
    try:
        from yolo_lightbackbones.plugin import raw_heads
    except ImportError as error:
        raise UserError("Raw heads are not in this version of yolo_lightbackbones; leave --raw-head out.") from error
    return raw_heads


# --- exporting --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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


def _export(job: _Job) -> dict[str, Any]:
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
    return document


def _detector(checkpoint: Path) -> Any:
    from ultralytics import YOLO

    return YOLO(checkpoint)


def _exported(detector: Any, job: _Job) -> Path:
    from yolo_lightbackbones.writing import CANNOT_WRITE

    data = {"data": str(job.data.file)} if job.request.calibrates and job.data else {}
    asked = _raw_heads().asked() if job.request.raw_head else contextlib.nullcontext()
    try:
        with asked:
            return Path(str(detector.export(imgsz=list(job.size), **job.request.arguments, **data)))
    except (UserError, ModuleNotFoundError, ValueError):
        raise
    except Exception as error:  # of any kind, from Ultralytics or a converter
        if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
            raise
        raise UserError(
            f"Ultralytics could not export {job.model} as {job.request.format}: {untrusted.shortened(error)} What its "
            f"converter prints shows: yolo export model={job.model} format={job.request.format}"
        ) from error


def _facts(job: _Job, file: Path) -> dict[str, Any]:
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


def _expected(job: _Job) -> list[tuple[Any, Any]]:
    """The images, and what PyTorch finds on them; refused if that is nothing, since nothing could be compared then."""
    import torch

    from yolo_lightbackbones.plugin import detections, proof

    pairs = []
    with progress("PyTorch", len(job.images)) as advance, torch.inference_mode():
        for path in job.images:
            image = proof.letterboxed(path, job.size, job.target.channels)
            pairs.append((image, detections.read(job.target.module(image), job.head)))
            advance()
    if not any(len(found.visible(proof.FLOOR)) for _, found in pairs):
        raise UserError(
            f"PyTorch finds no box with a score above {proof.FLOOR} on {len(pairs)} images, so nothing could be "
            "compared. Give images with objects that the model knows: --images FOLDER."
        )
    return pairs


def _prove(job: _Job, checkpoint: Path, file: Path, expected: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Run the file beside PyTorch.

    Raises:
        UserError: if it differs by more than the tolerance; the message has the figures.
    """
    from yolo_lightbackbones.plugin import proof

    device = "cuda:0" if job.request.format == "engine" else "cpu"
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
    if job.data is not None:
        maps = {}
        like = _detector(checkpoint)
        for name, one in (("pytorch", like), ("file", proof.opened(file, like))):
            with messages().status(f"Validating {name}"):
                maps[name] = proof.validate(
                    one,
                    str(job.data.file),
                    job.size,
                    task=job.head.task,
                    device="0" if name == "file" and device != "cpu" else "cpu",
                )
        document["map50_95"] = maps
    return document | _judge(job, document)


def _compare(job: _Job, run: Any, expected: list[tuple[Any, Any]]) -> Any:
    import torch

    from yolo_lightbackbones.plugin import detections, proof

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


def _judge(job: _Job, document: dict[str, Any]) -> dict[str, Any]:
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


# --- output -----------------------------------------------------------------------------------------------------------


def _list_devices(as_json: bool) -> None:
    from dataclasses import asdict

    from yolo_lightbackbones.plugin import devices

    rows = list(devices.DEVICES.values())
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    table = Table("--for", "device", "format", "options", "reason")
    for row in rows:
        options = [f"quantize={row.quantize}"] * (row.quantize is not None) + ["raw head"] * row.raw_head
        options += [f"name={row.chip}"] * bool(row.chip)
        table.add_row(row.name, row.title, row.format, ", ".join(options), row.reason)
    Console(highlight=False).print(table)


def _print(document: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if document["hint"]:
        messages().print(document["hint"], markup=False)
    if document["proven"]:
        lines = [
            f"{document['images']} images, {document['boxes']} boxes: worst box {document['box_px']:.2g} px, worst "
            f"score {document['score']:.2g}, lowest IoU {document['overlap']:.4f}"
        ]
        if maps := document["map50_95"]:
            change = maps["file"] - maps["pytorch"]
            lines.append(f"mAP50-95: {maps['file']:.4f}, PyTorch {maps['pytorch']:.4f} ({change:+.4f})")
        lines.append(f"{document['latency_ms']:.1f} ms an image, {document['ratio']:.2f} times folded PyTorch's")
        tolerance = document["tolerance"]
        lines.append(f"Proven: the tolerance is {tolerance['limit']:g} of {tolerance['of']}.")
    else:
        lines = [f"Not proven: {document['not_proven']}."]
    for line in lines:
        console.print(line, markup=False)
    console.print(f"Wrote {document['file']}, {document['megabytes']:.1f} MB.", markup=False)

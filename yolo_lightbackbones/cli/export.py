"""`lightbackbones export`: lets Ultralytics export a checkpoint, and keeps the file only if it finds the same boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from yolo_lightbackbones.cli import export_run
from yolo_lightbackbones.cli.common import (
    IMAGE_SIZE_HELP,
    UserError,
    errors_for_users,
    messages,
    print_json,
)


def export(
    model: Annotated[str, typer.Argument(help="The checkpoint to export, *.pt: the best.pt of a training.")] = "",
    *,
    format: Annotated[str | None, typer.Option("--format", help="Ultralytics' name of a format: onnx.")] = None,
    device: Annotated[
        str | None, typer.Option("--for", help="A device of the table (--list), instead of format and options.")
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            "--quantize", help="16, 8, w8a16, w8a32, or 32 for float, as far as the format can; 8 takes --data."
        ),
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
        with export_run.quiet():
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
            document = export_run.export(job)
    if as_json:
        print_json(document)
    else:
        _print(document)


# --- reading ----------------------------------------------------------------------------------------------------------


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
) -> export_run.Job:
    """Refuse, before any work is done, what would fail after it."""
    from yolo_lightbackbones import plugin
    from yolo_lightbackbones.cli import export_request
    from yolo_lightbackbones.plugin import proof

    with messages().status("Reading"):
        plugin.register()  # where autoload is off
        limit = export_request.tolerance(tolerance)
        request = export_request.read(format, quantize, raw_head, device)
        folder = Path(model).parent if output is None else output
        if output is not None and not output.is_dir():
            raise UserError(f"There is no folder {output} to write to. Create it first.")
        target = export_request.checkpoint(model)
        if request.quantize is None and export_request.is_quantised(target.module):
            request = replace(request, quantize=8)  # Ultralytics writes INT8, whatever it is asked for
        size = export_request.size_of(imgsz, target)
        head = export_request.head_of(target, size)
        found = None
        if data is not None:
            classes = head.classes if head else len(target.module.names)
            found = export_request.data_set(data, classes)
        elif request.calibrates and not export_request.is_quantised(target.module):
            raise UserError(
                f"INT8 for {request.format} needs images to calibrate with. Give the data set that the model was "
                "trained on: --data data.yaml."
            )
        unproven = proof.runs_elsewhere(request.format)
        if head is None and unproven is None:
            unproven = f"this command compares boxes, and the task of the model is {target.module.task}"
        wanted = (
            [] if unproven and images is None else export_request.images(images, found, f"The {request.format} file")
        )
    return export_run.Job(Path(model), folder, target, request, size, found, head, wanted, limit, unproven)


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
        lines.append(f"{document['latency_ms']:.1f} ms per image, {document['ratio']:.2f} of folded PyTorch's time")
        tolerance = document["tolerance"]
        changes = "scores and IoU change" if tolerance["of"] == "boxes" else "mAP50-95 changes"
        lines.append(f"Proven: {changes} by at most {tolerance['limit']:g}.")
    else:
        lines = [f"Not proven: {document['not_proven']}."]
    for line in lines:
        console.print(line, markup=False)
    head = ", with a raw head" if document["raw_head"] else ""
    console.print(f"Wrote {document['file']}, {document['megabytes']:.1f} MB{head}.", markup=False)

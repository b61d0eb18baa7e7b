"""The `lightbackbones` command."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from yolo_lightbackbones import __version__
from yolo_lightbackbones.cli import coco_eval, coco_prepare, compare, convert, doctor, export, info, new
from yolo_lightbackbones.cli import list as list_command

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Light backbones for Ultralytics YOLO.",
)


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    """Print the version, or go on to a command."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # escape characters that the terminal's encoding lacks, as stderr does
        sys.stdout.reconfigure(errors="backslashreplace")
    if version:
        typer.echo(f"yolo_lightbackbones {__version__}")


app.command("list")(list_command.list_backbones)
app.command()(info.info)
app.command()(compare.compare)
app.command()(new.new)
app.command()(doctor.doctor)
app.command()(convert.convert)
app.command()(export.export)
app.command()(coco_eval.coco_eval)
app.command()(coco_prepare.coco_prepare)

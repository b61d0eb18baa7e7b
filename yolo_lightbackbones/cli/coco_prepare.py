"""`lightbackbones coco-prepare`: checks a COCO folder and prepares it for Ultralytics."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from yolo_lightbackbones.cli.common import UserError, errors_for_users, messages, printable_lines, progress
from yolo_lightbackbones.messages import printable

if TYPE_CHECKING:
    from yolo_lightbackbones.coco.report import Report


def coco_prepare(
    folder: Annotated[
        Path,
        typer.Argument(
            help="The folder with annotations/instances_{train,val}2017.json and images/{train,val}2017 or "
            "{train,val}2017. One split is enough.",
        ),
    ],
    *,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave images with problems out of the lists, and go on.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", "-f", help="Replace labels and lists that differ; the old labels are kept as *.old."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")
    ] = False,
) -> None:
    """Check a COCO 2017 folder and write labels, image lists and coco.yaml for Ultralytics beside COCO's own files.

    Every image is decoded once. COCO's files are never changed. Run it again after an interruption or a download:
    finished work is verified and skipped.
    """
    with errors_for_users():
        from yolo_lightbackbones.coco.prepare import Options, prepare

        report = prepare(
            folder,
            categories=_categories(),
            convert=_convert,
            progress=progress,
            options=Options(skip_bad=skip_bad, force=force),
        )
        if as_json:
            typer.echo(json.dumps(report.as_json()))
        _tell(report, Console(stderr=as_json, highlight=False, soft_wrap=True), tables=not as_json)
    problems = _problems(report)
    if problems and not report.ok:
        advice = _advice(report, skip_bad)
        text = f"Error: {folder} has problems, and nothing was written.\n{problems}\n{advice}"
        messages().print(printable_lines(text), markup=False)
        raise typer.Exit(1)


def _categories() -> dict[int, str]:
    """COCO's categories, id -> name, in the order of the classes 0 to 79."""
    import yaml

    from yolo_lightbackbones.cli.models import quiet_ultralytics
    from yolo_lightbackbones.configs import finding

    with quiet_ultralytics():
        from ultralytics.data.converter import coco80_to_coco91_class

    bundled = finding.config_dir() / "datasets" / "coco.yaml"
    names = yaml.safe_load(bundled.read_text(encoding="utf-8"))["names"]
    return dict(zip(coco80_to_coco91_class(), names.values(), strict=True))


def _convert(annotations: Path, target: Path) -> None:
    """Run Ultralytics' own conversion, without its lines and bars."""
    from yolo_lightbackbones.cli.models import quiet_ultralytics

    with quiet_ultralytics(), contextlib.redirect_stdout(io.StringIO()):
        from ultralytics.data.converter import convert_coco

        try:
            convert_coco(labels_dir=str(annotations), save_dir=str(target), use_segments=False, cls91to80=True)
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"Ultralytics cannot convert the annotations: {type(error).__name__}: {error}") from error


# --- output -----------------------------------------------------------------------------------------------------------


def _tell(report: Report, console: Console, *, tables: bool) -> None:
    from yolo_lightbackbones.coco.report import NOTES

    if tables:
        table = Table("", title=escape(printable(report.root)))
        for title in ("images", "without\nobjects", "annota-\ntions", "crowd\nregions", "in the\nlist"):
            table.add_column(title, justify="right")
        for title in ("labels", "list"):
            table.add_column(title)
        for name, split in report.splits.items():
            counts = (split.images, split.images_without_annotations, split.annotations, split.crowds, split.listed)
            table.add_row(name, *map(str, counts), split.labels, split.list_file)
        Console(highlight=False).print(table)
    for name, what in report.absent.items():
        console.print(f"{name} is not there: {what}.", markup=False)
    for name, split in report.splits.items():
        for kind, tally in split.notes.items():
            console.print(f"{name}: {tally.count} {NOTES[kind]}: {tally}", markup=False)
    if report.ok and (problems := _problems(report)):
        console.print(f"Left out or replaced:\n{problems}", markup=False)
    for remark in report.remarks:
        console.print(printable_lines(remark), markup=False)
    if report.ok and report.yaml != "left alone":  # a remark has said why
        path = Path(report.root) / "coco.yaml"
        done = "was left as it is" if report.yaml == "kept" else "is ready"
        advice = f"{path} {done}. Train with it: yolo train model=yolov5n_edgevit.yaml data={path}"
        console.print(printable_lines(advice), markup=False)


def _problems(report: Report) -> str:
    from yolo_lightbackbones.coco.report import PROBLEMS

    return "\n".join(
        f"  {name}: {tally.count} {PROBLEMS[kind]}: {tally}"
        for name, split in report.splits.items()
        for kind, tally in split.problems.items()
    )


def _advice(report: Report, skip_bad: bool) -> str:
    from yolo_lightbackbones.coco.report import NAMES

    kinds = {kind for split in report.splits.values() for kind in split.problems}
    advice = []
    if kinds & {"labels_differ", "list_differs"}:
        advice.append("Add --force to replace what is there (labels are kept as *.old), or move it away.")
    if kinds - {"labels_differ", "list_differs"} and not skip_bad:
        mend = "Rename these images in the folder and in the annotations"
        if not kinds <= NAMES.keys():
            mend = f"{mend}, download the others again" if kinds & NAMES.keys() else "Download these files again"
        advice.append(f"{mend}, or add --skip-bad to leave the images out of the lists.")
    return "\n".join(advice)

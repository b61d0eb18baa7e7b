"""`lightbackbones info`: shows the parts of a backbone or a model, and their cost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from yolo_lightbackbones.cli import completion, describe, targets
from yolo_lightbackbones.cli.common import IMAGE_SIZE_HELP, errors_for_users, image_size, messages, print_json


def info(
    target: Annotated[str, typer.Argument(help=targets.HELP, autocompletion=completion.targets)],
    *,
    imgsz: Annotated[str, typer.Option("--imgsz", help=IMAGE_SIZE_HELP)] = "640",
    scale: Annotated[
        str | None,
        typer.Option("--scale", "-s", help="Scale letter of a YAML whose name has none; else the first."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")
    ] = False,
) -> None:
    """Show the stages of a backbone, or the rows of a model, with their parameters and multiply-adds.

    The numbers are for the model as it is trained, before folding, in eval mode.
    """
    with errors_for_users():
        size = image_size(imgsz)
        with messages().status(f"Reading {escape(target)}"):
            found = targets.find(target, scale, size, empty=True)
            found.check(size)
            describe_it = describe.backbone_document if found.variant else describe.model_document
            document = describe_it(found, size)
    if as_json:
        print_json(document)
    elif found.variant:
        _print_backbone(document)
    else:
        _print_model(document)


# --- output -----------------------------------------------------------------------------------------------------------


def _print_backbone(document: dict[str, Any]) -> None:
    text, table = _say(), _stage_table(document)
    if document["note"]:
        text(document["note"])
    text(f"{document['name']}, module {document['module']} of model YAMLs")
    text(f"image: {_image(document)}")
    if figures := document["published"]:
        text(f"published: {_figures(figures)}")
    for stage in document["stages"]:
        table.add_row(*_stage_cells(stage))
    _total(table, document, 4)
    Console(highlight=False).print(table)


def _print_model(document: dict[str, Any]) -> None:
    text, backbones = _say(), document["backbones"]
    scale = f", scale {document['scale']}" if document["scale"] else ""
    text(f"{document['name']}: {document['task']}{scale}, {document['classes']} classes")
    if not backbones:
        text("backbone: none of ours")
    for backbone in backbones:
        variants = " or ".join(backbone["variants"]) or "of a custom config, or folded"
        taps = ", ".join(f"{tap} ({channels})" for tap, channels in backbone["taps"].items())
        where = f" in row {backbone['row']}" if len(backbones) > 1 else ""
        text(f"backbone{where}: {backbone['module']}, {variants}; taps in use: {taps}")
        text(f"image: {_image(backbone)}")
    height, width = document["imgsz"]
    table = Table(title=f"At {height} x {width} (height x width)", title_justify="left")
    table.add_column("row", justify="right", no_wrap=True)
    table.add_column("from", justify="right")
    table.add_column("module")
    for title in ("output", "parameters", "GMACs"):
        table.add_column(title, justify="right", no_wrap=True)
    for part, sums in document["parts"].items():
        table.add_section()
        table.add_row("", "", part, "", *_cost_cells(sums), style="bold")
        for row in document["rows"]:
            if row["part"] == part:
                sources = row["from"] if isinstance(row["from"], list) else [row["from"]]
                described = (escape(row["module"]), _shape(row["output"]), *_cost_cells(row))
                table.add_row(str(row["row"]), ", ".join(map(str, sources)), *described)
                for stage in [stage for used in backbones if used["row"] == row["row"] for stage in used["stages"]]:
                    table.add_row("", "", *_stage_in_model(stage, document["imgsz"]), style="dim")
    _total(table, document, 3)
    Console(highlight=False).print(table)
    text(f"{document['parameters']:,} parameters, {document['gflops']:.2f} GFLOPs (two per multiply-add)")


def _stage_in_model(stage: dict[str, Any], size: tuple[int, int]) -> list[str]:
    name = "  " + ", ".join(filter(None, (stage["name"], stage["tap"])))
    reduction = stage["reduction"]
    shape = _shape([stage["channels"], *(side // reduction for side in size)] if reduction else None)
    return [name, shape, *_cost_cells(stage)]


def _shape(output: Iterable[int] | None) -> str:
    """Channels, height and width."""
    return "x".join(map(str, output or ()))


def _stage_table(document: dict[str, Any]) -> Table:
    height, width = document["imgsz"]
    table = Table("", title=f"At {height} x {width} (height x width)", title_justify="left")
    for title in ("blocks", "channels", "reduction", "tap", "parameters", "GMACs"):
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _stage_cells(stage: dict[str, Any]) -> list[str]:
    numbers = [stage[key] for key in ("blocks", "channels", "reduction", "tap")]
    return [stage["name"], *("" if n is None else str(n) for n in numbers), *_cost_cells(stage)]


def _total(table: Table, document: dict[str, Any], empty: int) -> None:
    table.add_section()
    table.add_row("total", *[""] * empty, *_cost_cells(document))


def _cost_cells(costs: dict[str, Any]) -> list[str]:
    return [f"{costs['parameters']:,}", f"{costs['macs'] / 1e9:.4f}" if costs["macs"] else "0"]


def _image(document: dict[str, Any]) -> str:
    divisor, norm = document["size_divisibility"], document["input"]
    sides = f"RGB in 0..1, height and width multiples of {divisor}"
    if norm["order"] == "as given":
        return f"{sides}; taken as it is"
    steps = [f"normalised with mean {_numbers(norm['mean'])} and std {_numbers(norm['std'])}"] if norm["mean"] else []
    steps += ["turned into BGR"] if norm["order"] == "bgr" else []
    return f"{sides}; inside the backbone: {', '.join(steps)}"


def _numbers(values: Iterable[float]) -> str:
    return " ".join(map(str, values))


def _figures(figures: dict[str, Any]) -> str:
    said = [f"ImageNet top-1 {figures['top1']:.1f} %"]
    if figures["parameters"] is not None:
        said.append(f"{figures['parameters']:.1f} M parameters with the classifier")
    if figures["gmacs"] is not None:
        said.append(f"{figures['gmacs']:g} GMACs at {figures['image_size']} px")
    if figures["note"]:
        said.append(figures["note"])
    return f"{', '.join(said)} ({figures['source']})"


def _say() -> Any:
    console = Console(highlight=False, soft_wrap=True)
    return lambda line: console.print(line, markup=False)

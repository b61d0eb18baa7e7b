"""`lightbackbones list`: lists all backbones, their cost, and published figures."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from yolo_lightbackbones.cli import completion, list_timm
from yolo_lightbackbones.cli.common import (
    IMAGE_SIZE_HELP,
    UserError,
    errors_for_users,
    image_size,
    messages,
    print_json,
    progress,
)

if TYPE_CHECKING:  # it imports torch, which `lightbackbones --help` does without
    from yolo_lightbackbones.backbone import Backbone


_LEVELS = ("P2", "P3", "P4", "P5")
"""Columns of channels; `options.TAPS`, which the command line's help does without."""


def list_backbones(
    *,
    family: Annotated[
        str | None,
        typer.Option("--family", help="List only one family, such as repvit.", autocompletion=completion.families),
    ] = None,
    timm: Annotated[
        str | None,
        typer.Option("--timm", help="List timm's models with such names instead: 'convnext', 'mobilenetv4_conv_*'."),
    ] = None,
    imgsz: Annotated[str, typer.Option("--imgsz", help=IMAGE_SIZE_HELP)] = "640",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")
    ] = False,
) -> None:
    """List the backbones: parameters, multiply-adds, tap channels, published accuracy and weights.

    Parameters and multiply-adds are of the backbone only: its stem and stages.
    """
    if timm is not None:
        list_timm.list_models(timm, family=family, as_json=as_json)
        return
    with errors_for_users():
        size = image_size(imgsz)
        chosen = _families(family)
        named = [(cls, short) for cls in chosen for short in cls.variants]
        with progress("Counting", len(named)) as advance:
            found = []
            for cls, short in named:
                found.append(_entry(cls, short, size))
                advance()
    problems = [entry for entry in found if entry["problem"]]
    if problems and len(problems) == len(found):
        with errors_for_users():
            raise UserError(problems[0]["problem"])
    for entry in problems:
        messages().print(f"{entry['name']}: {entry['problem']}", markup=False)
    if as_json:
        print_json({"imgsz": size, "backbones": found})
    else:
        _print(found, size)


def _families(family: str | None) -> list[type[Backbone]]:
    from yolo_lightbackbones import registry

    families = registry.families().values()
    if family is None:
        return list(families)
    registry.list_backbones(wanted := family.strip().lower())  # raises for an unknown family, with the closest match
    return [cls for cls in families if cls.family == wanted]


def _entry(cls: type[Backbone], short: str, size: tuple[int, int]) -> dict[str, Any]:
    figures = cls.card.figures.get(short)
    entry: dict[str, Any] = {
        "name": f"{cls.family}_{short}",
        "family": cls.family,
        "module": cls.__name__,
        "title": cls.card.title,
        "origin": cls.card.origin or None,
        "parameters": None,
        "macs": None,
        "taps": {},
        "published": asdict(figures) if figures else None,
        "weights": _weights(cls, short),
        "note": cls.card.notes.get(short),
        "problem": None,
    }
    try:
        return {**entry, **_measured(cls, short, size)}
    except Exception as error:  # somebody else's family must not take the others down with it
        return {**entry, "problem": f"{type(error).__name__}: {error}" if not str(error) else str(error)}


def _measured(cls: type[Backbone], short: str, size: tuple[int, int]) -> dict[str, Any]:
    from yolo_lightbackbones.measure import cost

    backbone = _with_all_taps(cls, short).eval()
    total = cost.count(backbone, (1, 3, *size)).total
    taps = dict(zip(backbone.taps, backbone.out_channels, strict=True))
    return {"parameters": total.parameters, "macs": total.macs, "taps": taps}


def _with_all_taps(cls: type[Backbone], short: str) -> Backbone:
    """Build a variant with all the taps that it offers, on the meta device."""
    import torch

    from yolo_lightbackbones.backbone import Options

    with torch.device("meta"):
        return cls(short, Options(taps=None))


def _weights(cls: type[Backbone], short: str) -> dict[str, Any]:
    """Whether weights are published, and the name by which `lightbackbones convert` downloads them."""
    release = cls.card.release_of(short)
    return {
        "status": cls.card.weights_of(short),
        "download": f"{cls.family}_{short}" if release else None,
        "url": release.url if release else None,
        "by_hand": None if release else cls.card.by_hand or None,
    }


# --- output -----------------------------------------------------------------------------------------------------------


def _print(found: list[dict[str, Any]], size: tuple[int, int]) -> None:
    console = Console(highlight=False)
    notes = Console(highlight=False, soft_wrap=True)
    for family in dict.fromkeys(entry["family"] for entry in found):
        entries = [entry for entry in found if entry["family"] == family]
        table = Table(title=escape(f"{entries[0]['module']}, family {family}"), title_justify="left")
        table.add_column("name", no_wrap=True)
        for title in ("parameters\n(M)", f"GMACs\n@{_side(size)}", "channels\nP2 to P5", "top-1\n(%)"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("weights", no_wrap=True)
        for entry in entries:
            table.add_row(*_cells(entry))
        console.print(table)
        for line in _notes(entries):
            notes.print(line, markup=False)
        notes.print()


def _cells(entry: dict[str, Any]) -> list[str]:
    figures = entry["published"]
    return [
        escape(entry["name"]),
        "-" if entry["parameters"] is None else f"{entry['parameters'] / 1e6:.2f}",
        "-" if entry["macs"] is None else f"{entry['macs'] / 1e9:.2f}",
        " ".join(str(entry["taps"].get(tap, "-")) for tap in _LEVELS) if entry["taps"] else "-",
        f"{figures['top1']:.1f}" if figures else "-",
        entry["weights"]["status"] or "-",
    ]


def _notes(entries: list[dict[str, Any]]) -> list[str]:
    """Lines that say where a family, its figures and its weights come from."""
    figures = [entry["published"] for entry in entries if entry["published"]]
    lines = [f"{entries[0]['title']}: {entries[0]['origin']}"] if entries[0]["origin"] else []
    lines += [f"ImageNet top-1 as published: {source}" for source in dict.fromkeys(f["source"] for f in figures)]
    by_note: dict[str, list[str]] = {}
    for entry in entries:
        for note in [*_remarks(entry["published"]), *([entry["note"]] if entry["note"] else [])]:
            by_note.setdefault(note, []).append(entry["name"])
    lines += [f"{', '.join(names)}: {note}" for note, names in by_note.items()]
    if any(entry["weights"]["download"] for entry in entries):
        lines.append("download: lightbackbones convert NAME --model MODEL.yaml -o init.pt")
    lines += dict.fromkeys(entry["weights"]["by_hand"] for entry in entries if entry["weights"]["by_hand"])
    return lines


def _remarks(figures: dict[str, Any] | None) -> list[str]:
    if figures is None:
        return []
    at = [f"published at {figures['image_size']} px"] if figures["image_size"] != 224 else []
    return [*([figures["note"]] if figures["note"] else []), *at]


def _side(size: tuple[int, int]) -> str:
    height, width = size
    return str(height) if height == width else f"{height}x{width}"

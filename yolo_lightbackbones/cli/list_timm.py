"""`lightbackbones list --timm PATTERN`: lists models of timm, their levels, and the licences of their weights."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from yolo_lightbackbones import timm_catalogue
from yolo_lightbackbones.cli.common import UserError, errors_for_users, print_json, progress
from yolo_lightbackbones.messages import did_you_mean, quoted

TAPS = ("P2", "P3", "P4", "P5")


def list_models(pattern: str, *, family: str | None, as_json: bool) -> None:
    """Print the models of timm whose names match a pattern."""
    with errors_for_users():
        if family is not None:
            raise UserError("--timm lists models of timm, and --family lists a family. Leave one of them out.")
        names = timm_catalogue.matching(pattern)
        if not names:
            every = timm_catalogue.names_in_sources()
            meant = [name for name in every if not name.startswith("test_")]
            hint = did_you_mean(pattern.strip().lower().removeprefix("timm/"), meant)
            raise UserError(f"None of timm's {len(every)} models is called like {quoted(pattern)}.{hint}")
        built = len(names) <= timm_catalogue.MOST_BUILT
        with progress("Building", len(names)) as advance:
            found = []
            for name in names:
                found.append(timm_catalogue.describe(name, built=built))
                advance()
    if as_json:
        print_json({"pattern": pattern, "matched": len(found), "models": found})
    else:
        _print(found, built)


def _print(found: list[dict[str, Any]], built: bool) -> None:
    console, notes = Console(highlight=False), Console(highlight=False, soft_wrap=True)
    table = Table(title=f"Models of timm: {len(found)}", title_justify="left")
    table.add_column("name", no_wrap=True)
    if built:
        table.add_column("parameters\n(M)", justify="right", no_wrap=True)
        table.add_column("channels\nP2 to P5", justify="right", no_wrap=True)
    table.add_column("licences of weights", overflow="fold")
    for entry in found:
        cells = [_millions(entry["parameters"]), _channels(entry)] if built else []
        table.add_row(escape(entry["name"]), *cells, escape(_licences(entry["weights"])))
    console.print(table)
    for line in _notes(found, built):
        notes.print(line, markup=False)


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f}"


def _channels(entry: dict[str, Any]) -> str:
    """Channels by level, `-` where there is no map; a model with maps of one size has only that."""
    if not entry["taps"]:
        return "-"
    if len(set(entry["reductions"])) == 1 and len(entry["reductions"]) > 1:
        ((tap, channels),) = entry["taps"].items()
        return f"{tap} only: {channels}"
    return " ".join(str(entry["taps"].get(tap, "-")) for tap in TAPS)


def _licences(weights: dict[str, str | None]) -> str:
    """Number of files of weights under each licence."""
    said = [licence or "not stated" for licence in weights.values()]
    return ", ".join(f"{licence} ({said.count(licence)})" for licence in dict.fromkeys(said)) or "none"


def _notes(found: list[dict[str, Any]], built: bool) -> list[str]:
    if not built:
        return [
            f"Parameters and channels are shown for at most {timm_catalogue.MOST_BUILT} models. Narrow the pattern: "
            f"--timm {found[0]['name'].removeprefix('timm/')}."
        ]
    lines = ["Parameters are with the classifier; channels are what timm says, and info builds the backbone to see."]
    if any(_channels(entry).count("only") for entry in found):
        lines.append("Models with one level take the option pyramid: simple.")
    return [*lines, f"A model YAML: lightbackbones new --backbone {found[0]['name']} -o my.yaml"]

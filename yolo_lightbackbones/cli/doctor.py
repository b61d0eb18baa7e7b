"""`lightbackbones doctor`: checks the installation, and prints what belongs in a bug report."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from yolo_lightbackbones.cli import diagnosis
from yolo_lightbackbones.cli.common import messages, print_json

STYLES = {diagnosis.OK: "green", diagnosis.NOTE: "yellow", diagnosis.WRONG: "bold red"}


def doctor(
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")
    ] = False,
) -> None:
    """Check the installation, and print a report in Markdown, to paste into a bug report.

    If something is wrong, it says what to do, and the exit code is 1.
    """
    with messages().status("Checking the installation"):
        versions = diagnosis.versions()
        findings = diagnosis.findings()
    wrong = [finding for finding in findings if finding.status == diagnosis.WRONG]
    if as_json:
        print_json({"ok": not wrong, "versions": versions, "checks": [asdict(finding) for finding in findings]})
    else:
        _print(versions, findings)
    if wrong:
        raise typer.Exit(1)


def _print(versions: dict[str, str | None], findings: list[diagnosis.Finding]) -> None:
    wide = Console(highlight=False, soft_wrap=True, width=1000)  # a row of a Markdown table is one line
    table = Table("package", "version", box=box.MARKDOWN)
    for name, version in versions.items():
        if version is not None:
            table.add_row(_cell(name), _cell(version))
    wide.print(table)
    absent = [name for name, version in versions.items() if version is None]
    if absent:
        wide.print(f"\nNot installed: {', '.join(absent)}.", markup=False)
    wide.print()
    table = Table("check", "", "finding", box=box.MARKDOWN)
    for finding in findings:
        style = STYLES[finding.status]
        table.add_row(_cell(finding.name), f"[{style}]{finding.status}[/{style}]", _cell(finding.text))
    wide.print(table)
    wide.print()
    advice = [finding for finding in findings if finding.advice]
    for finding in advice:
        wide.print(f"- {finding.name}: {finding.advice}", markup=False)
    if not any(finding.status == diagnosis.WRONG for finding in findings):
        wide.print("Nothing is wrong.", markup=False)


def _cell(text: str) -> str:
    return escape(" ".join(text.split()).replace("|", "\\|"))

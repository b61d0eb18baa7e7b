"""Writes docs/comparators.md, the systems that others compare with, from docs/comparators.json.

    python tools/make_comparators.py            # writes the page
    python tools/make_comparators.py --check    # fails if the page is out of date

No test runs these: `tests/test_comparators.py` runs the check on a copy.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from yolo_lightbackbones.writing import write_text

DOCS = Path(__file__).resolve().parent.parent / "docs"
DATA, PAGE = DOCS / "comparators.json", DOCS / "comparators.md"

ABOVE = """# Comparators

The systems that the papers of EdgeViT, ParC-Net, RepViT and Conv2Former, and articles about them, compare with. Those
of the first table run here: take the row as row 0 of a model YAML. Those of the second table are only cited.

Figures are those that each system's authors publish (the column "figures from" says where): ImageNet-1k top-1 at 224 px
where nothing else is said, parameters, and multiply-adds, which most papers call FLOPs. Papers round, and a few count
without the classifier. A cell is empty where we could not confirm the number. None was measured here, and recipes
differ from paper to paper: [one recipe for all](accuracy.md) compares better.

"Compared with by" names those of the four whose paper or repository gives results of this system, in any size, beside
its own. The cell is empty where we could confirm none.

`tools/make_comparators.py` writes this page from `docs/comparators.json`.
"""
COLUMNS = (
    "system",
    "paper",
    "variant",
    "top-1, %",
    "parameters, M",
    "multiply-adds, G",
    "figures from",
    "compared with by",
)


def page(systems: list[dict[str, Any]]) -> str:
    """The text of the page."""
    here = [[*_about(system), f"`{system['row']}`", system.get("note", "")] for system in systems if "row" in system]
    others = [[*_about(system), _code(system), system["reason"]] for system in systems if "row" not in system]
    tables = [
        ("## They run here", [*COLUMNS, "row 0", "remark"], here),
        ("## They are cited only", [*COLUMNS, "code", "why it does not run here"], others),
    ]
    parts = [ABOVE, *(f"{title}\n\n{_table(columns, rows)}" for title, columns, rows in tables)]
    return "\n".join(parts)


def _about(system: dict[str, Any]) -> list[str]:
    paper = f"[{system['paper']}](https://arxiv.org/abs/{system['paper']})"
    figures = (str(system.get(key, "")) for key in ("variant", "top1", "parameters", "gmacs", "source"))
    return [system["system"], paper, *figures, ", ".join(system.get("compared_by", []))]


def _code(system: dict[str, Any]) -> str:
    return f"[{system['code'].partition('/')[2]}](https://{system['code']})" if "code" in system else ""


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    check = parser.parse_args().check
    text = page(json.loads(DATA.read_text(encoding="utf-8"))["systems"])
    if check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit(f"error: {PAGE.name} is out of date; run: python tools/make_comparators.py")
        return 0
    write_text(PAGE, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The README: what the Chinese one has in common with it. Its commands are run by tests/test_commands.py."""

from __future__ import annotations

import json
import re

import pytest
from places import REPOSITORY

README, CHINESE = ((REPOSITORY / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))


def code(text: str) -> list[str]:
    """Fenced blocks without what is translated: comments, and the labels of diagrams."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [language + "\n" + re.sub(r"\s+#.*$", "", body, flags=re.MULTILINE) for language, body in blocks]


def headings(text: str) -> list[int]:
    """Levels of the headings, from top to bottom; the comments of commands are none."""
    return [len(marks) for marks in re.findall(r"^(#+) ", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M), re.M)]


def tables(text: str) -> list[list[list[str]]]:
    """Rows of cells, of each of which only the numbers are kept: those of other scripts are the same."""
    found = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    return [[re.findall(r"\d+(?:\.\d+)?", cell) for cell in row.split("|")] for row in "".join(found).splitlines()]


def differences(english: str, chinese: str) -> list[str]:
    """Where the two are out of step; sentences may be mended in either."""
    return [part.__name__ for part in (code, headings, tables) if part(english) != part(chinese)]


def test_the_chinese_readme_is_in_step() -> None:
    assert code(CHINESE) == code(README)
    assert headings(CHINESE) == headings(README)
    assert tables(CHINESE) == tables(README)
    assert len(headings(README)) > 10
    assert len(tables(README)) > 30


@pytest.mark.parametrize(
    ("old", "new", "seen"),
    [
        ("It is a plugin", "This is only a plugin, of [1](https://a.b) kind", []),
        ("make demo    # ", "make demo    # now: ", []),
        ("make demo    # ", "make dem    # ", ["code"]),
        ("## Models", "### Models", ["headings"]),
        ("| 73 ms |", "| 74 ms |", ["tables"]),
        ("| ParC-Net-XS | 3.61 |", "| ParC-Net-XS || 3.61 |", ["tables"]),
        ("| CoreML | converts; runs on Apple devices | | | |\n", "", ["tables"]),
    ],
)
def test_what_is_out_of_step_is_seen(old: str, new: str, seen: list[str]) -> None:
    assert old in README
    assert differences(README.replace(old, new), CHINESE) == seen


def test_the_number_of_model_yamls_is_right() -> None:
    number = re.search(r"`cfg/` has (\d+) model YAMLs", README)
    assert number
    assert int(number[1]) == len(list((REPOSITORY / "cfg").glob("*.yaml")))


RAW = ("litert quantize=8", "litert quantize=w8a16", "rknn quantize=8")
"""The formats whose figures are in the READMEs, in this order."""


def test_what_raw_heads_cost_is_what_was_measured() -> None:
    rows = json.loads((REPOSITORY / "docs" / "raw-heads.json").read_text(encoding="utf-8"))
    for text in (README, CHINESE):
        (said,) = (line for line in text.replace("\nchanges", " changes").splitlines() if "RKNN INT8" in line)
        figures = [float(figure) for figure in re.findall(r"0\.00\d\d", said)]
        for format, figure in zip(
            ("litert quantize=8", "litert quantize=w8a16", "rknn quantize=8"), figures, strict=True
        ):
            own = [row for row in rows if row["format"] == format and row["raw"]]
            assert len({(row["data"], row["model"]) for row in own}) == 8, "four families, two data sets"
            assert max(round(abs(row["map"] - row["reference_map"]), 4) for row in own) == figure

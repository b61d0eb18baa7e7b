"""The README: the Chinese one is in step with it. Its commands are run by tests/test_commands.py."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))


def code(text: str) -> list[str]:
    """Fenced blocks without what is translated: comments, and the labels of diagrams."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [language + "\n" + re.sub(r"\s+#.*$", "", body, flags=re.MULTILINE) for language, body in blocks]


def test_the_chinese_readme_is_in_step() -> None:
    assert code(CHINESE) == code(README)
    for pattern in (r"^#+ ", r"^\|", r"\]\([^)]+\)", r"\b\d+\.\d+\b"):
        ours, theirs = (len(re.findall(pattern, text, re.MULTILINE)) for text in (README, CHINESE))
        assert ours == theirs, f"{pattern}: {ours} in README.md, {theirs} in README.zh-CN.md"


def test_the_number_of_model_yamls_is_right() -> None:
    number = re.search(r"`cfg/` has (\d+) model YAMLs", README)
    assert number
    assert int(number[1]) == len(list((ROOT / "cfg").glob("*.yaml")))

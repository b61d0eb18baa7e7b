"""The README: what it says to run is run as printed, and the Chinese one is in step with it."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
RUNNABLE = re.compile(r"^<!-- runnable -->\n```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = RUNNABLE.findall(README)
WRITES = {
    "yolo train": ["first/weights/best.pt", "first/weights/best.onnx"],
    "lightbackbones new": ["my.yaml", "compare.png"],
}
"""What a block must leave behind, by a command that is in it."""


def code(text: str) -> list[str]:
    """Fenced blocks without what is translated: comments, and the labels of diagrams."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [language + "\n" + re.sub(r"\s+#.*$", "", body, flags=re.MULTILINE) for language, body in blocks]


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=[block.split("  ")[0] for block in BLOCKS])
def test_runnable_blocks_run_as_printed_from_any_folder(block: str, tmp_path: Path) -> None:
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    settings = tmp_path / "settings"
    settings.mkdir()
    (folder := tmp_path / "anywhere").mkdir()
    environment = {**os.environ, "PATH": path, "YOLO_CONFIG_DIR": str(settings), "MPLBACKEND": "Agg"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"yolo settings datasets_dir='{tmp_path}/datasets'\n{block}"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    expected = [file for command, files in WRITES.items() if command in block for file in files]
    assert expected
    for file in expected:
        assert (folder / file).stat().st_size > 0


def test_every_block_that_the_readme_calls_runnable_is_found() -> None:
    assert len(BLOCKS) == README.count("<!-- runnable -->") == len(WRITES)


def test_the_chinese_readme_is_in_step() -> None:
    assert code(CHINESE) == code(README)
    for pattern in (r"^#+ ", r"^\|", r"\]\([^)]+\)", r"\b\d+\.\d+\b"):
        ours, theirs = (len(re.findall(pattern, text, re.MULTILINE)) for text in (README, CHINESE))
        assert ours == theirs, f"{pattern}: {ours} in README.md, {theirs} in README.zh-CN.md"


def test_the_number_of_model_yamls_is_right() -> None:
    number = re.search(r"`cfg/` has (\d+) model YAMLs", README)
    assert number
    assert int(number[1]) == len(list((ROOT / "cfg").glob("*.yaml")))

"""docs/timm.md: the page is what its data say, and the script that measures it works."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from places import REPOSITORY

SCRIPT = REPOSITORY / "benchmarks" / "timm_coverage.py"
DATA = json.loads((REPOSITORY / "docs" / "timm.json").read_text(encoding="utf-8"))
ROWS: list[dict[str, Any]] = DATA["rows"]


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    spec = importlib.util.spec_from_file_location("timm_coverage", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("change", "code"), [("", 0), ("| a | b |\n", 1)])
def test_the_page_is_up_to_date(change: str, code: int, tmp_path: Path) -> None:
    for name in ("benchmarks/timm_coverage.py", "docs/timm.json", "docs/timm.md"):
        copy = tmp_path / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_text((REPOSITORY / name).read_text() + (change if name.endswith(".md") else ""))
    command = [sys.executable, str(tmp_path / "benchmarks" / "timm_coverage.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert ("is out of date; run: python benchmarks/timm_coverage.py" in done.stderr) == bool(code)


def test_nine_of_ten_work_and_none_fails() -> None:
    """The bar that the page is for: of those with maps at 1/8, 1/16 and 1/32, 90 % work, and nothing fails inside."""
    assert len(ROWS) > 150
    assert not [row["name"] for row in ROWS if "failed" in row or row.get("folded", 0) > 1e-3]
    able = [row for row in ROWS if {8, 16, 32} <= set(row["reductions"]) and "pyramid" not in row.get("options", {})]
    assert sum("refused" not in row for row in able) >= 0.9 * len(able)
    for row in ROWS:
        if "refused" in row:
            assert row["refused"].endswith(".")
            assert "Error" not in row["refused"]


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [("test_resnet", "any size", {}), ("test_coatnet", "one size", {"imgsz": 160}), ("levit_128s", "refused", None)],
)
def test_a_model_is_measured(name: str, kind: str, options: dict[str, Any] | None, coverage: ModuleType) -> None:
    pytest.importorskip("timm", reason="the script measures timm: pip install timm")
    pytest.importorskip("onnxruntime", reason="the script runs ONNX files: pip install onnxruntime")
    row = coverage.measure(name, coverage.parameters(name), export=name == "test_resnet")
    assert coverage.kind_of(row) == kind
    assert row.get("options") == options
    if options is None:
        assert "P3" in row["refused"]
        return
    assert 0 < row["folded"] < 1e-3
    assert ("onnx" in row) == (name == "test_resnet")
    assert row.get("onnx", {"error": 0})["error"] < 1e-3
    assert coverage.kind_of({**row, "folded": 0.1}) == "failed"


def test_workers_answer_and_one_that_dies_is_a_row(coverage: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="the script measures timm: pip install timm")
    monkeypatch.setattr(coverage, "SECONDS", 0.1)
    (late,) = coverage.measured([("a", ["test_vit"])])
    assert late == {"architecture": "a", "models": 1, "name": "test_vit", "failed": "it took more than 0.1 s"}
    monkeypatch.setattr(coverage, "SECONDS", 240)
    monkeypatch.setitem(os.environ, "PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    rows = list(coverage.measured([("b", ["levit_128s"]), ("c", ["no_such_model"])]))
    assert [row["architecture"] for row in rows] == ["b", "c"]
    assert "refused" in rows[0]
    assert rows[1]["failed"].startswith("RuntimeError")

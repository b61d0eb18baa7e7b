"""The script for a CUDA machine, as far as a CPU can: its order, its clock, its errors, and a dry run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_benchmarks import imported


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return imported("gpu")


def test_training_comes_first_and_stock_before_its_families(gpu: ModuleType) -> None:
    jobs = gpu.plan(gpu.MODELS, gpu.Settings())
    assert len(jobs) == 10 + 2 * 10
    assert all(job.is_training for job in jobs[:10])
    order = [(job.model, job.precision) for job in jobs[10:]]
    assert order[0] == ("yolov5n", 16)
    for model, precision in order:
        assert order.index((model.split("_")[0], precision)) <= order.index((model, precision))


def test_no_job_is_begun_that_would_end_too_late(gpu: ModuleType) -> None:
    now = [0.0]
    budget = gpu.Budget(100, clock=lambda: now[0])

    def measure(job: Any) -> dict[str, Any]:
        now[0] += 1 if job.is_training else 40
        return {"ms": now[0]}

    jobs = [gpu.Job("yolov5n", "amp"), *[gpu.Job("yolov5n", 16)] * 3, gpu.Job("yolov5n", "amp")]
    rows = [*gpu.measured(jobs, measure, budget)]
    assert [row.get("failed") for row in rows] == [None, None, None, "no time was left", None]


def test_an_error_is_a_row(gpu: ModuleType) -> None:
    def measure(job: Any) -> dict[str, Any]:
        if job.precision == 16:
            raise RuntimeError("no kernel\nfor it")
        return {"step_ms": 1.0, "first_loss": 2.0, "last_loss": 1.0}

    jobs = [gpu.Job("yolov5n", 16), gpu.Job("yolov5n", "amp")]
    failed, trained = rows = [*gpu.measured(jobs, measure, gpu.Budget(100))]
    assert failed == {"model": "yolov5n", "precision": 16, "failed": r"RuntimeError: no kernel\nfor it"}
    assert trained["step_ms"] == 1.0
    page = gpu.table(rows, gpu.Settings())
    assert "| yolov5n | 1.0 |  | 2.00 to 1.00 |  |" in page
    assert r"| yolov5n | engine 16 |  |  |  |  |  | RuntimeError: no kernel\nfor it |" in page


def test_without_a_gpu_it_says_so(gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path)])
    assert "no CUDA device here; --dry-run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_dry_run(gpu: ModuleType, tmp_path: Path) -> None:
    for package in ("onnxruntime", "sklearn"):
        pytest.importorskip(package)
    path = [*sys.path]
    try:
        assert gpu.main(["--out", str(tmp_path), "--dry-run", "--models", "yolov5n", "yolov5n_repvit"]) == 0
    finally:
        sys.path[:] = path
    report = json.loads((tmp_path / "gpu.json").read_text())
    rows = {(row["model"], row["precision"]): row for row in report["rows"]}
    assert len(rows) == 6
    assert report["dry_run"] is True
    for model in ("yolov5n", "yolov5n_repvit"):
        assert rows[model, "amp"]["step_ms"] > 0
        assert rows[model, None]["box_px"] < 0.01
        assert rows[model, None]["score"] < 1e-3
        assert 0.01 < rows[model, 8]["box_px"] < 64, "integers are not the same, and not nonsense"
        assert rows[model, 8]["of_stock"] > 0
    assert rows["yolov5n_repvit", "amp"]["first_loss"] != rows["yolov5n_repvit", "amp"]["last_loss"]
    assert (tmp_path / "gpu.md").read_text().count("| yolov5n_repvit |") == 3

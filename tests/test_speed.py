"""The harness of benchmarks/speed.py, with candidates whose times and results are known; and one tiny real run."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from places import REPOSITORY
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = [np.full((1, 1, 2, 2), value, np.float32) for value in (1, 2, 3)]
EXPECTED = [[image, 2 * image] for image in IMAGES]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a module of benchmarks/ by name."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module


@pytest.fixture
def harness(benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark("harness")


class Fake:
    """A candidate that notes its images and takes the times it is told, by a clock that only it moves."""

    def __init__(self, clock: Clock, name: str, times: list[float], error: float = 0) -> None:
        self.clock, self.name, self.times, self.error = clock, name, times, error

    def __call__(self, image: np.ndarray) -> list[np.ndarray]:
        self.clock.calls.append((self.name, float(image.flat[0])))
        self.clock.now += self.times[0] if len(self.times) == 1 else self.times.pop(0)
        return [image, 2 * image * (1 + self.error)]


class Clock:
    def __init__(self) -> None:
        self.now, self.calls = 0.0, list[tuple[str, float]]()

    def __call__(self) -> float:
        return self.now


def test_candidates_take_turns_on_the_same_images(harness: ModuleType) -> None:
    clock = Clock()
    runs = {"ours": Fake(clock, "ours", [0.002]), "other": Fake(clock, "other", [0.004])}
    row = harness.race(runs, IMAGES, EXPECTED, tolerance=1e-6, rounds=4, clock=clock)
    compared, timed = clock.calls[:6], clock.calls[6:]
    assert compared == [("ours", 1), ("ours", 2), ("ours", 3), ("other", 1), ("other", 2), ("other", 3)]
    assert timed == [
        (name, image) for image in (1, 2, 3, 1, 2, 3) for name in ("ours", "other")
    ]  # 2 rounds are warm-up
    assert row["ms"] == {"ours": 2.0, "other": 4.0}
    assert row["ratio"] == [0.5, 0.5, 0.5]
    assert row["rounds"] == 4


def test_ratios_are_of_each_round(harness: ModuleType) -> None:
    clock = Clock()
    warm = [1.0] * 5  # 3 comparisons, 2 rounds
    ours, other = [*warm, 1, 2, 3, 4, 50], [*warm, 2, 2, 2, 2, 10]
    runs = {"ours": Fake(clock, "ours", ours), "other": Fake(clock, "other", other)}
    row = harness.race(runs, IMAGES, EXPECTED, tolerance=1e-6, rounds=5, clock=clock)
    assert row["ratio"] == [
        1.0,
        1.5,
        2.0,
    ]  # of 0.5, 1, 1.5, 2, 5: no ratio of medians, which is 3 / 2 here, nor of means
    assert row["ms"] == {"ours": 3000, "other": 2000}
    assert row["quartiles"]["ours"] == [2000, 4000]


@pytest.mark.parametrize(("seconds", "rounds"), [(30, 10), (1, 5), (1e9, 40)])
def test_rounds_fit_into_the_time(harness: ModuleType, seconds: float, rounds: int) -> None:
    clock = Clock()
    runs = {"ours": Fake(clock, "ours", [1.0]), "other": Fake(clock, "other", [2.0])}
    row = harness.race(runs, IMAGES, EXPECTED, tolerance=1e-6, rounds=40, seconds=seconds, clock=clock)
    assert row["rounds"] == rounds


@pytest.mark.parametrize("error", [1e-3, float("nan")])
def test_different_results_are_not_timed(harness: ModuleType, error: float) -> None:
    clock = Clock()
    runs = {"ours": Fake(clock, "ours", [1.0]), "other": Fake(clock, "other", [1.0], error)}
    with pytest.raises(harness.DifferentResultsError, match="other differs from PyTorch in output 1 by"):
        harness.race(runs, IMAGES, EXPECTED, tolerance=1e-4, rounds=3, clock=clock)
    assert len(clock.calls) == 4  # all of ours, one of the other
    harness.race({"ours": runs["ours"]}, IMAGES, EXPECTED, tolerance=1e-4, rounds=1, clock=clock)


def test_wrong_shapes_and_dead_maps_are_not_timed(harness: ModuleType) -> None:
    with pytest.raises(harness.DifferentResultsError, match=r"shapes \[\[1, 1, 2, 2\]\] instead of \[\[1, 1, 2, 2\], "):
        harness.largest_error("ours", EXPECTED[0][:1], EXPECTED[0], 1)
    dead = [np.zeros((1, 2, 2), np.float32)]
    with pytest.raises(harness.DifferentResultsError, match="proves nothing"):
        harness.largest_error("ours", dead, dead, 1)


def row(**more: Any) -> dict[str, Any]:
    place = {"kind": "inference", "model": "edgevit_xxs", "runtime": "onnx", "size": 320, "batch": 1, "threads": 1}
    numbers = {"ms": {"ours": 10.0, "reference": 20.0}, "ratio": [0.4, 0.5, 0.6]}
    return {**place, **numbers, "machine": "a machine", "clock": "wall", "versions": "onnxruntime 1", **more}


def test_table(benchmark: Callable[[str], ModuleType]) -> None:
    speed = benchmark("speed")
    failed = {"reference": "no kernel"}
    slow = {"ms": {"ours": 60.0, "reference": 50.0}, "ratio": [1.1, 2.0, 2.1]}
    rows = [row(), row(runtime="openvino", **slow), row(model="parcnet_xs", failed=failed, ratio=None)]
    rows[2].pop("ratio")
    rows.append(row(model="parcnet_xs", runtime="openvino", ratio=[0.9, 1.125, 1.2]))
    text = speed.table(rows)
    assert "| edgevit_xxs / reference | 0.50 (0.40-0.60), 10.0 ms | **2.00 (1.10-2.10)**, 60.0 ms |" in text
    assert "| parcnet_xs / reference | reference failed, 10.0 ms | 1.12 (0.90-1.20), 10.0 ms |" in text
    assert "| geometric mean | 0.50 | 1.50 |" in text
    assert "Geometric mean over all 3: 1.040." in text  # of 0.5, 2 and 1.125
    assert "- parcnet_xs, onnx, 320 px, batch 1: reference failed: no kernel" in text
    assert "Machine: a machine, wall clock. onnxruntime 1." in text


def test_table_of_training_and_shares(benchmark: Callable[[str], ModuleType]) -> None:
    speed = benchmark("speed")
    training = row(kind="training", runtime="eager", bytes={"ours": 3_000_000, "reference": 4_000_000})
    share = row(kind="share", gflops=20.0, limit=80.0, share=[0.2, 0.25, 0.3], operators={"Conv": 0.9, "Gelu": 0.1})
    text = speed.table([training, share])
    assert "| edgevit_xxs | 320 | 1 | 0.50 (0.40-0.60) | 10 | 0.750 | 3.0 |" in text
    assert "| edgevit_xxs | ONNX Runtime | 320 px, batch 1 | 20.0 | 80.0 | 25% | Conv 90%, Gelu 10% |" in text


class Squares(nn.Module):
    """Saves its input twice, once as a view, and one map of 4 x 4 x 4 bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> list[Tensor]:
        made = x * self.weight  # saves x, and the weight, which does not count
        return [made.view(-1).square() + made.sin().view(-1)]  # both save `made`


def test_saved_bytes_count_memory_once(benchmark: Callable[[str], ModuleType]) -> None:
    steps = benchmark("steps")
    assert steps.saved_bytes(Squares(), torch.rand(1, 1, 4, 4)) == 2 * 16 * 4
    assert steps.saved_bytes(Squares(), torch.rand(1, 1, 8, 8)) == 2 * 64 * 4


def test_steps_compare_gradients(benchmark: Callable[[str], ModuleType]) -> None:
    steps = benchmark("steps")
    image = torch.rand(1, 1, 4, 4)
    assert set(steps.check({"ours": Squares(), "same": Squares()}, image)) == {"same, outputs", "same, gradients"}
    wrong = Squares()
    wrong.weight.register_hook(lambda gradient: 1.01 * gradient)
    with pytest.raises(benchmark("harness").DifferentResultsError, match="The gradients of wrong differ from those of"):
        steps.check({"ours": Squares(), "wrong": wrong}, image)


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18", "edgevitxxs"])
def test_unknown_models(benchmark: Callable[[str], ModuleType], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark("speed").main(["--families", name])
    assert f"'{name}' is no model to measure. Allowed: a family (edgevit, " in capsys.readouterr().err


def test_a_real_run_and_its_continuation(
    benchmark: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    speed = benchmark("speed")
    job = {"kind": "inference", "model": "repvit_m0_6", "threads": 1, "rounds": 2, "seconds": 60, "clock": "cpu"}
    jobs = []

    def here(wanted: dict[str, Any]) -> list[dict[str, Any]]:
        jobs.append(wanted["runtime"])
        return list(speed.measure({**job, **wanted}))

    monkeypatch.setattr(speed, "run_apart", here)  # the process of its own is tested below
    output = tmp_path / "speed.json"
    given = ["--families", "repvit_m0_6", "--sizes", "64", "--batches", "1", "--rounds", "2", "--output", str(output)]
    speed.main([*given, "--runtimes", "eager"])
    speed.main([*given, "--runtimes", "eager", "onnx"])
    assert jobs == ["eager", "onnx"]  # what was there is kept
    rows = json.loads(output.read_text())
    assert [row["runtime"] for row in rows] == ["eager", "onnx"]
    for found in rows:
        assert set(found["errors"]) == {"ours", "reference"}
        assert max(found["errors"].values()) < 1e-5
        assert found["rounds"] == 2
        assert found["machine"].endswith(" cores")
    assert "repvit_m0_6 / reference" in output.with_suffix(".md").read_text()


def test_shares_are_of_the_families(
    benchmark: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    speed = benchmark("speed")
    jobs = []

    def made_up(job: dict[str, Any]) -> list[dict[str, Any]]:
        jobs.append((job["model"], job["runtime"]))
        numbers = {"gflops": 20.0, "limit": 80.0, "share": [0.2, 0.25, 0.3], "operators": {"Conv": 1.0}}
        return [{"size": job["sizes"][0], "batch": 1, "ms": {"ours": 5.0}, **numbers}]

    monkeypatch.setattr(speed, "run_apart", made_up)
    output = tmp_path / "speed.json"
    speed.main(["--share", "--families", "repvit", "--runtimes", "onnx", "--sizes", "320", "--output", str(output)])
    assert jobs == [("repvit_m0_9", "onnx")]  # timm's has the same graph
    assert "| 320 px, batch 1 | 20.0 | 80.0 | 25% | Conv 100% |" in output.with_suffix(".md").read_text()


def test_what_a_process_of_its_own_says(benchmark: Callable[[str], ModuleType]) -> None:
    job = {
        "kind": "inference",
        "model": "repvit_m9",
        "runtime": "eager",
        "threads": 1,
        "rounds": 1,
        "seconds": 1,
        "clock": "wall",
    }
    (found,) = benchmark("speed").run_apart({**job, "sizes": [64], "batches": [1]})
    assert (found["size"], found["batch"]) == (64, 1)
    assert "repvit_m9" in found["failed"]["the process"]

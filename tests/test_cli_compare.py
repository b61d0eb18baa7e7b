"""`lightbackbones compare`: what is counted, how turns are taken, and that nothing is overwritten."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result
from ultralytics import YOLO

from yolo_lightbackbones import fusion, plugin
from yolo_lightbackbones.cli import app, targets
from yolo_lightbackbones.cli import compare as compare_command
from yolo_lightbackbones.measure import timing

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = ("--imgsz", "32", "--repeats", "2")


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plugin.register()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "120"})


# --- timing -----------------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes in runs alone."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def run(self, name: str, durations: list[float]) -> Any:
        remaining: Iterator[float] = iter(durations)

        def call() -> None:
            self.calls.append(name)
            self.now += next(remaining)

        return call


def test_runs_take_turns_and_warm_up_does_not_count() -> None:
    clock, steps = Clock(), []
    a, b, c = (
        clock.run(name, times) for name, times in {"A": [9, 1, 2, 3], "B": [9, 2, 4, 9], "C": [9, 5, 5, 5]}.items()
    )
    found = timing.interleaved([a, b, c], 3, warm_up=1, clock=clock, progress=lambda: steps.append(len(clock.calls)))
    assert "".join(clock.calls) == "ABC" * 4
    assert steps == list(range(1, 13))
    assert [latency.rounds for latency in found] == [(1e3, 2e3, 3e3), (2e3, 4e3, 9e3), (5e3, 5e3, 5e3)]
    assert (found[0].median, found[0].low, found[0].high) == (2e3, 1.5e3, 2.5e3)
    assert timing.ratio(found[1], found[0]) == 2  # of 2, 2 and 3
    assert timing.ratio(found[0], found[0]) == 1


def test_a_single_round() -> None:
    assert timing.summary([4.0]) == timing.Latency(4.0, 4.0, 4.0, (4.0,))
    with pytest.raises(ValueError, match="repeats is 0"):
        timing.interleaved([], 0)


# --- the command ------------------------------------------------------------------------------------------------------


def test_variants_as_json_in_the_order_given() -> None:
    result = run("repvit_m0_6", "edgevit_xxs", "repvit_m0_6", *QUICK, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["imgsz"] == [32, 32]
    assert found["machine"]["torch"] == torch.__version__
    assert found["machine"]["processor"]
    assert [entry["name"] for entry in found["results"]] == ["repvit_m0_6", "edgevit_xxs", "repvit_m0_6"]
    assert [entry["parameters"] for entry in found["results"]] == [2_165_652, 3_778_128, 2_165_652]
    assert [entry["top1"] for entry in found["results"]] == [74.1, 74.4, 74.1]
    assert found["results"][0]["ratio"] == 1
    for entry in found["results"]:
        latency = entry["latency_ms"]
        assert len(latency["rounds"]) == 2
        assert 0 < latency["low"] <= latency["median"] <= latency["high"]
        assert entry["ratio"] > 0
        assert entry["macs"] > 0


def test_models_yamls_and_checkpoints_in_any_mix(tmp_path: Path) -> None:
    YOLO("yolov5n_edgevit.yaml").save(tmp_path / "best.pt")
    names = ("repvit_m0_6", "yolov5_edgevit.yaml", "best.pt", "yolov8n.yaml")
    result = run(*names, "--scale", "n", *QUICK, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["results"]
    assert [entry["kind"] for entry in found] == ["variant", "yaml", "checkpoint", "yaml"]
    assert (found[1]["parameters"], found[1]["macs"]) == (found[2]["parameters"], found[2]["macs"])
    assert [entry["top1"] for entry in found] == [74.1, None, None, None]


@pytest.mark.parametrize("name", ["repvit_m0_6", "half.pt"])
def test_what_is_timed_is_folded_in_eval_mode_and_float32(name: str, tmp_path: Path) -> None:
    YOLO("yolov5n_repvit.yaml").save(tmp_path / "half.pt")  # Ultralytics saves float16
    seen: list[nn.Module] = []
    run_once = compare_command._run(targets.find(name, None, (32, 32)), torch.rand(1, 3, 32, 32))
    hook = nn.modules.module.register_module_forward_pre_hook(lambda module, _: seen.append(module))
    with torch.inference_mode():
        run_once()
    hook.remove()
    assert fusion.is_fused(seen[0])
    assert not seen[0].training
    assert not any(isinstance(module, nn.BatchNorm2d) for module in seen)
    assert {parameter.dtype for parameter in seen[0].parameters()} == {torch.float32}


def test_threads_are_given_back() -> None:
    with compare_command._threads(2) as used:
        assert used == torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1
    with compare_command._threads(None) as used:
        assert used == 1


def test_the_table() -> None:
    result = run("edgevit_xxs", "repvit_m0_6", *QUICK, "--threads", "1")
    assert result.exit_code == 0
    assert f"1 thread, torch {torch.__version__}" in result.stdout
    assert "At 32 x 32 (height x width), folded, float32, batch 1, 2 rounds" in result.stdout
    first = next(line for line in result.stdout.splitlines() if "edgevit_xxs" in line)
    assert re.findall(r"[\w.]+", first)[:2] == ["edgevit_xxs", "3.78"]
    assert first.rstrip(" │").endswith("1.00")


@pytest.mark.parametrize(
    ("others", "label"), [(["edgevit_xxs"], "published ImageNet top-1 (%)"), (["parcnet_xs"], "parameters (M)")]
)
def test_the_picture(others: list[str], label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    labels = []
    original = Axes.set_ylabel
    monkeypatch.setattr(
        Axes, "set_ylabel", lambda self, text, **kw: (labels.append(text), original(self, text, **kw))[1]
    )
    result = run("repvit_m0_6", *others, *QUICK, "-o", "compare.png")
    assert result.exit_code == 0, result.output
    assert "Wrote compare.png." in result.stdout
    picture = cv2.imread(str(tmp_path / "compare.png"))
    assert picture.shape[0] > 300
    assert picture.std() > 10
    assert labels == [label]
    assert [path.name for path in tmp_path.iterdir()] == ["compare.png"]


def test_a_picture_is_overwritten_only_by_force(tmp_path: Path) -> None:
    (tmp_path / "old.png").write_text("precious")
    result = run("repvit_m0_6", "edgevit_xxs", *QUICK, "-o", "old.png")
    assert result.exit_code == 1
    assert "old.png exists already. Add --force" in result.stderr
    assert (tmp_path / "old.png").read_text() == "precious"
    result = run("repvit_m0_6", "edgevit_xxs", *QUICK, "-o", "old.png", "--force", "--json")
    assert result.exit_code == 0
    assert len(json.loads(result.stdout)["results"]) == 2
    assert (tmp_path / "old.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["repvit_m0_6"], "nothing to compare repvit_m0_6 with"),
        (["repvit_m0_6", "repvit_m9"], "Unknown variant 'repvit_m9'"),
        (["repvit_m0_6", "nowhere.pt"], "no file nowhere.pt"),
        (["repvit_m0_6", "yolov5x_edgevit.yaml"], "Choose one with --scale"),
        (["repvit_m0_6", "repvit_m0_9", "--imgsz", "33"], "33 x 33 .*multiples of 32.*--imgsz 64"),
        (["repvit_m0_6", "repvit_m0_9", "--repeats", "0"], "--repeats is 0; it must be at least 1"),
        (["repvit_m0_6", "repvit_m0_9", "--threads", "0"], "--threads is 0; it must be at least 1"),
        (["repvit_m0_6", "repvit_m0_9", "-o", "out.txt"], "suffix must be one of .png, .svg, .pdf"),
        (["repvit_m0_6", "repvit_m0_9", "-o", "nowhere/out.png"], "no folder nowhere"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "interleaved", lambda *_, **__: pytest.fail("this has been measured"))
    result = run(*arguments)
    assert result.exit_code == 1
    assert re.search(message, result.stderr), result.stderr
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit)
    assert list(tmp_path.iterdir()) == []

"""The benchmarks' own arithmetic, which says whether a family is as good as stock, and the page they write."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from places import REPOSITORY

from yolo_lightbackbones.plugin import formats as plugin_formats


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    return imported("pages")


@pytest.fixture(scope="module")
def learning(pages: ModuleType) -> ModuleType:
    return imported("learning")


@pytest.fixture(scope="module")
def transfer(learning: ModuleType) -> ModuleType:
    return imported("transfer")


def imported(name: str) -> ModuleType:
    """A script of benchmarks/, which import each other by name."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(learning: ModuleType, model: str, seed: int, score: float, **more: Any) -> dict[str, Any]:
    known = {"data": "digits", "scale": "n", "model": model, "seed": seed, **more}
    numbers = {"map": score, "map50": 2 * score, "curve": [0.1, 0.4, score], "images_per_second": 7.0}
    about = {"parameters": 2_650_000, "gflops": 7.8, "torch": "2", "machine": "a machine"}
    return {**known, "settings": learning.settings_of(known), **numbers, **about}


def cells(learning: ModuleType, rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    lines = [line for line in learning.tables(rows).splitlines() if line.startswith("| yolo")]
    return {line.split(" | ")[0].removeprefix("| "): line.strip("| ").split(" | ")[3:7] for line in lines}


def test_tables(learning: ModuleType) -> None:
    rows = [row(learning, "stock", seed, score) for seed, score in enumerate((0.4, 0.5, 0.3))]
    rows += [row(learning, "repvit", seed, score) for seed, score in enumerate((0.36, 0.5))]
    seen = cells(learning, rows)
    assert seen["yolov5n"] == ["3", "0.800 ± 0.200", "0.400 ± 0.100", "1.00"]
    # Of the two seeds that both have: 0.86 of 0.9.
    assert seen["yolov5n_repvit"] == ["2", "0.860 ± 0.140", "0.430 ± 0.070", "**0.96**"]
    other = row(learning, "repvit", 5, 0.9)
    assert cells(learning, [*rows[:3], other])["yolov5n_repvit"][-1] == "", "no seed in common"


def test_what_was_tried_with_all_models_has_a_table(learning: ModuleType) -> None:
    rows = [row(learning, model, 0, 0.4, trial={"lr0": 0.1}) for model in learning.MODELS]
    assert "### digits, scale n (imgsz 128, epochs 6, fliplr 0.0): lr0 0.1\n" in learning.tables(rows)
    assert learning.tables(rows[:-1]) == ""


def test_epochs_to_90_percent(learning: ModuleType) -> None:
    assert learning.epochs_to([0.1, 0.44, 0.45, 0.2, 0.5]) == 3
    assert learning.epochs_to([0.5]) == 1


def test_trials_are_beside_the_recipe_with_the_same_seeds(learning: ModuleType) -> None:
    rows = [row(learning, "stock", seed, 0.4 + seed / 10) for seed in (0, 1)]
    rows.append(row(learning, "stock", 1, 0.3, trial={"lr0": 0.1}))
    assert "| digits | yolov5n | lr0 0.1 | 1 | 0.300 | 0.500 |" in learning.trials(rows)
    rows.append(row(learning, "stock", 2, 0.3, trial={"lr0": 0.1}))
    assert "| digits | yolov5n | lr0 0.1 | 2 | 0.300 ± 0.000 |  |" in learning.trials(rows)
    rows.append(row(learning, "stock", 0, 0.7, trial={"epochs": 9, "lr0": 0.1}))
    assert "| digits, epochs 9 | yolov5n | lr0 0.1 | 1 | 0.700 |  |" in learning.trials(rows)


def test_results_of_other_settings_are_left_out(
    learning: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(learning, "stock", seed, 0.4) for seed in (0, 1)]
    rows[1]["settings"]["lr0"] = 0.123
    (tmp_path / "results.json").write_text(json.dumps(rows))
    monkeypatch.setattr(learning, "RESULTS", tmp_path / "results.json")
    assert learning.load() == rows[:1]
    monkeypatch.setattr(learning, "RESULTS", tmp_path / "none.json")
    with pytest.raises(SystemExit, match=r"none\.json has no results"):
        learning.report()


def test_the_page_has_the_results(learning: ModuleType, transfer: ModuleType) -> None:
    """docs/accuracy.md is what the benchmarks write of docs/accuracy.json and docs/transfer.json."""
    page = learning.PAGE.read_text(encoding="utf-8")
    pictures = "\n".join(re.findall(r"^!\[Learning curves.*$", page, re.MULTILINE))
    assert learning.with_tables(page, learning.load(), pictures) == page
    assert transfer.with_table(page, transfer.results()) == page


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readmes_have_the_accuracy(readme: str, learning: ModuleType) -> None:
    """The column of BCCD there is that of docs/accuracy.md, of the present recipes at scale n."""
    found = {
        model: learning.spread(
            row["map"]
            for row in learning.load()
            if (row["data"], row["scale"], row["model"]) == ("bccd", "n", model) and not learning.trial_of(row)
        )
        for model in learning.MODELS
    }
    lines = (REPOSITORY / readme).read_text(encoding="utf-8").splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("| YOLOv5n") and "BCCD" in line) + 2
    told = {}
    for name, *_, score in (line.strip("| ").split(" | ") for line in lines[begin : begin + len(found)]):
        model = name.lower().replace("-", "")
        told[next((family for family in learning.FAMILIES if model.startswith(family)), "stock")] = score
    assert told == {model: mean.split(" ")[0] for model, mean in found.items()}


def test_pretrained_is_compared_with_the_best_way_from_scratch(transfer: ModuleType) -> None:
    """That which the val split prefers of those with most seeds and the optimizer; seeds are compared one by one."""

    def of(start: str, seed: int, val: float, test: float, **trial: Any) -> dict[str, Any]:
        run = {"family": "repvit", "start": start, "seed": seed} | ({"trial": trial} if trial else {})
        settings = transfer.settings_of(run)
        return {**run, "settings": settings, "val_map50": val, "map50": test, "map": test / 2}

    rows = [of("pretrained", 0, 0.5, 0.5), of("pretrained", 1, 0.5, 0.3)]
    rows += [of("scratch", 0, 0.3, 0.45), of("scratch", 1, 0.3, 0.2)]
    rows += [
        of("scratch", 0, 0.4, 0.4, lr0=0.1),
        of("scratch", 1, 0.4, 0.4, lr0=0.1),
        of("scratch", 0, 0.9, 0.9, epochs=9),
    ]
    rows += [of("scratch", seed, 0.9, 0.9, optimizer="SGD") for seed in (0, 1)]
    rows += [of("pretrained", 0, 0.8, 0.8, optimizer="SGD")]
    table = transfer.with_table("<!-- transfer: written by transfer.py -->\n<!-- transfer: end -->", rows)
    assert "| repvit | pretrained | 2 | 0.500 ± 0.000 | 0.400 ± 0.100 | 0.200 ± 0.050 | 1 of 2 seeds |" in table
    assert "| repvit | pretrained, optimizer SGD | 1 | 0.800 | 0.800 | 0.400 | 0 of 1 seeds |" in table
    assert "| repvit | scratch, epochs 9 | 1 | 0.900 | 0.900 | 0.450 |  |" in table


@pytest.fixture(scope="module")
def exports(pages: ModuleType) -> ModuleType:
    imported("formats")
    return imported("exports")


@pytest.fixture(scope="module")
def exported() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((REPOSITORY / "docs" / "exports.json").read_text(encoding="utf-8"))
    return rows


def test_the_matrix_has_the_results(exports: ModuleType, exported: list[dict[str, Any]]) -> None:
    """docs/exports.md is what the benchmark writes of docs/exports.json, and says which formats miss their limit."""
    page = (REPOSITORY / "docs" / "exports.md").read_text(encoding="utf-8")
    assert f"{exports.tables(exported)}\n\n<!-- matrix: end -->" in page
    assert {row["format"] for row in exported if exports.missed(row)} == {
        "openvino",
        "litert quantize=8",
        "litert quantize=w8a16",
    }


def test_the_page_lists_the_formats(exports: ModuleType) -> None:
    """Of the plugin's table; `python benchmarks/formats.py --page` writes it."""
    page = (REPOSITORY / "docs" / "exports.md").read_text(encoding="utf-8")
    listed = sys.modules["formats"].listed()
    assert f"-->\n\n{listed}\n\n<!-- formats: end -->" in page
    for row in plugin_formats.FORMATS.values():
        assert listed.count(f"| {row.title} | `{row.name}` |") == 1


def test_a_row_of_the_matrix_is_what_the_plugin_says(exports: ModuleType) -> None:
    rows = sys.modules["formats"].FORMATS
    assert {row.name for row in rows} <= set(plugin_formats.FORMATS)
    (qnn,) = (row for row in rows if row.name == "qnn")
    assert (qnn.packages, qnn.runs) == (("onnxruntime-qnn",), "in a simulator")
    assert "a minute per image" in qnn.note


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readmes_have_the_largest_changes(readme: str, exported: list[dict[str, Any]]) -> None:
    """The table of exports there: of the detectors that have learned the digits."""
    changes: dict[str, list[float]] = {}
    times: dict[str, list[float]] = {}
    for row in (row for row in exported if row["data"] == "digits"):
        if "map" in row:
            changes.setdefault(row["format"], []).append(abs(row["map"] - row["reference_map"]))
        if "ratio" in row:
            times.setdefault(row["format"], []).append(row["ratio"])

    def largest(names: list[str], option: str = "") -> list[str]:
        found = [value for name in names for value in changes.get(name + option, ())]
        return [f"{max(found):.4f}"] if found else []

    lines = (REPOSITORY / readme).read_text(encoding="utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if line.startswith("| CoreML"))
    begin = max(i for i in range(end) if lines[i].startswith("|---")) + 1
    ids = {"SavedModel": "saved_model", "PaddlePaddle": "paddle"}
    seen = []
    for label, *cells in (line.strip().strip("|").split("|") for line in lines[begin:end]):
        outside = re.split("[(\N{FULLWIDTH LEFT PARENTHESIS}]", label)[0]
        names = [ids.get(name, name.lower()) for name in re.findall("[A-Za-z]+", outside)]
        seen += names
        plain, half, int8, time = (re.findall(r"\d+\.\d+", cell) for cell in cells)
        if names == ["rknn"]:  # which computes in float16
            assert (plain, half) == ([], largest(names))
            continue
        assert (plain, half) == (largest(names), largest(names, " quantize=16")), label
        assert int8 == largest(names, " quantize=w8a32") + largest(names, " quantize=8"), label
        ratios = [ratio for name in names for ratio in times[name]]
        assert [float(ratio) for ratio in time] == [min(ratios), max(ratios)], label
    assert {*seen, "coreml"} == {row["format"].split()[0] for row in exported}


def test_a_part_of_a_page_is_written_and_nothing_around_it(pages: ModuleType) -> None:
    one, two = (f"<!-- {name}: written by x.py -->\n%s<!-- {name}: end -->\n" for name in ("one", "two"))
    page = f"a\n{one % 'old'}b\n{two % ''}"
    written = pages.with_part(page, "one", r"new \1")
    assert written == page.replace("old", "\nnew \\1\n\n")
    assert pages.with_part(written, "one", r"new \1") == written
    with pytest.raises(ValueError, match="has 0 parts '<!-- three: written by"):
        pages.with_part(page, "three", "new")
    with pytest.raises(ValueError, match="has 2 parts"):
        pages.with_part(page + page, "two", "new")

"""A new export format is one row of the table: everything that asks about formats sees it."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from ultralytics import YOLO
from ultralytics.engine.exporter import export_formats

from yolo_lightbackbones import plugin, recording
from yolo_lightbackbones.cli import diagnosis
from yolo_lightbackbones.layers import LayerNorm2d
from yolo_lightbackbones.plugin import environment, exporting, formats
from yolo_lightbackbones.plugin.staging import Staging


def cut_off(folder: Path) -> Iterator[Path]:
    return (file for file in folder.glob("*.made") if file.read_text() == "half")


MADE_UP = formats.Format(
    "madeup",
    aliases=("made", "up"),
    steps=("onnx", "madeup"),
    extra="made",
    packages=("madeup-runtime", "pytest"),
    instead={"madeup-runtime": ("pytest-of-another-name", "pip")},
    any_size=True,
    matrix_from=33,
    matrix_in_int8=False,
    elementwise_norms=True,
    float_expectation=True,
    emptied="_madeup_model",
    unreadable=cut_off,
    silenced={"madeup.statistics": ("report", "send")},
)


@pytest.fixture(autouse=True)
def _row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(formats.FORMATS, "madeup", MADE_UP)


@pytest.fixture(scope="module")
def detector() -> Any:
    plugin.register()
    return YOLO("yolov5n_parcnet.yaml").model


def bound(model: Any) -> list[recording.SizeBound]:
    return [module for module in model.modules() if isinstance(module, recording.SizeBound)]


@pytest.mark.parametrize("name", ["madeup", "made", "up"])
def test_it_is_found_by_its_names(name: str) -> None:
    assert formats.find(name) is MADE_UP
    assert MADE_UP.methods == ("export_onnx", "export_madeup")


def test_a_format_without_a_row_has_the_defaults() -> None:
    assert formats.find("nobodys") == formats.Format("nobodys")
    assert formats.find("nobodys").methods == ("export_nobodys",)


def test_sizes_that_do_not_fit_are_refused(detector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    exporting.refuse_misfits(detector, "madeup", dynamic=True)
    with pytest.raises(ValueError, match=r"only as torchscript, .*, madeup\."):
        exporting.refuse_misfits(detector, "mnn", dynamic=True)
    monkeypatch.setitem(formats.FORMATS, "madeup", replace(MADE_UP, any_size=False))
    with pytest.raises(ValueError, match=r"dynamic=True is given for format=madeup, but"):
        exporting.refuse_misfits(detector, "madeup", dynamic=True)


@pytest.mark.parametrize(("quantize", "matrix_from"), [(None, 33), (8, None)])
def test_the_choice_of_forms(quantize: Any, matrix_from: int | None, detector: Any, tmp_path: Path) -> None:
    norm = LayerNorm2d(4)
    model = nn.Sequential(detector, norm)
    steps = {"export_onnx": lambda: "", "export_madeup": lambda: ""}
    arguments = SimpleNamespace(dynamic=False, format="made", quantize=quantize)
    started = SimpleNamespace(model=model, args=arguments, file=tmp_path / "best.pt", **steps)
    exporting.on_export_start(started)
    assert {module.matrix_from for module in bound(detector)} == {matrix_from}
    assert norm.elementwise == (quantize is None)
    assert all(getattr(started, name) is not step for name, step in steps.items()), "both steps are guarded"


def test_what_is_missing_is_named_with_its_extra(tmp_path: Path) -> None:
    message = r'format=madeup needs the package madeup, which .*"\.\[made\]", best in an environment of its own\.$'
    with pytest.raises(ModuleNotFoundError, match=message), environment.left_alone("madeup", tmp_path):
        raise ModuleNotFoundError("No module named 'madeup'", name="madeup")


def test_the_doctor_looks_for_its_packages() -> None:
    versions = diagnosis.versions()
    assert versions["pytest"] == pytest.__version__
    assert versions["madeup-runtime"], "pip stands for it"


def test_the_doctor_names_formats_whose_packages_are_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.search(r"installed for torchscript, .*\bmadeup;", diagnosis._exports().text)
    monkeypatch.setitem(formats.FORMATS, "madeup", replace(MADE_UP, packages=("pytest", "a-package-of-nobody")))
    assert "madeup" not in diagnosis._exports().text


def test_its_folder_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "best_madeup_model").mkdir()
    (tmp_path / "best_madeup_model" / "older").write_text("")
    staging = Staging(tmp_path / "best.pt", "madeup")
    with staging.step(last=True):
        (folder := staging.file.parent / "best_madeup_model").mkdir()
        (folder / "new").write_text("")
    assert [path.name for path in (tmp_path / "best_madeup_model").iterdir()] == ["new"]


def test_files_that_are_cut_off_are_refused(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "best.pt", "madeup")
    with pytest.raises(OSError, match=r"cannot be read back.*/best\.made"), staging.step(last=True):
        (staging.file.parent / "best.made").write_text("half")
    assert list(tmp_path.iterdir()) == []


def test_its_converter_is_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "madeup.statistics", before := SimpleNamespace())
    with environment.silenced():
        assert vars(sys.modules["madeup.statistics"]).keys() >= {"report", "send"}
        assert "MNN.tools.utils.log" in sys.modules
    assert sys.modules["madeup.statistics"] is before


def test_ultralytics_has_the_formats_of_the_table() -> None:
    """Every format of the installed release has a row; formats that older releases lack were not run here."""
    offered = {name for name in export_formats()["Argument"] if name.isidentifier()}
    assert offered <= set(formats.FORMATS)
    lacking = {name for name in set(formats.FORMATS) - offered if formats.FORMATS[name].runs == "here"}
    assert lacking <= {"madeup"}


@pytest.mark.parametrize(
    "row", [row for name, row in formats.FORMATS.items() if name != "madeup"], ids=lambda r: r.name
)
def test_a_row_says_what_was_tried(row: formats.Format) -> None:
    assert row.title
    assert row.on
    assert (row.reason == "") == (row.runs == "here"), "what was not run here has a reason"
    assert len(row.reason) < 90
    assert not row.reason.endswith(".")
    assert row.packages or row.runs == "not obtainable here"
    if row.extra:
        extras = importlib.metadata.metadata("yolo-lightbackbones").get_all("Provides-Extra") or []
        assert row.extra in extras

"""Pictures need matplotlib, an extra; everything else works without it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from yolo_lightbackbones import drawing
from yolo_lightbackbones.cli import app

HOW = r'pip install matplotlib, or, .* pip install "\.\[plot\]"'


@pytest.fixture
def _without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.mark.usefixtures("_without_matplotlib")
def test_a_figure_without_matplotlib() -> None:
    with pytest.raises(ModuleNotFoundError, match=HOW) as error:
        drawing.new_figure(3.0, 2.0)
    assert error.value.name == "matplotlib"


@pytest.mark.usefixtures("_without_matplotlib")
@pytest.mark.parametrize(
    "arguments",
    [
        # neither the file nor the variant exists, so any work would fail in another way
        ["coco-eval", "none.json", "--annotations", "none.json", "--plot", "curve.png"],
        ["compare", "repvit_m9", "edgevit_m9", "--output", "curve.png"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_say_so_before_any_work(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert "Error: Pictures are drawn by matplotlib, which is not installed." in result.stderr
    assert 'pip install ".[plot]"' in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_without_matplotlib")
def test_numbers_need_no_matplotlib(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools.coco", reason="pycocotools before 2.0.9 imports matplotlib itself")
    box = [10.0, 10.0, 40.0, 40.0]
    truth = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 100, "height": 100}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 1600.0, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    found = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9}]
    for name, content in (("truth.json", truth), ("found.json", found)):
        (tmp_path / name).write_text(json.dumps(content))
    arguments = ["coco-eval", str(tmp_path / "found.json"), "--annotations", str(tmp_path / "truth.json"), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["AP"] == pytest.approx(1.0)


def test_a_figure_is_written_as_its_suffix_says(tmp_path: Path) -> None:
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    assert set(starts) == set(drawing.FORMATS)
    for suffix, start in starts.items():
        path = tmp_path / f"figure{suffix.upper()}"
        drawing.save_figure(drawing.new_figure(3.0, 2.0), path)
        assert path.read_bytes().startswith(start)

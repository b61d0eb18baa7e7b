"""What surrounds an export: failures leave nothing behind and say what to do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import awake_detector
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.modules.block import DFL

from yolo_lightbackbones import exporting


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    YOLO("yolov5n_repvit.yaml").save(path := tmp_path / "best.pt")
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_failed_export_leaves_no_file(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    seen = []

    def full(*_args: Any, **_kwargs: Any) -> None:
        seen.append(names(checkpoint.parent))
        raise OSError("no space left")

    monkeypatch.setattr(onnx, "save", full)
    with pytest.raises(OSError, match="no space left"):
        YOLO(checkpoint).export(format="onnx", imgsz=64)
    assert seen == [{"best.pt", "best.onnx"}], "it had been written to"
    assert names(checkpoint.parent) == {"best.pt"}


@pytest.mark.parametrize(
    ("format", "package", "extra"), [("ncnn", "pnnx", "export"), ("executorch", "executorch", "executorch")]
)
def test_a_missing_package_is_named_with_its_extra(
    format: str, package: str, extra: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    expected = rf'format={format} needs the package {package}\S* which is not .*"yolo-lightbackbones\[{extra}\]"'
    with pytest.raises(ModuleNotFoundError, match=expected):
        YOLO(checkpoint).export(format=format, imgsz=64)
    assert names(checkpoint.parent) == {"best.pt"}


def test_a_size_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """Ultralytics rounds sizes to the largest stride of the head; the backbone may need a multiple of more."""
    (tmp_path / "p3.yaml").write_text(
        "nc: 2\nbackbone:\n  - [-1, 1, RepViT, [m0_6]]\n  - [0, 1, Tap, [P3]]\nhead:\n  - [[1], 1, Detect, [nc]]\n"
    )
    YOLO(tmp_path / "p3.yaml").save(tmp_path / "p3.pt")
    with pytest.raises(ValueError, match=r"72.*multiple"):
        YOLO(tmp_path / "p3.pt").export(format="onnx", imgsz=72)
    assert names(tmp_path) == {"p3.yaml", "p3.pt"}


class TestAllOrNothing:
    def test_other_files_are_left_alone(self, tmp_path: Path) -> None:
        checkpoint = tmp_path / "best.pt"
        kept = [checkpoint, tmp_path / "best.onnx", tmp_path / "best2.onnx", tmp_path / "best_notes.txt"]
        for file in kept:
            file.write_text("before")

        def interrupted() -> None:
            (tmp_path / "best2.onnx").write_text("by somebody else")
            (folder := tmp_path / "best_ncnn_model" / "deeper").mkdir(parents=True)
            (folder / "model.bin").write_text("half")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), exporting.all_or_nothing(checkpoint, "ncnn"):
            interrupted()
        assert names(tmp_path) == {file.name for file in kept}

    def test_a_file_of_an_earlier_export_that_was_written_to_goes_too(self, tmp_path: Path) -> None:
        (file := tmp_path / "best.onnx").write_text("before")

        def failing() -> None:
            file.write_text("half of the new one")
            raise RuntimeError

        with pytest.raises(RuntimeError), exporting.all_or_nothing(tmp_path / "best.pt", "onnx"):
            failing()
        assert not file.exists()

    def test_a_finished_export_stays(self, tmp_path: Path) -> None:
        with exporting.all_or_nothing(tmp_path / "best.pt", "onnx"):
            (file := tmp_path / "best.onnx").write_text("whole")
        assert file.read_text() == "whole"

    def test_formats_without_an_extra_point_to_the_table(self, tmp_path: Path) -> None:
        with (
            pytest.raises(ModuleNotFoundError, match=r"format=rknn needs the package rknn.*docs/exports.md"),
            exporting.all_or_nothing(tmp_path / "best.pt", "rknn"),
        ):
            raise ModuleNotFoundError("No module named 'rknn'", name="rknn")


def test_expected_distances_are_those_of_the_heads_convolution() -> None:
    head = DFL(16)
    logits = 5 * torch.randn(2, 64, 30, generator=torch.Generator().manual_seed(0))
    seen = exporting.expected_distances(logits, head.conv.weight.flatten())
    torch.testing.assert_close(seen, head(logits), rtol=1e-5, atol=1e-5)


def test_int8_exports_keep_the_expectation_out_of_the_convolutions(tmp_path: Path) -> None:
    """Before it is quantised, the ONNX file of our model has one convolution less than its modules."""
    onnx = pytest.importorskip("onnx")
    from types import SimpleNamespace

    from ultralytics.utils.callbacks import default_callbacks

    from yolo_lightbackbones import plugin

    (callback,) = (f for f in default_callbacks["on_export_start"] if f.__module__ == plugin.__name__)
    model = awake_detector("yolov5n_repvit.yaml").model.fuse(verbose=False)
    for quantize, expected in ((None, 0), (8, 1)):
        callback(SimpleNamespace(model=model, args=SimpleNamespace(dynamic=False, format="onnx", quantize=quantize)))
        torch.onnx.export(model, (torch.rand(1, 3, 64, 64),), str(tmp_path / "m.onnx"), dynamo=False)
        nodes = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
        modules = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        assert len(modules) - nodes.count("Conv") == expected

"""An export that fails changes no file that it has not written, whatever the format and however far it came."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_exports import write_detector
from ultralytics import YOLO

NEIGHBOURS = (
    *("best.txt", "best.onnx", "best_v2.onnx", "best_int8.onnx", "best.torchscript", "best.mnn", "bestial.onnx"),
    *("best.engine", "best.cache", "best_openvino_model/best.xml", "best_int8_openvino_model/best.bin"),
    *("best_ncnn_model/model.ncnn.bin", "best_ncnn_model/notes.txt", "best_rknn_model/dataset.txt"),
    "calibration_image_sample_data_20x128x128x3_float32.npy",
)
"""Files and folders beside the checkpoint whose names begin as the checkpoint's, or as what converters write."""

IN_THE_CURRENT_FOLDER = ("debug.bin", "debug.param", "debug2.bin", "debug2.param")
"""Files that Ultralytics deletes after an export to NCNN, wherever it was started."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "best.pt"
    write_detector("repvit", path.with_suffix(".yaml"))
    YOLO(path.with_suffix(".yaml")).save(path)
    return path


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkpoint and its neighbours; the current folder is another one."""
    (folder := tmp_path / "weights").mkdir()
    (folder / "best.pt").write_bytes(checkpoint.read_bytes())
    for name in NEIGHBOURS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"{name} of the user")
    (current := tmp_path / "current").mkdir()
    for name in IN_THE_CURRENT_FOLDER:
        (current / name).write_text(f"{name} of the user")
    monkeypatch.chdir(current)
    return folder


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Contents and times of all files, hidden ones as well."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes() if path.is_file() else b"", path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() or not any(path.iterdir())
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "module", "steps"),
    [
        ("torchscript", "torch", 1),
        ("onnx", "onnx", 1),
        ("openvino", "openvino", 1),
        ("ncnn", "pnnx", 1),
        ("mnn", "MNN", 2),
    ],
)
def test_a_disk_that_is_full_at_the_end_of_a_step(
    format: str, module: str, steps: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ultralytics looks at the size of what each step has written; MNN's first step writes an ONNX file."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    exporter = importlib.import_module("ultralytics.engine.exporter")
    size, before = exporter.file_size, snapshot(folder.parent)
    for failing in range(1, steps + 1):
        written: list[Path] = []

        def full(path: Any, failing: int = failing, written: list[Path] = written) -> float:
            if Path(path).name == "best.pt":  # before the export
                return float(size(path))
            written.append(Path(path))
            if len(written) == failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return float(size(path))

        monkeypatch.setattr(exporter, "file_size", full)
        with pytest.raises(OSError, match=r"No space left on device: .*/weights/best"):
            YOLO(folder / "best.pt").export(format=format, imgsz=64, verbose=False)
        assert len(written) == failing, "the step had come to its end"
        assert snapshot(folder.parent) == before

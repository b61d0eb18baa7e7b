"""The torch-free package: what it reads about a model, and its command."""

from __future__ import annotations

import errno
import os
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from edge_exports import IMGSZ, export, write_pictures
from lightbackbones_edge import command, metadata, runtimes
from places import REPOSITORY

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export("yolov5n.yaml", tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


# --- metadata ---------------------------------------------------------------------------------------------------------


NAMES = [
    "plain",
    "",
    " ends in blanks ",
    "it's: a # 'trap', or not - [x]",
    '"double" \\ back\\slash\\',
    "yes",
    "null",
    "12",
    "1.5",
    "- item",
    "{a: b}",
    "two\nlines\n\nand a gap\n",
    "tab\tbell\a\x85 \u2028 \ufeff",
    "näme 猫 \U0001f600",
    "word " * 60,
    "no-blanks" * 40,
    "it's long: " * 30,
    "back\\slash\ttab " * 30,
    "long\nlines " * 30,
]


def test_metadata_yaml_is_read_as_pyyaml_reads_it(tmp_path: Path) -> None:
    from ultralytics.utils import YAML

    values: dict[str, Any] = {
        "description": "Trained on: names:\n0: nothing " * 20,
        "date": "2026-01-01T00:00:00",
        "stride": 32,
        "task": "detect",
        "head": "RTDETRDecoder",
        "imgsz": list(IMGSZ),
        "names": dict(enumerate(NAMES)),
        "args": {"batch": 1, "names": None, "data": "it's: here.yaml", "quantize": "w8a16", "nms": False},
        "kpt_shape": [17, 3],
        "channels": 3,
        "end2end": False,
        "raw_head": 1,
        "raw_strides": [8, 16, 32],
        "raw_reg_max": 16,
        "raw_end2end": 0,
        "raw_max_det": 300,
    }
    file = tmp_path / "metadata.yaml"
    YAML.save(file, values)
    assert YAML.load(file) == values
    values["args"] = {"quantize": "w8a16", "nms": False}
    assert metadata.from_yaml(file) == {key: values[key] for key in metadata.KEYS}
    values["args"]["quantize"] = 8
    YAML.save(file, values)
    assert metadata.from_yaml(file)["args"] == values["args"]
    assert metadata.from_yaml(tmp_path / "absent.yaml") == {}


@pytest.mark.parametrize(
    "text",
    [
        "imgsz: [96, 128]",
        "imgsz:\n- wide",
        "channels: __import__('os')",
        "names:\n- cat",
        "names:\n  cat: 0",
        "names:\n  0: 'open",
        "names:\n  0: !!python/name:os.system",
        'names:\n  0: "\\q"',
    ],
)
def test_unknown_yaml_is_refused_and_not_guessed(text: str, tmp_path: Path) -> None:
    (tmp_path / "metadata.yaml").write_text(text)
    key, _, _ = text.partition(":")
    with pytest.raises(ValueError, match=f"damaged at '{key}'"):
        metadata.from_yaml(tmp_path / "metadata.yaml")


def test_metadata_of_onnx_without_onnx(plain: Path, tmp_path: Path) -> None:
    import onnx

    assert metadata.from_onnx(plain) == {item.key: item.value for item in onnx.load(plain).metadata_props}
    (tmp_path / "cut.onnx").write_bytes(plain.read_bytes()[:-7])
    with pytest.raises(ValueError, match="not an ONNX file"):
        metadata.from_onnx(tmp_path / "cut.onnx")


def test_metadata_of_older_tflite_files(tmp_path: Path) -> None:
    file = tmp_path / "model.tflite"
    file.write_bytes(b"a flatbuffer")
    assert metadata.from_zip(file) == {}
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("labels.txt", str({"names": {0: "cat"}, "imgsz": [96, 128]}))
    assert metadata.from_zip(file) == {"names": {0: "cat"}, "imgsz": [96, 128]}


# --- the command ------------------------------------------------------------------------------------------------------


def cli(monkeypatch: pytest.MonkeyPatch, *args: object) -> None:
    monkeypatch.setattr(sys, "argv", ["lightbackbones-edge", *map(str, args)])
    command.main()


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        path.open("wb").write(content[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"a\.png could not be written: No space left on device\.$"):
        command.save(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    assert not list(tmp_path.iterdir()), "nothing half-written is left"


@pytest.mark.parametrize("runtime", ["onnxruntime", "opencv"])
def test_video(
    runtime: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no video")
    for level in (0, 100, 200):
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    cli(monkeypatch, plain, video, "--runtime", runtime, "--out", tmp_path / "out")
    assert "3 frames" in capsys.readouterr().out
    assert (tmp_path / "out" / "clip.mp4").stat().st_size > 0


@pytest.fixture
def folder(plain: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a model, a picture, and text under the names of either."""
    (tmp_path / "model.onnx").write_bytes(plain.read_bytes())
    (tmp_path / "picture.png").write_bytes((pictures / "320x320.png").read_bytes())
    for name in ("text.onnx", "text.jpg", "text.mp4"):
        (tmp_path / name).write_text("no such thing")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("absent.onnx picture.png", "There is no model"),
        ("text.onnx picture.png", "onnxruntime cannot load"),
        ("text.jpg picture.png", "none of the model files"),
        ("model.onnx absent.png", "There is no picture"),
        ("model.onnx text.jpg", "not a picture that OpenCV can read"),
        ("model.onnx text.mp4", "not a video that OpenCV can read"),
        ("model.onnx text.onnx", "is not a picture, a video or a folder"),
        ("model.onnx picture.png --runtime ncnn", "ncnn needs .param files"),
        ("text.onnx picture.png --runtime opencv", "not an ONNX file"),
        (". picture.png", "holds more than one model"),
        ("model.onnx picture.png --out .", "would be overwritten"),
        ("model.onnx . --out .", "would be overwritten"),
    ],
)
def test_errors_are_one_clear_line(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli(monkeypatch, *arguments.split())
    assert exit_info.value.code == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


@pytest.mark.parametrize(
    ("name", "modules", "package", "extra"),
    [
        ("model.onnx", "onnxruntime", "onnxruntime", "onnxruntime"),
        ("model.xml", "openvino", "openvino", "openvino"),
        ("model.ncnn.param", "ncnn", "ncnn", "ncnn"),
        ("model.mnn", "MNN", "MNN", "mnn"),
        ("model.tflite", "ai_edge_litert tflite_runtime", "ai-edge-litert", "litert"),
        ("model.pte", "executorch", "executorch", "executorch"),
        ("model.rknn", "rknnlite", "rknn-toolkit-lite2", "rknn"),
    ],
)
def test_missing_runtime(
    name: str,
    modules: str,
    package: str,
    extra: str,
    *,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in modules.split():
        for loaded in [loaded for loaded in sys.modules if loaded.startswith(f"{module}.")]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, module, None)
    (folder / name).touch()
    with pytest.raises(SystemExit):
        cli(monkeypatch, name, "picture.png")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: Running {name} needs {package}: pip install {package}, or ")
    assert f"[{extra}]" in line
    project = (REPOSITORY / "edge" / "pyproject.toml").read_text(encoding="utf-8")
    packages = re.search(rf"^{extra} = \[(.+?)\]( #.*)?$", project, re.MULTILINE)
    assert packages
    assert f'"{package}>=' in packages[1], "the extra brings it"


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("m.xml", "openvino"),
        ("m.ncnn.param", "ncnn"),
        ("m.mnn", "MNN"),
        ("m.tflite", "ai_edge_litert.interpreter"),
        ("m.pte", "executorch.runtime"),
    ],
)
def test_a_damaged_model(name: str, module: str, tmp_path: Path) -> None:
    pytest.importorskip(module)
    (tmp_path / name).write_text("no such thing")
    if module == "ncnn":
        with pytest.raises(FileNotFoundError, match=r"no .*m\.ncnn\.bin"):
            runtimes.load(tmp_path)
        (tmp_path / "m.ncnn.bin").touch()
    with pytest.raises(ValueError, match=rf"cannot load .*{name}"):
        runtimes.load(tmp_path)


@pytest.mark.parametrize("option", [("--conf", "1.5"), ("--iou", "-1"), ("--conf", "high")])
def test_shares_out_of_range(
    option: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli(monkeypatch, "model.onnx", "picture.jpg", *option)
    assert option[1] in capsys.readouterr().err

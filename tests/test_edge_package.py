"""`lightbackbones-edge` as a distribution: what it imports, what its wheel holds, and that an installed one runs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from installing import build_wheel, new_environment, pip
from lightbackbones_edge.runtimes import RUNTIMES
from places import EDGE, REPOSITORY

PACKAGE = EDGE / "lightbackbones_edge"
MAY_IMPORT = {"lightbackbones_edge", "numpy", "cv2"}
"""Beside the standard library. Runtimes are imported by name when a model is loaded."""


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_modules_import_numpy_opencv_and_nothing_else(file: Path) -> None:
    found = {name.partition(".")[0] for name in imports(file)}
    assert found - MAY_IMPORT - set(sys.stdlib_module_names) == set()


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import lightbackbones_edge", "numpy cv2"),
        ("from lightbackbones_edge import Detections, Detector", ""),
        ("from lightbackbones_edge import command", ""),
    ],
)
def test_importing_brings_no_runtime_and_no_torch(code: str, absent: str) -> None:
    runtimes = "onnxruntime openvino ncnn MNN ai_edge_litert tflite_runtime executorch rknnlite"
    unwanted = f"torch ultralytics yolo_lightbackbones yaml onnx {runtimes} {absent}".split()
    code = f"{code}; import sys; print(*(sys.modules.keys() & set({unwanted})))"
    # -S: a checkout's autoload file would import things of its own
    paths = os.pathsep.join([str(EDGE), str(Path(np.__file__).parents[1]), str(Path(cv2.__file__).parents[1])])
    run = subprocess.run(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    import lightbackbones_edge

    with pytest.raises(AttributeError, match="no attribute 'Detectors'"):
        _ = lightbackbones_edge.Detectors
    assert {"Detector", "Detections"} <= set(dir(lightbackbones_edge))


def test_without_opencv_the_command_says_what_to_install() -> None:
    code = "import sys; sys.modules['cv2'] = None; from lightbackbones_edge.__main__ import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(EDGE)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: lightbackbones-edge needs OpenCV")
    assert line.endswith("pip install opencv-python-headless")


def test_every_runtime_has_an_extra_and_a_row() -> None:
    project = (REPOSITORY / "edge" / "pyproject.toml").read_text(encoding="utf-8")
    section = project.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    extras = re.findall(r"^(\w+) = \[", section, re.MULTILINE)
    rows = re.findall(r"^\| `(\w+)`", (REPOSITORY / "edge" / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(extras) == sorted(RUNTIMES)
    assert rows == list(RUNTIMES)


def test_its_licence_is_that_of_the_project() -> None:
    assert (REPOSITORY / "edge" / "LICENSE").read_bytes() == (REPOSITORY / "LICENSE").read_bytes()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"), REPOSITORY / "edge")


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = {path.relative_to(EDGE).as_posix() for path in PACKAGE.rglob("*") if path.suffix in {".py", ".typed"}}
    assert names == tracked
    assert {"lightbackbones_edge/py.typed", "lightbackbones_edge/runtimes/rknn.py"} <= names
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        needs = re.findall(r"^Requires-Dist: (.+)$", archive.read(metadata).decode(), re.MULTILINE)
    assert [need for need in needs if "extra ==" not in need] == ["numpy>=1.23"], "OpenCV is left to the extras"


@pytest.mark.slow
def test_an_installed_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    python = new_environment(tmp_path / "environment")
    pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel), cwd=tmp_path)
    values = np.zeros((1, 6, 5), np.float32)
    values[0, :, 0] = [32, 24, 20, 10, 0, 0.875]  # one box, whatever the picture: centre, sides, scores
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMin", ["images"], ["lowest"], keepdims=0),
            helper.make_node("Mul", ["lowest", "zero"], ["nothing"]),
            helper.make_node("Add", ["box", "nothing"], ["output0"]),
        ],
        "one box",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, (1, 3, 48, 64))],
        [helper.make_tensor_value_info("output0", onnx.TensorProto.FLOAT, values.shape)],
        [onnx.numpy_helper.from_array(values, "box"), onnx.numpy_helper.from_array(np.float32(0), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"names": "{0: 'cat', 1: 'dog'}", "task": "detect", "imgsz": "[48, 64]"})
    onnx.save(model, tmp_path / "one.onnx")
    cv2.imwrite(str(tmp_path / "a.png"), np.full((96, 128, 3), 50, np.uint8))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for start in ([python.parent / "lightbackbones-edge"], [python, "-m", "lightbackbones_edge"]):
        command = [*start, "one.onnx", "a.png", "--out", "out"]
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        # twice as large as the input
        assert re.search(r"^  dog +0\.875 +44\.0 +38\.0 +84\.0 +58\.0$", run.stdout, re.MULTILINE), run.stdout
        assert (tmp_path / "out" / "a.png").stat().st_size > 0
        (tmp_path / "out" / "a.png").unlink()
    code = "import lightbackbones_edge; print(lightbackbones_edge.__file__)"
    run = subprocess.run(
        [python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(run.stdout.strip()).is_relative_to(tmp_path / "environment"), "the installed copy, not the checkout"

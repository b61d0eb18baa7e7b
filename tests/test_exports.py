"""Every family in the edge formats that install anywhere: the exported file gives the outputs of the checkpoint.

The command exports, as a user would; the runtimes are called directly. Slower formats: `make export-matrix`.
"""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from detectors import awake_detector
from families import CLASSES, FAMILIES, SMALLEST
from torch import Tensor, nn
from ultralytics import YOLO

pytestmark = pytest.mark.slow

SIZE = (96, 64)  # height, width
OTHER_SIZES = [(64, 96), (128, 160), (32, 64)]

Runtime = Callable[[Path, np.ndarray], np.ndarray]
"""Runs a file on an image (1, 3, H, W), float32, and gives the network's output (1, 4 + classes, N)."""


def family(name: str) -> Any:
    """The tests of a family in one process: they share its checkpoint and what has been exported of it."""
    return pytest.param(name, marks=pytest.mark.xdist_group(f"exports-{name}"))


def write_detector(name: str, path: Path) -> None:
    """The YAML of a detector of few layers: the smallest variant of the family, an upsampling, a Concat and a head.

    Converters and runtimes take time for every layer. Models of cfg/ are exported by test_edge.py, test_commands.py
    and test_yolo_command.py.
    """
    taps = [[0, 1, "Tap", [tap]] for tap in ("P3", "P4", "P5")]
    head = [
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
        [-1, 1, "Conv", [64, 3, 1]],
        [[1, 6, 3], 1, "Detect", ["nc"]],
    ]
    backbone = [[-1, 1, CLASSES[name], [SMALLEST[name]]], *taps]
    path.write_text(yaml.safe_dump({"nc": 10, "backbone": backbone, "head": head}))


@pytest.fixture(scope="module", params=[family(name) for name in FAMILIES])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / f"{request.param}.pt"
    write_detector(request.param, model := path.with_suffix(".yaml"))
    awake_detector(str(model)).save(path)
    return path


_started: list[str] = []
"""Every program that this process has started."""


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("os.system", "os.posix_spawn", "os.exec", "subprocess.Popen"):
        _started.append(str(arguments[:2]))


@pytest.fixture(scope="module", autouse=True)
def _no_installer_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No export installs a package, not even MNN's, whose converter would run pip through the shell."""
    stub = tmp_path_factory.mktemp("bin") / "pip"
    stub.write_text("#!/bin/sh\nexit 1\n")
    stub.chmod(0o755)
    places = list(sys.path)  # setuptools adds its own packages to it when it is imported

    def versions() -> dict[str, str]:
        found = importlib.metadata.distributions(path=places)
        return {package.metadata["Name"]: package.version for package in found}

    before = versions()
    sys.addaudithook(_note)
    _started.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{stub.parent}{os.pathsep}{os.environ['PATH']}")
        for name in [name for name in sys.modules if name.startswith("MNN.tools")]:
            patch.delitem(sys.modules, name)  # what the converter does, it does when it is imported
        yield
    assert not [program for program in _started if re.search(r"\b(pip3?|uv|conda|apt|apt-get)\b", program)]
    assert versions() == before


@pytest.fixture
def _quiet_stdout(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """pnnx writes pages of its passes through the process's own stdout."""
    sys.stdout.flush()
    saved, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    yield
    os.dup2(saved, 1)
    os.close(saved)
    os.close(null)


def image(height: int, width: int) -> Tensor:
    """Blobs and noise, so that neighbours resemble each other as in a photograph."""
    generator = torch.Generator().manual_seed(height * width)
    coarse = torch.rand(1, 3, height // 16, width // 16, generator=generator)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (0.8 * smooth + 0.2 * torch.rand(1, 3, height, width, generator=generator)).clamp(0, 1)


@functools.lru_cache(maxsize=8)
def expected(checkpoint: Path, height: int, width: int) -> Tensor:
    """The output of the unfused checkpoint in PyTorch."""
    with torch.no_grad():
        out: Tensor = YOLO(checkpoint).model.float().eval()(image(height, width))[0]
    return out


@functools.lru_cache(maxsize=32)
def export(checkpoint: Path, *, imgsz: tuple[int, int] = SIZE, **options: str | int | bool) -> Path:
    """The exported file, in a folder of its own whose name contains the suffix of checkpoints."""
    folder = Path(tempfile.mkdtemp(prefix="exported.pt-", dir=checkpoint.parent))
    copied = folder / checkpoint.name
    copied.write_bytes(checkpoint.read_bytes())
    file = Path(YOLO(copied).export(imgsz=list(imgsz), verbose=False, **options))
    assert file.parent == folder
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert b"lightbackbones-export" not in path.read_bytes(), f"{path} contains the name of a temporary folder"
    return file


def check(checkpoint: Path, seen: np.ndarray, x: Tensor, pixels: float = 0.01, score: float = 1e-4) -> None:
    """Boxes within `pixels`, class scores within `score`; and the scores do say something."""
    want = expected(checkpoint, *x.shape[2:])
    got = torch.from_numpy(np.ascontiguousarray(seen)).float()
    assert want[:, 4:].std() > 0.01, "a detector whose scores are all alike would prove nothing"
    torch.testing.assert_close(got[:, :4], want[:, :4], rtol=0, atol=pixels)
    torch.testing.assert_close(got[:, 4:], want[:, 4:], rtol=0, atol=score)


def run_torchscript(file: Path, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        out = torch.jit.load(str(file))(torch.from_numpy(x))
    return (out[0] if isinstance(out, tuple | list) else out).numpy()


def run_onnxruntime(file: Path, x: np.ndarray) -> np.ndarray:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    first = session.get_inputs()[0]
    x = x.astype(np.float16) if first.type == "tensor(float16)" else x
    return np.asarray(session.run(None, {first.name: x})[0])


def run_opencv(file: Path, x: np.ndarray) -> np.ndarray:
    import cv2

    net = cv2.dnn.readNetFromONNX(str(file))
    net.setInput(x)
    return np.asarray(net.forward())


def run_openvino(file: Path, x: np.ndarray) -> np.ndarray:
    openvino = pytest.importorskip("openvino")
    # CPUs with bfloat16 use it unasked, and boxes are then off by more than a pixel.
    model = openvino.Core().compile_model(next(file.glob("*.xml")), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.asarray(model(x)[0])


def run_ncnn(file: Path, x: np.ndarray) -> np.ndarray:
    ncnn = pytest.importorskip("ncnn")
    net = ncnn.Net()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    assert net.load_param(str(file / "model.ncnn.param")) == 0
    assert net.load_model(str(file / "model.ncnn.bin")) == 0
    extractor = net.create_extractor()
    extractor.input(net.input_names()[0], ncnn.Mat(x[0]))
    return np.array(extractor.extract(net.output_names()[0])[1])[None]


def run_mnn(file: Path, x: np.ndarray) -> np.ndarray:
    mnn = pytest.importorskip("MNN")
    manager = mnn.nn.create_runtime_manager(({"precision": "high", "backend": "CPU", "numThread": 1},))
    net = mnn.nn.load_module_from_file(str(file), [], [], runtime_manager=manager, rearrange=True)
    (out,) = net.onForward([mnn.expr.const(np.ascontiguousarray(x).ctypes.data, list(x.shape))])
    return np.array(out.read())


every_runtime = pytest.mark.parametrize(
    ("format", "package", "run"),
    [
        ("torchscript", "torch", run_torchscript),
        ("onnx", "onnx", run_onnxruntime),
        ("onnx", "onnx", run_opencv),
        ("openvino", "openvino", run_openvino),
        ("ncnn", "pnnx", run_ncnn),
        ("mnn", "MNN", run_mnn),
    ],
    ids=["torchscript", "onnx", "onnx-opencv", "openvino", "ncnn", "mnn"],
)


@every_runtime
@pytest.mark.usefixtures("_quiet_stdout")
def test_one_size(checkpoint: Path, format: str, package: str, run: Runtime) -> None:
    pytest.importorskip(package)
    file = export(checkpoint, format=format)
    x = image(*SIZE)
    # MNN approximates the erf in GELU.
    pixels, score = (0.1, 1e-3) if format == "mnn" else (0.01, 1e-4)
    check(checkpoint, run(file, x.numpy()), x, pixels, score)


@pytest.mark.parametrize(
    ("format", "package", "run"),
    [
        ("torchscript", "torch", run_torchscript),
        ("onnx", "onnx", run_onnxruntime),
        ("openvino", "openvino", run_openvino),
    ],
    ids=["torchscript", "onnx", "openvino"],
)
def test_any_size(checkpoint: Path, format: str, package: str, run: Runtime) -> None:
    """`dynamic=True` holds at three sizes that the export has never seen."""
    pytest.importorskip(package)
    file = export(checkpoint, format=format, dynamic=True)
    for size in (SIZE, *OTHER_SIZES):
        x = image(*size)
        check(checkpoint, run(file, x.numpy()), x)


@every_runtime
@pytest.mark.usefixtures("_quiet_stdout")
@pytest.mark.parametrize("checkpoint", [family("parcnet")], indirect=True)
def test_circular_convolutions_of_large_maps(checkpoint: Path, format: str, package: str, run: Runtime) -> None:
    """The form of ParC-Net's convolutions depends on the format and on the map: here are long and short ones."""
    pytest.importorskip(package)
    size = (160, 352)  # maps of 20 x 44, 10 x 22 and 5 x 11
    file = export(checkpoint, imgsz=size, format=format)
    x = image(*size)
    check(checkpoint, run(file, x.numpy()), x)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data YAML of a few images to calibrate with."""
    pytest.importorskip("sklearn")
    from yolo_lightbackbones.datasets.digits import build_digits

    folder = build_digits(tmp_path_factory.mktemp("data") / "digits", train_images=1, val_images=8)
    (data := folder / "data.yaml").write_text(f"path: {folder}\ntrain: images/val\nval: images/val\nnc: 10\n")
    return data


@pytest.mark.parametrize(
    ("format", "run"),
    [("onnx", run_onnxruntime), ("openvino", run_openvino), ("mnn", run_mnn)],
    ids=["onnx", "openvino", "mnn"],
)
def test_int8(checkpoint: Path, format: str, run: Runtime, digits: Path) -> None:
    """Weights take a byte each, and the outputs resemble; what accuracy is lost is measured in docs/exports.md."""
    pytest.importorskip({"onnx": "onnx", "openvino": "nncf", "mnn": "MNN"}[format])
    calibration = {} if format == "mnn" else {"data": str(digits)}  # MNN makes integers of the weights alone
    files = [export(checkpoint, format=format), export(checkpoint, format=format, quantize=8, **calibration)]
    whole, int8 = (sum(f.stat().st_size for f in [path, *path.rglob("*")] if f.is_file()) for path in files)
    assert int8 < 0.4 * whole
    x = image(*SIZE)
    want, seen = expected(checkpoint, *SIZE), torch.from_numpy(run(files[1], x.numpy()))
    assert not torch.equal(seen, want)
    for values, least in ((slice(0, 4), 0.99), (slice(4, None), 0.85)):  # boxes, scores
        correlation = torch.corrcoef(torch.stack([seen[:, values].flatten(), want[:, values].flatten()]))[0, 1]
        assert correlation > least


def test_half_precision(checkpoint: Path) -> None:
    onnx = pytest.importorskip("onnx")
    file = export(checkpoint, format="onnx", quantize=16)
    weights = [w for w in onnx.load(file).graph.initializer if len(w.dims) == 4]
    assert len(weights) > 20
    assert {w.data_type for w in weights} == {onnx.TensorProto.FLOAT16}
    x = image(*SIZE)
    check(checkpoint, run_onnxruntime(file, x.numpy()), x, pixels=0.5, score=0.02)


def test_a_fused_a_training_and_a_plain_model_export_the_same(checkpoint: Path, tmp_path: Path) -> None:
    x = image(*SIZE)
    outputs = []
    for state in ("plain", "fused", "training"):
        detector = YOLO(checkpoint)
        before = copy.deepcopy(detector.model.state_dict())
        if state == "fused":
            detector.fuse()
        elif state == "training":
            detector.model.train()
        (tmp_path / state).mkdir()
        detector.model.pt_path = str(tmp_path / state / "model.pt")
        file = Path(detector.export(format="torchscript", imgsz=list(SIZE), verbose=False))
        outputs.append(run_torchscript(file, x.numpy()))
        if state == "plain":
            after = detector.model.state_dict()
            assert all(torch.equal(before[key], after[key]) for key in before), "exporting leaves the model as it was"
    for other in outputs[1:]:
        np.testing.assert_allclose(other, outputs[0], rtol=0, atol=1e-3)

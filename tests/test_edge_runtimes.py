"""The torch-free package: every runtime gives the boxes of `yolo predict`, where torch cannot be imported."""

from __future__ import annotations

import json
import re
import sys
import types
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from edge_exports import IMGSZ, PATIENT, PICTURES, export, run_without_torch, write_pictures
from exact_runtimes import exact_openvino, single_threaded_ncnn
from lightbackbones_edge import Detector, runtimes

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export("yolov5n.yaml", tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def end_to_end(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export("yolo26n.yaml", tmp_path_factory.mktemp("end_to_end"), nms=False)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of this package's own detectors."""
    return export("yolov5n_edgevit.yaml", tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def test_runs_without_torch_and_ultralytics(plain: Path, pictures: Path, tmp_path: Path) -> None:
    printed = run_without_torch(plain, pictures, "--out", tmp_path / "out")
    for source in pictures.iterdir():
        target = tmp_path / "out" / source.name
        assert f"saved as {target}" in printed
        before, after = cv2.imread(str(source)), cv2.imread(str(target))
        assert after.shape == before.shape
        assert (after != before).any(), "boxes were drawn"
    assert "a 'quoted' n" in printed


# By name: Ultralytics' format, and the packages that exporting and running it take.
RUNTIMES = {
    "opencv": ("onnx", []),
    "openvino": ("openvino", ["openvino"]),
    "ncnn": ("ncnn", ["ncnn", "pnnx"]),
    "mnn": ("mnn", ["MNN"]),
    "litert": ("litert", ["ai_edge_litert", "litert_torch"]),
    "executorch": ("executorch", ["executorch"]),
}


def convert(runtime: str, onnx_file: Path, folder: Path) -> Path:
    """Export the network that `onnx_file` came from for another runtime."""
    from ultralytics import YOLO

    from yolo_lightbackbones.plugin import environment

    export_format, packages = RUNTIMES[runtime]
    for package in packages:
        pytest.importorskip(package)
    if export_format == "onnx":
        return onnx_file
    weights = folder / "model.pt"
    weights.write_bytes(onnx_file.with_suffix(".pt").read_bytes())
    # This network is stock, and MNN's converter then runs `pip install` and contacts a server: let it find a stand-in.
    with pytest.MonkeyPatch.context() as patch, environment.silenced():
        for name, value in PATIENT.items():
            patch.setenv(name, value)
        return Path(YOLO(weights).export(format=export_format, imgsz=IMGSZ))


@pytest.mark.parametrize(
    ("runtime", "export_name"),
    [
        ("opencv", "plain"),
        ("opencv", "end_to_end"),
        ("opencv", "own"),
        ("openvino", "plain"),
        ("ncnn", "plain"),
        ("ncnn", "own"),
        ("mnn", "plain"),
        pytest.param("litert", "plain", marks=pytest.mark.slow),
    ],
)
def test_every_runtime_gives_the_boxes_of_yolo_predict(
    runtime: str,
    export_name: str,
    *,
    pictures: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ultralytics import YOLO

    file = convert(runtime, request.getfixturevalue(export_name), tmp_path)
    arguments = ["--runtime", runtime] if runtime == "opencv" else []  # the others follow from the file
    printed = run_without_torch(file, pictures, "--conf", 0.1, "--iou", 0.5, "--out", tmp_path / "out", *arguments)
    blocks = re.split(r"^(?=.* found in .* saved as )", printed, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(PICTURES)

    if runtime == "openvino":
        exact_openvino(monkeypatch)
    if runtime == "ncnn":
        single_threaded_ncnn(monkeypatch)
    reference = YOLO(file, task="detect")
    total = 0
    for path, block in zip(sorted(pictures.iterdir()), blocks, strict=True):
        expected = reference.predict(path, conf=0.1, iou=0.5, verbose=False, dnn=runtime == "opencv")[0].boxes
        found = re.findall(r"^  kind (\d+), a 'quoted' näme +(.+)$", block, flags=re.MULTILINE)
        numbers = np.array([text.split() for _, text in found], np.float32).reshape(-1, 5)
        np.testing.assert_array_equal([int(kind) for kind, _ in found], expected.cls)
        np.testing.assert_allclose(numbers[:, 0], expected.conf, atol=0.001)  # printed to 0.001 and 0.1 px
        np.testing.assert_allclose(numbers[:, 1:], expected.xyxy, atol=0.1)
        total += len(found)
    assert total > 50, "the comparison saw boxes"


@pytest.mark.slow
def test_executorch_gives_the_boxes_of_yolo_predict(plain: Path, pictures: Path, tmp_path: Path) -> None:
    """In this process: its Python runtime is the one that takes tensors of torch."""
    from ultralytics import YOLO

    file = convert("executorch", plain, tmp_path)
    detector, reference, total = Detector(file), YOLO(file, task="detect"), 0
    assert detector.size == IMGSZ
    for path in sorted(pictures.iterdir()):
        expected = reference.predict(path, conf=0.1, iou=0.5, verbose=False)[0].boxes
        found = detector(cv2.imread(str(path)), conf=0.1, iou=0.5)
        np.testing.assert_array_equal(found.classes, expected.cls)
        np.testing.assert_allclose(found.scores, expected.conf, atol=1e-4)
        np.testing.assert_allclose(found.boxes, expected.xyxy, atol=0.05)
        total += len(found.scores)
    assert total > 50, "the comparison saw boxes"


def test_opencv_refuses_exports_with_nms(plain: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(plain)
    (args,) = (item for item in model.metadata_props if item.key == "args")
    args.value = args.value.removesuffix("}") + ", 'nms': True}"
    onnx.save(model, tmp_path / "nms.onnx")
    with pytest.raises(ValueError, match="nms=False"):
        runtimes.load(tmp_path / "nms.onnx", "opencv")


class FakeInterpreter:
    """LiteRT's interpreter over a network that answers with fixed outputs and notes its input.

    Outputs are told in another order than the signature's, which numbers them; without `signed` there is none.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: Sequence[np.ndarray],
        scales: Sequence[tuple[float, int]] = (),
        *,
        signed: bool = True,
    ) -> None:
        dtype, (scale_in, *others) = (np.int8, scales) if scales else (np.float32, [(0.0, 0)] * (len(outputs) + 1))
        self.input = {"index": 3, "shape": np.array(shape), "dtype": dtype, "quantization": scale_in}
        self.outputs = {
            f"output_{number}": {"index": 5 + number, "dtype": dtype, "quantization": scale}
            for number, scale in enumerate(others)
        }
        self.answers, self.seen, self.signed = dict(enumerate(outputs, 5)), np.empty(0), signed

    def __call__(self, path: str, num_threads: int | None = None) -> FakeInterpreter:
        return self  # it stands for the class as well

    def allocate_tensors(self) -> None: ...

    def invoke(self) -> None: ...

    def get_input_details(self) -> list[dict[str, Any]]:
        return [self.input]

    def get_output_details(self) -> list[dict[str, Any]]:
        return list(self.outputs.values())[::-1]

    def get_signature_list(self) -> dict[str, Any]:
        return {"serving_default": {}} if self.signed else {}

    def get_signature_runner(self) -> Any:
        return types.SimpleNamespace(get_output_details=lambda: dict(list(self.outputs.items())[::-1]))

    def set_tensor(self, index: int, value: np.ndarray) -> None:
        assert (index, value.shape, value.dtype) == (3, tuple(self.input["shape"]), self.input["dtype"])
        self.seen = value

    def get_tensor(self, index: int) -> np.ndarray:
        return self.answers[index]


def load_litert(interpreter: FakeInterpreter, folder: Path, monkeypatch: pytest.MonkeyPatch, **metadata: object) -> Any:
    module = types.ModuleType("ai_edge_litert.interpreter")
    module.Interpreter = interpreter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ai_edge_litert", types.ModuleType("ai_edge_litert"))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", module)
    file = folder / "model.tflite"
    file.write_bytes(b"a flatbuffer")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("metadata.json", json.dumps({"names": {"0": "cat"}, "imgsz": IMGSZ, **metadata}))
    return runtimes.load(file)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("final", [False, True])
def test_litert_layouts_and_integers(
    channels_last: bool, integers: bool, final: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    height, width = IMGSZ
    shape = (1, height, width, 3) if channels_last else (1, 3, height, width)
    # A box as shares of the input, 0.5 0.25 0.125 0.25, and as pixels of it.
    shares = np.float32([0.5, 0.25, 0.125, 0.25, 0.75, 0])
    pixels = shares * np.float32([width, height, width, height, 1, 1])
    in_shares = channels_last or not final  # what the exporters write: see Ultralytics' LiteRTBackend
    answer = (shares if in_shares else pixels)[:, None].repeat(7, axis=1)[None]
    answer = answer.transpose(0, 2, 1) if final else answer
    steps = 1.0 if not in_shares else 1 / 64
    scales = ((1 / 255, -128), (steps, -20)) if integers else ()
    raw = (answer / steps - 20).clip(-128, 127).astype(np.int8) if integers else answer
    interpreter = FakeInterpreter(shape, [raw.copy()], scales)
    runtime = load_litert(interpreter, tmp_path, monkeypatch, end2end=final)
    assert (runtime.info.height, runtime.info.width, runtime.info.names) == (height, width, {0: "cat"})

    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    (output,) = runtime(image).values()
    expected = image[None].astype(np.float32)
    expected = expected if channels_last else expected.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(interpreter.seen, expected - 128 if integers else expected / 255, atol=1e-6)
    row = output[0, 0] if final else output[0, :, 0]
    np.testing.assert_allclose(row[:4], pixels[:4], atol=1e-4)
    np.testing.assert_array_equal(interpreter.answers[5], raw, "the interpreter's own memory is left alone")


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_litert_with_a_raw_head(
    channels_last: bool, integers: bool, signed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    height, width = IMGSZ
    classes = 64 if signed else 1  # with 64 only the signature's order tells boxes from classes
    rng = np.random.default_rng(0)
    maps = [
        rng.integers(-128, 128, (1, channels, height // stride, width // stride)).astype(np.int8)
        for stride in (8, 16, 32)
        for channels in (64, classes)
    ]
    scales = [(1 / 255, -128), *((0.01 * number, number) for number in range(1, 7))]  # each output has its own
    answers = [values.transpose(0, 2, 3, 1) for values in maps] if channels_last else maps
    interpreter = FakeInterpreter(
        (1, height, width, 3) if channels_last else (1, 3, height, width),
        answers if integers else [values.astype(np.float32) for values in answers],
        scales if integers else (),
        signed=signed,
    )
    names = {str(number): f"kind {number}" for number in range(classes)}
    # The values of end2end and batch are those of every raw file.
    raw = {"raw_head": 1, "raw_strides": [8, 16, 32], "raw_reg_max": 16, "raw_end2end": 0, "raw_max_det": 300}
    runtime = load_litert(interpreter, tmp_path, monkeypatch, **raw, names=names, end2end=True, batch="a sentence")
    assert runtime.in_order == signed
    found = runtime.info.raw.sorted(runtime(np.zeros((*IMGSZ, 3), np.uint8)), IMGSZ, in_order=runtime.in_order)
    for values, answer, (scale, zero) in zip(found, maps, scales[1:], strict=True):
        np.testing.assert_allclose(
            values, (answer.astype(np.float32) - zero) * scale if integers else answer, rtol=1e-5
        )


# --- RKNN: no board, a stand-in that runs the ONNX file ---------------------------------------------------------------


class Board:
    """RKNN-Lite2's interface, over the network of an ONNX file, whose float outputs it has like Rockchip's."""

    def __init__(self, onnx_file: Path, *, shares: bool, loads: int = 0, starts: int = 0, gives: bool = True) -> None:
        self.onnx_file, self.shares, self.loads, self.starts, self.gives = onnx_file, shares, loads, starts, gives

    def __call__(self) -> Board:
        return self  # it stands for the class as well

    def load_rknn(self, path: str) -> int:
        assert path.endswith("model-rk3588.rknn")
        return self.loads

    def init_runtime(self) -> int:
        return self.starts

    def inference(self, inputs: list[np.ndarray]) -> list[np.ndarray] | None:
        import onnxruntime

        (image,) = inputs
        assert (image.dtype, image.shape) == (np.uint8, (1, *IMGSZ, 3))
        assert image.flags.c_contiguous
        batch = image.transpose(0, 3, 1, 2) / np.float32(255)
        session = onnxruntime.InferenceSession(self.onnx_file)
        (output,) = session.run(None, {"images": batch})
        if self.shares:  # of INT8 exports
            output[:, :4] /= np.float32([IMGSZ[1], IMGSZ[0]] * 2)[:, None]
        return [output] if self.gives else None


def load_rknn(board: Board, folder: Path, monkeypatch: pytest.MonkeyPatch, **metadata: object) -> Detector:
    from ultralytics.utils import YAML

    module = types.ModuleType("rknnlite.api")
    module.RKNNLite = board  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rknnlite", types.ModuleType("rknnlite"))
    monkeypatch.setitem(sys.modules, "rknnlite.api", module)
    (folder / "model-rk3588.rknn").touch()
    YAML.save(folder / "metadata.yaml", {"imgsz": list(IMGSZ), "end2end": False, "args": {"quantize": 16}, **metadata})
    return Detector(folder)


@pytest.mark.parametrize("quantize", [16, 8])
@pytest.mark.parametrize("export_name", ["plain", "end_to_end"])
def test_rknn_gives_the_boxes_of_the_same_network(
    quantize: int, export_name: str, *, pictures: Path, tmp_path: Path, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    file = request.getfixturevalue(export_name)
    final = export_name == "end_to_end"
    board = Board(file, shares=quantize == 8 and not final)
    detector = load_rknn(board, tmp_path, monkeypatch, args={"quantize": quantize}, end2end=final)
    for path in sorted(pictures.iterdir()):
        image = cv2.imread(str(path))
        expected = Detector(file)(image)  # which test_edge.py compares with `yolo predict`
        found = detector(image)
        assert len(expected.scores)
        np.testing.assert_array_equal(found.classes, expected.classes)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)


def test_what_rknn_refuses_is_one_sentence(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"RKNN-Lite2 cannot load .*model-rk3588\.rknn \(code -1\)"):
        load_rknn(Board(plain, shares=False, loads=-1), tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"cannot start .*\(code -2\): it runs on the chip that it was exported for"):
        load_rknn(Board(plain, shares=False, starts=-2), tmp_path, monkeypatch)
    detector = load_rknn(Board(plain, shares=False, gives=False), tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="gave no outputs"):
        detector(np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "metadata.yaml").unlink()
    with pytest.raises(ValueError, match=r"keep metadata\.yaml beside it"):
        Detector(tmp_path)

"""The torch-free example: its boxes are those of `yolo predict`, and it runs where torch is not installed."""

from __future__ import annotations

import json
import re
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from edge_exports import IMGSZ, PATIENT, PICTURES, export, importable, run_without_torch, write_pictures
from exact_runtimes import exact_openvino, single_threaded_ncnn

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module", autouse=True)
def edge_on_path() -> Iterator[None]:
    with importable():
        yield


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


# --- boxes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("export_name", ["plain", "end_to_end"])
@pytest.mark.parametrize(("conf", "iou"), [(0.25, 0.7), (0.05, 0.3)])
def test_boxes_equal_those_of_yolo_predict(
    export_name: str, conf: float, iou: float, pictures: Path, request: pytest.FixtureRequest
) -> None:
    import runtimes
    from detection import detect
    from ultralytics import YOLO

    file = request.getfixturevalue(export_name)
    runtime, reference = runtimes.load(file), YOLO(file, task="detect")
    total = 0
    for path in sorted(pictures.iterdir()):
        image = cv2.imread(str(path))
        found = detect(runtime, image, conf=conf, iou=iou)
        expected = reference.predict(image, conf=conf, iou=iou, verbose=False)[0].boxes
        np.testing.assert_allclose(found.scores, expected.conf, atol=1e-4)
        np.testing.assert_allclose(found.boxes, expected.xyxy, atol=0.05)
        np.testing.assert_array_equal(found.class_ids, expected.cls)
        total += len(found.scores)
    assert total > 50, "the comparison saw boxes"
    assert runtime.info.names == reference.names


@pytest.mark.parametrize("shape", PICTURES)
def test_letterbox_equals_ultralytics(shape: tuple[int, int]) -> None:
    from detection import Letterbox, ModelInfo
    from ultralytics.data.augment import LetterBox

    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    batch = Letterbox.fit(image, ModelInfo(*IMGSZ, names={})).apply(image)
    expected = LetterBox(IMGSZ)(image=image)[..., ::-1].transpose(2, 0, 1)[None] / 255
    assert batch.shape == (1, 3, *IMGSZ)
    assert batch.dtype == np.float32
    np.testing.assert_allclose(batch, expected, atol=1e-6)


def test_nms_works_within_classes_and_on_hand_counted_overlaps() -> None:
    from detection import Detections, non_max_suppression

    boxes = np.array(
        [[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 8], [5, 0, 15, 10], [3, 3, 3, 3], [3, 3, 3, 3]], np.float32
    )
    # Overlaps with the first: 0.8, 0.8 (another class), 1/3, and two boxes without any area.
    candidates = Detections(boxes, np.linspace(0.9, 0.4, 6, dtype=np.float32), np.array([0, 0, 1, 0, 0, 0]))

    def kept(iou: float) -> list[float]:
        return non_max_suppression(candidates, iou).scores.round(1).tolist()

    assert kept(0.7) == pytest.approx([0.9, 0.7, 0.6, 0.5, 0.4])
    assert kept(0.81) == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert kept(0.33) == pytest.approx([0.9, 0.7, 0.5, 0.4])


def test_scores_lie_above_the_limit() -> None:
    from detection import decode

    output = np.zeros((1, 6, 10), np.float32)  # two classes, ten boxes at one place
    output[0, :4] = [[50], [40], [20], [10]]
    output[0, 5, :3] = 0.25, 0.9, 0.26
    found = decode(output, conf=0.25, iou=1.0)
    np.testing.assert_array_equal(found.scores, np.float32([0.9, 0.26]))
    np.testing.assert_array_equal(found.class_ids, [1, 1])
    np.testing.assert_array_equal(found.boxes, [[40, 35, 60, 45]] * 2)


def test_class_names_are_data_and_never_code(tmp_path: Path) -> None:
    from detection import ModelInfo

    trap = f"__import__('pathlib').Path({str(tmp_path / 'trap')!r}).touch()"
    with pytest.raises(ValueError, match="damaged: names="):
        ModelInfo.from_metadata({"names": trap, "imgsz": "[96, 128]"})
    assert not (tmp_path / "trap").exists()


def test_model_info() -> None:
    from detection import ModelInfo

    info = ModelInfo.from_metadata({"names": "{0: 'cat'}", "imgsz": "[96, 128]", "task": "detect", "channels": "3"})
    assert info == ModelInfo(96, 128, {0: "cat"})
    assert (info.name(0), info.name(7)) == ("cat", "7")
    assert ModelInfo.from_metadata({}, input_shape=(32, 64)) == ModelInfo(32, 64, {}), "exports without metadata work"
    with pytest.raises(ValueError, match="'segment'"):
        ModelInfo.from_metadata({"task": "segment", "imgsz": "[96, 128]"})
    with pytest.raises(ValueError, match="1 channels"):
        ModelInfo.from_metadata({"channels": "1", "imgsz": "[96, 128]"})
    with pytest.raises(ValueError, match="imgsz"):
        ModelInfo.from_metadata({"names": "{0: 'cat'}"})


@pytest.mark.parametrize("shape", [(1, 4, 252), (2, 84, 252), (84, 252), (1, 84, 8, 8)])
def test_an_unknown_output_is_refused(shape: tuple[int, ...]) -> None:
    from detection import decode

    with pytest.raises(ValueError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
        decode(np.zeros(shape, np.float32), conf=0.25, iou=0.7)


def test_a_picture_without_objects(pictures: Path) -> None:
    from detection import ModelInfo, detect, draw

    class Blind:
        info = ModelInfo(*IMGSZ, names={})

        def __call__(self, batch: np.ndarray) -> np.ndarray:
            return np.zeros((1, 84, 252), np.float32)

    image = cv2.imread(str(pictures / "320x320.png"))
    found = detect(Blind(), image)
    assert found.boxes.shape == (0, 4)
    np.testing.assert_array_equal(draw(image, found, Blind.info), image)


def test_runs_without_torch_and_ultralytics(plain: Path, pictures: Path, tmp_path: Path) -> None:
    printed = run_without_torch(plain, pictures, "--out", tmp_path / "out")
    for source in pictures.iterdir():
        target = tmp_path / "out" / source.name
        assert f"saved as {target}" in printed
        before, after = cv2.imread(str(source)), cv2.imread(str(target))
        assert after.shape == before.shape
        assert (after != before).any(), "boxes were drawn"
    assert "a 'quoted' n" in printed


# --- other runtimes ---------------------------------------------------------------------------------------------------


# By name: Ultralytics' format, and the packages that exporting and running it take.
RUNTIMES = {
    "opencv": ("onnx", []),
    "openvino": ("openvino", ["openvino"]),
    "ncnn": ("ncnn", ["ncnn", "pnnx"]),
    "mnn": ("mnn", ["MNN"]),
    "litert": ("litert", ["ai_edge_litert", "litert_torch"]),
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


def test_opencv_refuses_exports_with_nms(plain: Path, tmp_path: Path) -> None:
    import onnx
    import runtimes

    model = onnx.load(plain)
    (args,) = (item for item in model.metadata_props if item.key == "args")
    args.value = args.value.removesuffix("}") + ", 'nms': True}"
    onnx.save(model, tmp_path / "nms.onnx")
    with pytest.raises(ValueError, match="nms=False"):
        runtimes.load(tmp_path / "nms.onnx", "opencv")


class FakeInterpreter:
    """LiteRT's interpreter over a network that answers with a fixed output and notes its input."""

    def __init__(self, shape: tuple[int, ...], output: np.ndarray, scales: tuple[Any, Any] | None = None) -> None:
        dtype, (scale_in, scale_out) = (np.int8, scales) if scales else (np.float32, ((0.0, 0), (0.0, 0)))
        self.input = {"index": 3, "shape": np.array(shape), "dtype": dtype, "quantization": scale_in}
        self.output = {"index": 5, "shape": np.array(output.shape), "dtype": dtype, "quantization": scale_out}
        self.answer, self.seen = output, np.empty(0)

    def __call__(self, path: str, num_threads: int | None = None) -> FakeInterpreter:
        return self  # it stands for the class as well

    def allocate_tensors(self) -> None: ...

    def invoke(self) -> None: ...

    def get_input_details(self) -> list[dict[str, Any]]:
        return [self.input]

    def get_output_details(self) -> list[dict[str, Any]]:
        return [self.output]

    def set_tensor(self, index: int, value: np.ndarray) -> None:
        assert (index, value.shape, value.dtype) == (3, tuple(self.input["shape"]), self.input["dtype"])
        self.seen = value

    def get_tensor(self, index: int) -> np.ndarray:
        assert index == 5
        return self.answer


def load_litert(interpreter: FakeInterpreter, folder: Path, monkeypatch: pytest.MonkeyPatch, **metadata: object) -> Any:
    import runtimes

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
    scales = ((1 / 255, -128), (steps, -20)) if integers else None
    raw = (answer / steps - 20).clip(-128, 127).astype(np.int8) if integers else answer
    interpreter = FakeInterpreter(shape, raw.copy(), scales)
    runtime = load_litert(interpreter, tmp_path, monkeypatch, end2end=final)
    assert (runtime.info.height, runtime.info.width, runtime.info.names) == (height, width, {0: "cat"})

    pixel = np.random.default_rng(0).integers(0, 256, (1, 3, height, width)).astype(np.float32)
    output = runtime(pixel / np.float32(255))
    expected = pixel.transpose(0, 2, 3, 1) if channels_last else pixel
    np.testing.assert_allclose(interpreter.seen, expected - 128 if integers else expected / 255, atol=1e-6)
    row = output[0, 0] if final else output[0, :, 0]
    np.testing.assert_allclose(row[:4], pixels[:4], atol=1e-4)
    np.testing.assert_array_equal(interpreter.answer, raw, "the interpreter's own memory is left alone")

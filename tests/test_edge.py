"""The torch-free example: its boxes are those of `yolo predict`, and it runs where torch is not installed."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

EDGE = Path(__file__).parents[1] / "examples" / "edge"
IMGSZ = (96, 128)  # height, width: unequal, so that mixing them up shows
# Height and width of pictures: enlarged and reduced, borders at the sides and above, even and odd ones.
PICTURES = [(96, 128), (320, 320), (62, 203), (333, 100), (480, 641), (40, 50)]
# ncnn's threads wait for one another at full speed; on a machine with other work that takes seconds for each picture.
PATIENT = {"OMP_WAIT_POLICY": "passive"}


@pytest.fixture(scope="module", autouse=True)
def edge_on_path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EDGE)
        yield


def export(architecture: str, folder: Path, **options: object) -> Path:
    """An ONNX file of a network with random weights whose many boxes depend on the picture."""
    import torch
    from ultralytics import YOLO

    torch.manual_seed(0)
    model = YOLO(architecture, task="detect")
    for name, branch in model.model.model[-1].named_children():
        for level in (
            branch if name.endswith(("cv2", "cv3")) else ()
        ):  # boxes and classes; end-to-end heads have two each
            torch.nn.init.normal_(level[-1].weight, std=0.3)
            torch.nn.init.constant_(level[-1].bias, -5.0 if name.endswith("cv3") else 2.0)
    # Fresh batch norms let the signal fade away on its way down, and with it every trace of the picture: let them
    # normalise one batch of pictures, and keep its statistics.
    for module in model.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        coarse = torch.rand(16, 3, 6, 8)
        model.model.train()(torch.nn.functional.interpolate(coarse, IMGSZ, mode="bicubic").clamp(0, 1))
    model.model.eval().names = {i: f"kind {i}, a 'quoted' näme" for i in range(80)}
    model.save(folder / "model.pt")
    return Path(YOLO(folder / "model.pt").export(format="onnx", imgsz=IMGSZ, **options))


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
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for height, width in PICTURES:
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
        picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{height}x{width}.png"), picture)
    return folder


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


def run_without_torch(*args: object) -> str:
    """What `detect.py` prints in a process where training's libraries cannot be imported."""
    unimportable = dict.fromkeys(("torch", "torchvision", "ultralytics", "onnx", "yaml", "yolo_lightbackbones"))
    code = f"import sys; sys.path.insert(0, {str(EDGE)!r}); sys.modules.update({unimportable})"
    code += "; import detect; detect.main()"
    command = [sys.executable, "-c", code, *map(str, args)]
    # As bytes first: runtimes greet in whatever encoding they like.
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", **PATIENT}
    run = subprocess.run(command, capture_output=True, timeout=60, check=False, env=environment)
    assert run.returncode == 0, run.stderr.decode(errors="replace")
    return run.stdout.decode()


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
}


def convert(runtime: str, onnx_file: Path, folder: Path) -> Path:
    """Export the network that `onnx_file` came from for another runtime."""
    from ultralytics import YOLO

    from yolo_lightbackbones.plugin import exporting

    export_format, packages = RUNTIMES[runtime]
    for package in packages:
        pytest.importorskip(package)
    if export_format == "onnx":
        return onnx_file
    weights = folder / "model.pt"
    weights.write_bytes(onnx_file.with_suffix(".pt").read_bytes())
    # This network is stock, and MNN's converter then runs `pip install` and contacts a server: let it find a stand-in.
    with pytest.MonkeyPatch.context() as patch, exporting.no_hidden_installs():
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
        float32_openvino(monkeypatch)
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


def float32_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left alone, OpenVINO computes in bfloat16 where the CPU can, and `yolo predict` leaves it alone."""
    import openvino

    original = openvino.Core.compile_model

    def compile_model(core: openvino.Core, model: Any, device_name: str, config: dict[str, Any]) -> Any:
        return original(core, model, device_name, {**config, "INFERENCE_PRECISION_HINT": "f32"})

    monkeypatch.setattr(openvino.Core, "compile_model", compile_model)


def single_threaded_ncnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As PATIENT, for this process, whose OpenMP is long at work."""
    import ncnn

    original = ncnn.Net

    def net() -> ncnn.Net:
        made = original()
        made.opt.num_threads = 1
        return made

    monkeypatch.setattr(ncnn, "Net", net)


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
    import metadata
    from ultralytics.utils import YAML

    values: dict[str, Any] = {
        "description": "Trained on: names:\n0: nothing " * 20,
        "date": "2026-01-01T00:00:00",
        "stride": 32,
        "task": "detect",
        "imgsz": list(IMGSZ),
        "names": dict(enumerate(NAMES)),
        "args": {"batch": 1, "names": None, "nms": False},
        "kpt_shape": [17, 3],
        "channels": 3,
        "end2end": False,
    }
    file = tmp_path / "metadata.yaml"
    YAML.save(file, values)
    assert YAML.load(file) == values
    assert metadata.from_yaml(file) == {key: values[key] for key in metadata.KEYS}
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
    import metadata

    (tmp_path / "metadata.yaml").write_text(text)
    key, _, _ = text.partition(":")
    with pytest.raises(ValueError, match=f"damaged at '{key}'"):
        metadata.from_yaml(tmp_path / "metadata.yaml")


def test_metadata_of_onnx_without_onnx(plain: Path, tmp_path: Path) -> None:
    import metadata
    import onnx

    assert metadata.from_onnx(plain) == {item.key: item.value for item in onnx.load(plain).metadata_props}
    (tmp_path / "cut.onnx").write_bytes(plain.read_bytes()[:-7])
    with pytest.raises(ValueError, match="not an ONNX file"):
        metadata.from_onnx(tmp_path / "cut.onnx")


def test_metadata_of_older_tflite_files(tmp_path: Path) -> None:
    import metadata

    file = tmp_path / "model.tflite"
    file.write_bytes(b"a flatbuffer")
    assert metadata.from_zip(file) == {}
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("labels.txt", str({"names": {0: "cat"}, "imgsz": [96, 128]}))
    assert metadata.from_zip(file) == {"names": {0: "cat"}, "imgsz": [96, 128]}


def cli(monkeypatch: pytest.MonkeyPatch, *args: object) -> None:
    import detect

    monkeypatch.setattr(sys, "argv", ["detect.py", *map(str, args)])
    detect.main()


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import detect

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"a\.png could not be written: No space left on device\.$"):
        detect.save(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))


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
        ("model.onnx text.onnx", "has no picture or video"),
        ("model.onnx picture.png --runtime ncnn", "ncnn runs .param files"),
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
    ("name", "modules", "package"),
    [
        ("model.onnx", "onnxruntime", "onnxruntime"),
        ("model.xml", "openvino", "openvino"),
        ("model.ncnn.param", "ncnn", "ncnn"),
        ("model.mnn", "MNN", "MNN"),
        ("model.tflite", "ai_edge_litert tflite_runtime", "ai-edge-litert"),
    ],
)
def test_missing_runtime(
    name: str,
    modules: str,
    package: str,
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
    assert capsys.readouterr().err == f"error: Running {name} needs {package}: pip install {package}\n"


@pytest.mark.parametrize(
    ("name", "module"),
    [("m.xml", "openvino"), ("m.ncnn.param", "ncnn"), ("m.mnn", "MNN"), ("m.tflite", "ai_edge_litert.interpreter")],
)
def test_a_damaged_model(name: str, module: str, tmp_path: Path) -> None:
    import runtimes

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

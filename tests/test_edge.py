"""The torch-free example: its boxes are those of `yolo predict`, and it runs where torch is not installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

EDGE = Path(__file__).parents[1] / "examples" / "edge"
IMGSZ = (96, 128)  # height, width: unequal, so that mixing them up shows
# Height and width of pictures: enlarged and reduced, borders at the sides and above, even and odd ones.
PICTURES = [(96, 128), (320, 320), (62, 203), (333, 100), (480, 641), (40, 50)]


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


def test_runs_without_torch_and_ultralytics(plain: Path, pictures: Path, tmp_path: Path) -> None:
    unimportable = dict.fromkeys(("torch", "torchvision", "ultralytics", "onnx"))
    code = f"import sys; sys.path.insert(0, {str(EDGE)!r}); sys.modules.update({unimportable})"
    code += "; import detect; detect.main()"
    command = [sys.executable, "-c", code, str(plain), str(pictures), "--out", str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    for source in pictures.iterdir():
        target = tmp_path / "out" / source.name
        assert f"saved as {target}" in run.stdout
        before, after = cv2.imread(str(source)), cv2.imread(str(target))
        assert after.shape == before.shape
        assert (after != before).any(), "boxes were drawn"
    assert "a 'quoted' n" in run.stdout


def cli(monkeypatch: pytest.MonkeyPatch, *args: object) -> None:
    import detect

    monkeypatch.setattr(sys, "argv", ["detect.py", *map(str, args)])
    detect.main()


def test_video(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no video")
    for level in (0, 100, 200):
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    cli(monkeypatch, plain, video, "--out", tmp_path / "out")
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


def test_missing_onnxruntime(
    plain: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SystemExit):
        cli(monkeypatch, plain, pictures, "--out", pictures.parent / "out")
    assert "pip install onnxruntime" in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--conf", "1.5"), ("--iou", "-1"), ("--conf", "high")])
def test_shares_out_of_range(
    option: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli(monkeypatch, "model.onnx", "picture.jpg", *option)
    assert option[1] in capsys.readouterr().err

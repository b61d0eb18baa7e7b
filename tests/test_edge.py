"""The torch-free package: its boxes are those of `yolo predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from edge_exports import IMGSZ, PICTURES, export, write_pictures
from lightbackbones_edge.boxes import Detections, decode, non_max_suppression
from lightbackbones_edge.detector import Detector, detect
from lightbackbones_edge.drawing import draw
from lightbackbones_edge.info import ModelInfo
from lightbackbones_edge.letterbox import Letterbox
from lightbackbones_edge.runtimes.base import as_batch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export("yolov5n.yaml", tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def end_to_end(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export("yolo26n.yaml", tmp_path_factory.mktemp("end_to_end"), nms=False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


# --- boxes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("export_name", ["plain", "end_to_end"])
@pytest.mark.parametrize(("conf", "iou"), [(0.25, 0.7), (0.05, 0.3)])
def test_boxes_equal_those_of_yolo_predict(
    export_name: str, conf: float, iou: float, pictures: Path, request: pytest.FixtureRequest
) -> None:
    from ultralytics import YOLO

    file = request.getfixturevalue(export_name)
    detector, reference = Detector(file), YOLO(file, task="detect")
    total = 0
    for path in sorted(pictures.iterdir()):
        image = cv2.imread(str(path))
        found = detector(image, conf=conf, iou=iou)
        expected = reference.predict(image, conf=conf, iou=iou, verbose=False)[0].boxes
        np.testing.assert_allclose(found.scores, expected.conf, atol=1e-4)
        np.testing.assert_allclose(found.boxes, expected.xyxy, atol=0.05)
        np.testing.assert_array_equal(found.classes, expected.cls)
        total += len(found.scores)
    assert total > 50, "the comparison saw boxes"
    assert detector.names == reference.names
    assert detector.size == IMGSZ


@pytest.mark.parametrize("shape", PICTURES)
def test_letterbox_equals_ultralytics(shape: tuple[int, int]) -> None:
    from ultralytics.data.augment import LetterBox

    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    batch = as_batch(Letterbox.fit(image, IMGSZ).apply(image))
    expected = LetterBox(IMGSZ)(image=image)[..., ::-1].transpose(2, 0, 1)[None] / 255
    assert batch.shape == (1, 3, *IMGSZ)
    assert batch.dtype == np.float32
    np.testing.assert_allclose(batch, expected, atol=1e-6)


def test_nms_works_within_classes_and_on_hand_counted_overlaps() -> None:
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
    output = np.zeros((1, 6, 10), np.float32)  # two classes, ten boxes at one place
    output[0, :4] = [[50], [40], [20], [10]]
    output[0, 5, :3] = 0.25, 0.9, 0.26
    found = decode(output, 2, conf=0.25, iou=1.0)
    np.testing.assert_array_equal(found.scores, np.float32([0.9, 0.26]))
    np.testing.assert_array_equal(found.classes, [1, 1])
    np.testing.assert_array_equal(found.boxes, [[40, 35, 60, 45]] * 2)


def test_class_names_are_data_and_never_code(tmp_path: Path) -> None:
    trap = f"__import__('pathlib').Path({str(tmp_path / 'trap')!r}).touch()"
    with pytest.raises(ValueError, match="damaged: names="):
        ModelInfo.from_metadata({"names": trap, "imgsz": "[96, 128]"})
    assert not (tmp_path / "trap").exists()


def test_model_info() -> None:
    info = ModelInfo.from_metadata({"names": "{0: 'cat'}", "imgsz": "[96, 128]", "task": "detect", "channels": "3"})
    assert info == ModelInfo(96, 128, {0: "cat"})
    assert (info.name(0), info.name(7)) == ("cat", "7")
    assert ModelInfo.from_metadata({}, input_shape=(32, 64)) == ModelInfo(32, 64, {}), "exports without metadata work"
    with pytest.raises(ValueError, match="'segment'"):
        ModelInfo.from_metadata({"task": "segment", "imgsz": "[96, 128]"})
    with pytest.raises(ValueError, match="RT-DETR"):  # (1, n, 6) as well, but fractions, of a stretched image
        ModelInfo.from_metadata({"task": "detect", "head": "RTDETRDecoder", "imgsz": "[96, 128]"})
    with pytest.raises(ValueError, match="1 channels"):
        ModelInfo.from_metadata({"channels": "1", "imgsz": "[96, 128]"})
    with pytest.raises(ValueError, match="imgsz"):
        ModelInfo.from_metadata({"names": "{0: 'cat'}"})


@pytest.mark.parametrize("shape", [(1, 4, 252), (2, 84, 252), (84, 252), (1, 84, 8, 8)])
def test_an_unknown_output_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
        decode(np.zeros(shape, np.float32), None, conf=0.25, iou=0.7)


def test_an_output_for_other_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 7, 10\); expected \(1, 4 \+ 2, n\) or \(1, n, 6\)"):
        decode(np.zeros((1, 7, 10), np.float32), 2, conf=0.25, iou=0.7)


@pytest.mark.parametrize(
    ("image", "limits", "message"),
    [
        (np.zeros((8, 8), np.uint8), {}, r"this is uint8 \(8, 8\)"),
        (np.zeros((8, 8, 4), np.uint8), {}, r"this is uint8 \(8, 8, 4\)"),
        (np.zeros((8, 8, 3), np.float32), {}, r"this is float32 \(8, 8, 3\)"),
        ("street.jpg", {}, "this is str"),
        (None, {}, "this is NoneType"),
        (np.zeros((0, 8, 3), np.uint8), {}, "no pixels"),
        (np.zeros((8, 8, 3), np.uint8), {"conf": 25}, "conf=25 is not in 0..1"),
        (np.zeros((8, 8, 3), np.uint8), {"iou": float("nan")}, "iou=nan is not in 0..1"),
    ],
)
def test_what_is_no_picture_is_refused(plain: Path, image: Any, limits: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Detector(plain)(image, **limits)


def test_an_unknown_runtime_is_refused(plain: Path) -> None:
    with pytest.raises(ValueError, match="no runtime 'tensorrt'; there are onnxruntime, opencv, "):
        Detector(plain, runtime="tensorrt")


def test_a_picture_without_objects(pictures: Path) -> None:
    class Blind:
        info, in_order = ModelInfo(*IMGSZ, names={}), True

        def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
            return {"0": np.zeros((1, 84, 252), np.float32)}

    image = cv2.imread(str(pictures / "320x320.png"))
    found = detect(Blind(), image, conf=0.25, iou=0.7)
    assert found.boxes.shape == (0, 4)
    np.testing.assert_array_equal(draw(image, found, Blind.info), image)

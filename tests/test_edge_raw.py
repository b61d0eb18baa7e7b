"""Raw heads in the torch-free package: which output is which, and decoding that gives the boxes of Ultralytics."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from edge_exports import IMGSZ, detector, write_pictures
from exact_runtimes import single_threaded_ncnn
from lightbackbones_edge import Detector, runtimes
from lightbackbones_edge.info import ModelInfo
from lightbackbones_edge.letterbox import Letterbox
from lightbackbones_edge.raw import RawHead
from places import EDGE
from torch import Tensor, nn
from ultralytics.data.augment import LetterBox
from ultralytics.nn.modules.head import Detect
from ultralytics.utils import YAML
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import scale_boxes

from yolo_lightbackbones.plugin import environment

METADATA = {
    "raw_head": 1,
    "raw_strides": [8, 16, 32],
    "raw_reg_max": 16,
    "raw_end2end": 0,
    "raw_max_det": 300,
    "names": {0: "cat", 1: "dog"},
    "imgsz": list(IMGSZ),
    # what files with a raw head have for those who would take them for others
    "end2end": True,
    "batch": "raw maps: another program is needed",
}


def head(reg_max: int = 16, classes: int = 2, *, end_to_end: bool = False) -> RawHead:
    return RawHead((8, 16, 32), reg_max, classes, end_to_end)


def maps_of(raw: RawHead, seed: int = 0) -> dict[str, np.ndarray]:
    """Outputs like those of a network: distances of a few cells, and few scores above a half."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(1.0 if name.startswith("box") else -1.0, 3.0, shape).astype(np.float32)
        for name, shape in raw.shapes(IMGSZ).items()
    }


# --- decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reg_max", [1, 16])
@pytest.mark.parametrize("conf", [0.0, 0.25, 0.9])
def test_decoding_equals_that_of_ultralytics_head(reg_max: int, conf: float) -> None:
    raw = head(reg_max, 3)
    outputs = maps_of(raw)
    theirs = Detect(nc=3, reg_max=reg_max, ch=(16, 16, 16))
    theirs.stride = torch.tensor([8.0, 16.0, 32.0])

    def joined(kind: str) -> Tensor:
        return torch.cat([torch.tensor(outputs[f"{kind}_{s}"]).flatten(2) for s in (8, 16, 32)], 2)

    feats = [torch.tensor(outputs[f"box_{s}"]) for s in (8, 16, 32)]
    with torch.no_grad():
        decoded = theirs._inference({"boxes": joined("box"), "scores": joined("class"), "feats": feats})
    rows = decoded[0].T.numpy()
    rows = rows[rows[:, 4:].max(1) > conf]
    centre, sides = rows[:, :2], rows[:, 2:4]

    corners, scores = raw.decode(list(outputs.values()), conf)
    assert corners.dtype == scores.dtype == np.float32
    assert len(corners) == (252 if conf == 0 else len(rows)) > 9
    np.testing.assert_allclose(corners, np.concatenate([centre - sides / 2, centre + sides / 2], 1), atol=1e-3)
    np.testing.assert_allclose(scores, rows[:, 4:], atol=1e-6)


def test_large_logits_neither_overflow_nor_warn() -> None:
    raw = head(16, 1)
    outputs = {name: np.full(shape, -500, np.float32) for name, shape in raw.shapes(IMGSZ).items()}
    outputs["class_8"][0, 0, 2, 3] = 500
    outputs["box_8"][0, :, 2, 3] = [
        500 if bin_ == distance else -500 for distance in (1, 2, 3, 4) for bin_ in range(16)
    ]
    with np.errstate(all="raise", under="ignore"):
        corners, scores = raw.decode(list(outputs.values()), 0.5)
    # around the centre of the cell at column 3, row 2: (3.5, 2.5), in steps of 8 pixels
    np.testing.assert_array_equal(corners, [[20, 4, 52, 52]])
    np.testing.assert_array_equal(scores, [[1]])
    assert not len(raw.decode(list(outputs.values()), 1.0)[0]), "no score lies above 1"


def test_scores_lie_above_the_limit() -> None:
    raw = head(1, 1)
    outputs = {name: np.full(shape, -9, np.float32) for name, shape in raw.shapes(IMGSZ).items()}
    outputs["class_8"][0, 0, 0, :3] = -0.0005, 0.0, 0.0005  # scores below, at and above a half
    corners, scores = raw.decode(list(outputs.values()), 0.5)
    np.testing.assert_allclose(scores, [[0.500125]], atol=1e-6)
    np.testing.assert_array_equal(corners[:, 0], [(2.5 + 9) * 8])


# --- which output is which --------------------------------------------------------------------------------------------


def identify(raw: RawHead, outputs: dict[str, np.ndarray], *, in_order: bool) -> list[str]:
    """Names of `maps_of` that the values were found to have, in order."""
    truth = {values.tobytes(): name for name, values in maps_of(raw).items()}
    return [truth[values.tobytes()] for values in raw.sorted(outputs, IMGSZ, in_order=in_order)]


ORDER = ["box_8", "class_8", "box_16", "class_16", "box_32", "class_32"]


@pytest.mark.parametrize("classes", [2, 64], ids=["shapes differ", "shapes are equal"])
@pytest.mark.parametrize("in_order", [False, True])
def test_names_decide_wherever_there_are_names(classes: int, in_order: bool) -> None:
    raw = head(16, classes)
    shuffled = dict(reversed(maps_of(raw).items()))
    assert identify(raw, shuffled, in_order=in_order) == ORDER


@pytest.mark.parametrize("in_order", [False, True])
def test_without_names_shapes_decide(in_order: bool) -> None:
    raw = head(16, 2)
    shuffled = {str(number): values for number, values in enumerate(reversed(maps_of(raw).values()))}
    assert identify(raw, shuffled, in_order=in_order) == ORDER


def test_with_equal_shapes_the_order_decides_or_nothing() -> None:
    raw = head(16, 64)
    given = {str(number): values for number, values in enumerate(maps_of(raw).values())}
    assert identify(raw, given, in_order=True) == ORDER
    with pytest.raises(ValueError, match="have the same shape"):
        identify(raw, given, in_order=False)
    turned = {str(number): values for number, values in enumerate(reversed(list(maps_of(raw).values())))}
    with pytest.raises(ValueError, match="The outputs of this file are 0 1x64x3x4, "):
        identify(raw, turned, in_order=True)


@pytest.mark.parametrize("named", [True, False])
def test_other_outputs_are_refused(named: bool) -> None:
    raw = head()
    outputs = maps_of(raw)

    def found(change: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        changed = {**outputs, **change}
        return changed if named else {f"out{number}": values for number, values in enumerate(changed.values())}

    with pytest.raises(ValueError, match=r"(box_16|out2) 1x64x7x8, .*; its raw head has box_8 1x64x12x16, "):
        raw.sorted(found({"box_16": np.zeros((1, 64, 7, 8), np.float32)}), IMGSZ, in_order=True)
    with pytest.raises(ValueError, match="outputs of this file"):  # two of one shape, and one that is missing
        raw.sorted(found({"box_16": outputs["box_8"]}), IMGSZ, in_order=True)
    with pytest.raises(ValueError, match="has 7 outputs; its raw head has 6: box_8 1x64x12x16, "):
        raw.sorted(found({"prototypes": np.zeros((1, 32, 24, 32), np.float32)}), IMGSZ, in_order=True)
    with pytest.raises(ValueError, match="has 1 outputs"):
        raw.sorted({"output0": np.zeros((1, 6, 252), np.float32)}, IMGSZ, in_order=True)


# --- metadata ---------------------------------------------------------------------------------------------------------


def test_metadata_of_a_raw_head() -> None:
    as_text = {key: str(value) for key, value in METADATA.items()}  # as ONNX has them
    for metadata in (METADATA, as_text):
        assert ModelInfo.from_metadata(metadata).raw == RawHead((8, 16, 32), 16, 2, end_to_end=False)
    best = ModelInfo.from_metadata({**METADATA, "raw_reg_max": 1, "raw_end2end": 1, "raw_max_det": 50}).raw
    assert best == RawHead((8, 16, 32), 1, 2, end_to_end=True, max_detections=50)
    assert ModelInfo.from_metadata({"names": {0: "cat"}, "imgsz": [96, 128]}).raw is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"raw_head": 2}, "version 2 of their layout; this lightbackbones-edge reads version 1"),
        ({"raw_head": "one"}, "damaged: raw_head='one'"),
        ({"raw_strides": None}, "no usable raw_strides, "),
        ({"raw_strides": [8, 8, 16]}, "no usable raw_strides, "),
        ({"raw_strides": "[8, -1]"}, "no usable raw_strides, "),
        ({"raw_reg_max": None}, "no usable raw_reg_max, "),
        ({"raw_end2end": None}, "no usable raw_end2end, "),
        ({"raw_end2end": 7}, "no usable raw_end2end, "),
        ({"raw_max_det": 0}, "no usable raw_max_det, "),
        ({"names": None, "raw_reg_max": None}, "no usable raw_reg_max, names, "),
        ({"task": "segment"}, "task 'segment'; lightbackbones-edge reads 'detect' only"),
        ({"task": "pose"}, "task 'pose'"),
        ({"task": "obb"}, "task 'obb'"),
    ],
)
def test_metadata_that_cannot_be_decoded_are_refused(change: dict[str, Any], message: str) -> None:
    metadata = {key: value for key, value in {**METADATA, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        ModelInfo.from_metadata(metadata)


# --- files ------------------------------------------------------------------------------------------------------------


class RawModel(nn.Module):
    """A detector up to the maps of its head, without Ultralytics' exporter."""

    def __init__(self, model: Any, *, end_to_end: bool) -> None:
        super().__init__()
        *self.layers, last = model.model
        self.body, self.sources = nn.ModuleList(self.layers), last.f
        self.box = last.one2one_cv2 if end_to_end else last.cv2
        self.classes = last.one2one_cv3 if end_to_end else last.cv3

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        seen: list[Tensor] = []
        for layer in self.body:
            if layer.f != -1:
                x = seen[layer.f] if isinstance(layer.f, int) else [x if i == -1 else seen[i] for i in layer.f]
            x = layer(x)
            seen.append(x)
        levels = [seen[source] for source in self.sources]
        pairs = [(box(x), classes(x)) for box, classes, x in zip(self.box, self.classes, levels, strict=True)]
        return tuple(itertools.chain.from_iterable(pairs))


class File:
    """An ONNX file with a raw head, of a network with random weights."""

    def __init__(self, architecture: str, folder: Path, *, end_to_end: bool) -> None:
        import onnx

        model = detector(architecture).model.eval()
        self.head = model.model[-1]
        self.head.end2end = end_to_end
        # Scores far from 1, where those of many boxes would be equal but for the last digit, and their order chance.
        for level in self.head.one2one_cv3 if end_to_end else self.head.cv3:
            level[-1].weight.data *= 0.05
            level[-1].bias.data[:] = -1.0
        self.network = RawModel(model, end_to_end=end_to_end).eval()
        self.metadata = {
            **METADATA,
            "names": model.names,
            "raw_reg_max": self.head.reg_max,
            "raw_end2end": int(end_to_end),
        }
        self.path = folder / "raw.onnx"
        options = {"input_names": ["images"], "output_names": ORDER, "opset_version": 18, "dynamo": False}
        torch.onnx.export(self.network, (torch.zeros(1, 3, *IMGSZ),), self.path, **options)
        graph = onnx.load(self.path)
        onnx.helper.set_model_props(graph, {key: str(value) for key, value in self.metadata.items()})
        onnx.save(graph, self.path)

    def expected_maps(self, image: np.ndarray) -> list[np.ndarray]:
        import onnxruntime

        session = onnxruntime.InferenceSession(self.path)
        batch = LetterBox(IMGSZ)(image=image)[..., ::-1].transpose(2, 0, 1)[None] / np.float32(255)
        return session.run(ORDER, {"images": batch.astype(np.float32)})

    def expected_boxes(self, image: np.ndarray, conf: float, iou: float) -> np.ndarray:
        """Rows x1, y1, x2, y2, score, class, by Ultralytics' head, suppression and scaling."""
        maps = [torch.tensor(values) for values in self.expected_maps(image)]
        joined = [torch.cat([level.flatten(2) for level in maps[kind::2]], 2) for kind in (0, 1)]
        self.head.shape = None
        found = self.head._inference({"boxes": joined[0], "scores": joined[1], "feats": maps[::2]})
        if self.head.end2end:
            found = self.head.postprocess(found.mT)
        (rows,) = non_max_suppression(found, conf, iou, nc=80, end2end=self.head.end2end)
        rows[:, :4] = scale_boxes(IMGSZ, rows[:, :4], image.shape)
        return rows.numpy()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> File:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return File("yolov5n.yaml", tmp_path_factory.mktemp("plain"), end_to_end=False)


@pytest.fixture(scope="module")
def end_to_end(tmp_path_factory: pytest.TempPathFactory) -> File:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return File("yolo26n.yaml", tmp_path_factory.mktemp("end_to_end"), end_to_end=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("name", ["plain", "end_to_end"])
@pytest.mark.parametrize(("conf", "iou"), [(0.25, 0.7), (0.05, 0.3)])
def test_boxes_equal_those_of_ultralytics_on_the_same_maps(
    name: str, conf: float, iou: float, pictures: Path, request: pytest.FixtureRequest
) -> None:
    file: File = request.getfixturevalue(name)
    raw, total = Detector(file.path), 0
    for path in sorted(pictures.iterdir()):
        image = cv2.imread(str(path))
        expected = file.expected_boxes(image, conf, iou)
        found = raw(image, conf=conf, iou=iou)
        np.testing.assert_array_equal(found.classes, expected[:, 5])
        np.testing.assert_allclose(found.scores, expected[:, 4], atol=1e-5)
        np.testing.assert_allclose(found.boxes, expected[:, :4], atol=0.01)
        total += len(found.scores)
    assert total > 50, "the comparison saw boxes"


def write_onnx(file: File, folder: Path) -> Path:
    return file.path


def write_openvino(file: File, folder: Path) -> Path:
    openvino = pytest.importorskip("openvino")
    openvino.save_model(openvino.convert_model(file.path), folder / "raw.xml", compress_to_fp16=False)
    YAML.save(folder / "metadata.yaml", file.metadata)
    return folder


def write_ncnn(file: File, folder: Path) -> Path:
    pytest.importorskip("ncnn")
    pnnx = pytest.importorskip("pnnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # pnnx writes files of its own
        pnnx.export(file.network, "raw.pt", (torch.zeros(1, 3, *IMGSZ),), fp16=False)
    YAML.save(folder / "metadata.yaml", file.metadata)
    return folder / "raw.ncnn.param"


def write_mnn(file: File, folder: Path) -> Path:
    pytest.importorskip("MNN")
    code = "from MNN.tools import mnnconvert; mnnconvert.main()"
    words = ["-f", "ONNX", "--modelFile", file.path, "--MNNModel", folder / "raw.mnn"]
    words += ["--bizCode", json.dumps(file.metadata)]
    with environment.silenced():
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert (folder / "raw.mnn").is_file(), done.stdout + done.stderr
    return folder


@pytest.mark.parametrize(
    ("runtime", "write"),
    [
        ("onnxruntime", write_onnx),
        ("opencv", write_onnx),
        ("openvino", write_openvino),
        ("ncnn", write_ncnn),
        ("mnn", write_mnn),
    ],
)
def test_every_runtime_gives_the_maps_in_order(
    runtime: str,
    write: Callable[[File, Path], Path],
    *,
    plain: File,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write(plain, tmp_path)
    if runtime == "ncnn":
        single_threaded_ncnn(monkeypatch)
    loaded = runtimes.load(path, runtime)
    assert loaded.info.raw == RawHead((8, 16, 32), 16, 80, end_to_end=False)
    image = cv2.imread(str(pictures / "320x320.png"))
    outputs = loaded(Letterbox.fit(image, IMGSZ).apply(image))
    found = loaded.info.raw.sorted(outputs, IMGSZ, in_order=loaded.in_order)
    for values, expected in zip(found, plain.expected_maps(image), strict=True):
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected, atol=1e-3 * np.abs(expected).max())


def test_a_raw_file_of_another_version_is_one_line_of_the_command(plain: File, tmp_path: Path) -> None:
    import onnx

    graph = onnx.load(plain.path)
    onnx.helper.set_model_props(graph, {key: str(value) for key, value in {**plain.metadata, "raw_head": 3}.items()})
    onnx.save(graph, tmp_path / "raw.onnx")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    code = "from lightbackbones_edge.__main__ import main; main()"
    command = [sys.executable, "-c", code, tmp_path / "raw.onnx", tmp_path / "a.png", "--out", tmp_path / "out"]
    environment = {"PYTHONPATH": str(EDGE)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: This file has raw outputs in version 3 of their layout; ")
    assert not (tmp_path / "out").exists()

"""Files with raw heads: Ultralytics reads them as any other with the plugin, and refuses them without it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from exact_runtimes import exact_openvino, single_threaded_ncnn
from raw_models import features, image, new_head, outputs, write_checkpoint, write_ours
from torch import Tensor
from ultralytics import YOLO
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.backends.base import BaseBackend
from ultralytics.utils.export import rknn as rknn_export

from yolo_lightbackbones.plugin import command, decoding, raw_files, raw_heads

SIZE = (128, 64)  # height, width
PACKAGES = {"litert": "litert_torch", "mnn": "MNN", "ncnn": "pnnx"}
FORMATS = ["torchscript", "onnx", "openvino", "ncnn", "mnn", "litert"]


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ours(tmp_path_factory.mktemp("ours") / "ours.pt")


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmentation model whose box and class maps have the same shapes, with 13 outputs, all of Ultralytics' rows."""
    path = tmp_path_factory.mktemp("alike") / "alike.pt"
    return write_checkpoint(path, ["Segment", [64, 8, 16]], classes=64, levels=4)


def export(checkpoint: Path, format: str, **options: Any) -> Path:
    folder = checkpoint.parent / f"{format}-{len(list(checkpoint.parent.iterdir()))}"
    folder.mkdir()
    (copied := folder / "best.pt").write_bytes(checkpoint.read_bytes())
    with raw_heads.asked():
        return Path(YOLO(copied).export(format=format, imgsz=list(SIZE), verbose=False, **options))


def expected(checkpoint: Path, x: Tensor) -> list[Tensor]:
    return outputs(YOLO(checkpoint).model.float().eval(), x)


def load(file: Path, **options: Any) -> Any:
    return AutoBackend(str(file), device=torch.device("cpu"), **options)


def assert_close(seen: Any, wanted: Sequence[Tensor], share: float = 1e-5) -> None:
    """Compare outputs; `share` of the largest value may be lost."""
    seen = [*seen] if isinstance(seen, list | tuple) else [seen]
    for a, b in zip(seen, wanted, strict=True):
        assert float(b.std()) > 0.1
        torch.testing.assert_close(a, b, rtol=1e-4, atol=share * float(b.abs().max()))


# --- every format that runs here --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("model", ["detector", "alike"])
@pytest.mark.parametrize("format", FORMATS)
def test_file_gives_what_pytorch_gives(
    format: str, model: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if format in PACKAGES and importlib.util.find_spec(PACKAGES[format]) is None:
        pytest.skip(f"{PACKAGES[format]} is not installed")
    if format == "openvino":
        exact_openvino(monkeypatch)
    if format == "ncnn":
        single_threaded_ncnn(monkeypatch)
    checkpoint = request.getfixturevalue(model)
    backend = load(export(checkpoint, format))
    assert_close(backend(x := image(*SIZE)), expected(checkpoint, x), 1e-3 if format == "mnn" else 1e-5)  # its GELU
    assert (backend.batch, backend.end2end, backend.task) == (1, False, "segment" if model == "alike" else "detect")


def test_opencv_reads_onnx_files_as_well(detector: Path) -> None:
    backend = load(export(detector, "onnx"), dnn=True)
    assert_close(backend(x := image(*SIZE)), expected(detector, x))


def test_file_for_any_size_is_decoded_at_any_size(detector: Path) -> None:
    backend = load(export(detector, "onnx", dynamic=True))
    assert_close(backend(x := image(64, 160, batch=2)), expected(detector, x))


def test_batches_beyond_that_of_the_file_are_split(detector: Path) -> None:
    backend = load(export(detector, "onnx", batch=2))
    assert backend.batch == 2
    assert_close(backend(x := image(*SIZE, batch=5)), expected(detector, x))


def test_one_to_one_branch_gives_its_best_boxes(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "m.pt", ["Detect", [4]], classes=4, end2end=True, reg_max=1)
    backend = load(export(checkpoint, "torchscript", nms=False, max_det=20))
    model = YOLO(checkpoint).model.float().eval()
    head = model.model[-1]
    head.end2end, head.max_det = True, 20
    assert backend.end2end is True
    assert_close(backend(x := image(*SIZE)), outputs(model, x))


def test_predictions_are_those_of_the_checkpoint(detector: Path) -> None:
    picture = (image(*SIZE)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    options = {"imgsz": list(SIZE), "conf": 0.5, "verbose": False, "rect": False}
    (seen,) = YOLO(export(detector, "onnx"), task="detect").predict(picture, **options)
    (wanted,) = YOLO(detector).predict(picture, **options)
    assert len(wanted.boxes) > 3
    torch.testing.assert_close(seen.boxes.data, wanted.boxes.data, rtol=1e-4, atol=1e-3)


def test_rknn_exports_raw_maps_in_int8(detector: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ultralytics would divide the first output by the image size there."""
    onnx = pytest.importorskip("onnx")
    found: list[Any] = []

    def convert(onnx_file: str, output_dir: Path, **_: Any) -> str:
        found.append(onnx.load(onnx_file))
        output_dir.mkdir(exist_ok=True)
        (output_dir / "best.rknn").write_bytes(bytes(200_000))
        return str(output_dir)

    monkeypatch.setattr(rknn_export, "onnx2rknn", convert)
    monkeypatch.setattr("ultralytics.engine.exporter.check_requirements", lambda *_, **__: True)
    from PIL import Image

    for split in ("train", "val"):
        (folder := tmp_path / "images" / split).mkdir(parents=True)
        (labels := tmp_path / "labels" / split).mkdir(parents=True)
        Image.new("RGB", (64, 96)).save(folder / "1.png")
        (labels / "1.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (data := tmp_path / "data.yaml").write_text(
        json.dumps(
            {"path": str(tmp_path), "train": "images/train", "val": "images/val", "names": dict.fromkeys(range(5), "a")}
        )
    )
    export(detector, "rknn", quantize=8, data=str(data))
    (model,) = found
    shapes = {o.name: [d.dim_value for d in o.type.tensor_type.shape.dim] for o in model.graph.output}
    assert shapes == {
        "box_8": [1, 64, 16, 8], "class_8": [1, 5, 16, 8],
        "box_16": [1, 64, 8, 4], "class_16": [1, 5, 8, 4],
        "box_32": [1, 64, 4, 2], "class_32": [1, 5, 4, 2],
    }  # fmt: skip
    last = {name: node for node in model.graph.node for name in node.output}
    assert {last[name].op_type for name in shapes} == {"Conv"}


# --- metadata ---------------------------------------------------------------------------------------------------------


def test_metadata_of_a_file(detector: Path) -> None:
    found = BaseBackend.read_metadata(export(detector, "torchscript"))
    assert {key: value for key, value in found.items() if key.startswith("raw")} == {
        "raw_head": 1,
        "raw_strides": [8, 16, 32],
        "raw_reg_max": 16,
        "raw_extra": "",
        "raw_end2end": 0,
        "raw_max_det": 168,
        "raw_batch": 1,
    }
    assert (found["task"], found["imgsz"], found["stride"], found["end2end"]) == ("detect", [128, 64], 32, True)
    assert len(found["names"]) == 5


@pytest.mark.parametrize("format", ["torchscript", "onnx"])
def test_ultralytics_without_the_plugin_says_what_it_needs(detector: Path, format: str) -> None:
    file = export(detector, format)
    code = (
        "import sys; from ultralytics import YOLO; YOLO(sys.argv[1], task='detect').predict('x.png', imgsz=(128, 64))"
    )
    environment = {**os.environ, "YOLO_LIGHTBACKBONES_AUTOLOAD": "0"}
    start = [sys.executable, "-c", code, str(file)]
    done = subprocess.run(start, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ValueError: invalid literal for int() with base 10: 'this file holds the raw maps of a detection head, which "
        "Ultralytics cannot decode: install yolo-lightbackbones to run it'"
    )


GOOD = {
    "raw_head": 1, "raw_strides": [8, 16, 32], "raw_reg_max": 16, "raw_extra": "", "raw_end2end": 0, "raw_max_det": 300,
    "raw_batch": 1, "batch": "no number", "end2end": True, "stride": 32, "task": "detect", "imgsz": [96, 64],
    "names": {0: "a", 1: "b", 2: "c"}, "args": {},
}  # fmt: skip


def backend(
    maps: Sequence[Tensor], name: str = "AnyBackend", metadata: dict[str, Any] | None = None, **more: Any
) -> Any:
    """A backend of Ultralytics that gives these outputs."""

    def load_model(self: Any, weight: Any) -> None:
        vars(self).update(more)
        self.apply_metadata({**(metadata or GOOD)})

    def forward(self: Any, im: Any) -> Any:
        return [*maps]

    return type(name, (BaseBackend,), {"load_model": load_model, "forward": forward})("file", torch.device("cpu"))


def raw_maps() -> tuple[Any, list[Tensor]]:
    head = new_head("Detect", 3)
    with torch.no_grad():
        return head(features()), [*raw_heads.RawHead(head, (8, 16, 32), 3).eval()(features())]


def test_metadata_that_are_text_are_read_as_well() -> None:
    wanted, maps = raw_maps()
    texts = {key: str(value) for key, value in GOOD.items()}
    read = backend(maps, metadata=texts)
    assert_close(read.forward(None), [wanted])
    assert (read.batch, read.end2end, read.metadata["batch"]) == (1, False, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"raw_head": 2}, "raw head maps of version 2, and this yolo_lightbackbones reads version 1"),
        ({"raw_head": "x"}, "it has raw_head='x'"),
        ({"raw_strides": None}, "it lacks raw_strides"),
        ({"raw_strides": "[8, 'a']"}, re.escape("it has raw_strides=\"[8, 'a']\"")),
        ({"raw_strides": []}, r"it has raw_strides=\[\]"),
        ({"raw_reg_max": 0}, "it has raw_reg_max=0"),
        ({"raw_reg_max": "__import__('os')"}, "it has raw_reg_max="),
        ({"raw_extra": "wings"}, "it has raw_extra='wings'"),
        ({"raw_extra": "keypoints"}, "it lacks kpt_shape"),
        ({"raw_extra": "keypoints", "kpt_shape": [3]}, r"it has kpt_shape=\[3\]"),
        ({"raw_batch": None}, "it lacks raw_batch"),
        ({"names": {}}, "it has names={}"),
    ],
)
def test_damaged_metadata_are_one_sentence(change: dict[str, Any], message: str) -> None:
    metadata = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message) as error:
        backend([], metadata=metadata)
    assert "\n" not in str(error.value)


def test_missing_outputs_are_one_sentence() -> None:
    _, maps = raw_maps()
    with pytest.raises(ValueError, match="describe a raw head, but it gives 5 outputs instead of 6") as error:
        backend(maps[:5]).forward(None)
    assert "\n" not in str(error.value)


def test_the_command_shows_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(raw_files.RawHeadError) as caught:
        backend([], metadata={**GOOD, "raw_head": 2})
    command.excepthook(lambda *_: pytest.fail("a traceback"))(caught.type, caught.value, caught.tb)
    assert capsys.readouterr().err == f"yolo_lightbackbones: {caught.value}\n"


# --- the order of outputs ---------------------------------------------------------------------------------------------

NAMES = ["box_8", "class_8", "box_16", "class_16", "box_32", "class_32"]
SHUFFLED = [4, 0, 3, 5, 1, 2]


def shuffled(values: Sequence[Any]) -> list[Any]:
    return [values[number] for number in SHUFFLED]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("ONNXBackend", {"format": "onnx", "output_names": shuffled(NAMES)}),
        ("MNNBackend", {"net": SimpleNamespace(get_info=lambda: {"outputNames": shuffled(NAMES)})}),
    ],
)
def test_outputs_are_found_by_their_names(name: str, more: dict[str, Any]) -> None:
    wanted, maps = raw_maps()
    assert_close(backend(shuffled(maps), name, **more).forward(None), [wanted])


def test_outputs_of_other_names_are_one_sentence() -> None:
    _, maps = raw_maps()
    read = backend(maps, "ONNXBackend", format="onnx", output_names=[*NAMES[:5], "other"])
    with pytest.raises(ValueError, match="class_32, but it gives box_8"):
        read.forward(None)


def test_outputs_of_ncnn_are_counted_though_they_come_sorted_as_texts() -> None:
    layout = decoding.Layout((8, 16, 32, 64), 16, 3, "masks")
    outputs = list(range(len(layout.names)))
    given = [f"out{number}" for number in outputs]
    read = SimpleNamespace(net=SimpleNamespace(output_names=lambda: given))
    found = raw_files._of_ncnn(read, sorted(outputs, key=str), layout)
    assert [found[name] for name in layout.names] == outputs


def test_outputs_of_litert_are_found_by_the_signature_and_get_their_scale_back() -> None:
    wanted, maps = raw_maps()
    scale, zero = max(float(value.abs().max()) for value in maps) / 30000, 5
    whole = [(value / scale).round().to(torch.int16) + zero for value in maps]
    details = {
        f"output_{number}": {"index": 100 + number, "quantization": (scale, zero)} for number in shuffled(range(6))
    }
    interpreter = SimpleNamespace(
        get_signature_runner=lambda: SimpleNamespace(get_output_details=lambda: details),
        get_tensor=lambda index: whole[index - 100].numpy(),
    )
    read = backend([maps[0], maps[1]], "LiteRTBackend", interpreter=interpreter)
    torch.testing.assert_close(read.forward(None)[0], wanted, rtol=1e-2, atol=1.0)


def test_litert_on_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="not on device=intel"):
        backend([], "LiteRTBackend").forward(None)


def test_other_files_are_left_alone() -> None:
    given = [torch.zeros(1)]
    read = backend(given, metadata={"stride": 32, "batch": "2", "names": {0: "a"}})
    assert read.forward(None) == given
    assert (read.batch, "forward" in vars(read)) == (2, False)

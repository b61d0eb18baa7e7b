"""Raw heads: what they give is decoded into the head's own output; what cannot have one is refused before it writes."""

from __future__ import annotations

import math
import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from raw_models import CHANNELS, STRIDES, features, new_head, write_checkpoint, write_ours
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.modules import Classify, Detect, RTDETRDecoder
from ultralytics.nn.modules.head import WorldDetect, YOLOEDetect
from ultralytics.nn.tasks import BaseModel

from yolo_lightbackbones.plugin import decoding, formats, raw_heads
from yolo_lightbackbones.plugin.decoding import Layout

ONE_BRANCH = [
    ("Detect", (3,)),
    ("Detect", (3, 1)),
    ("Segment", (3, 8, 16)),
    ("Pose", (1, (5, 3))),
    ("Pose", (2, (4, 2))),
    ("Pose26", (2, (4, 2))),
    ("OBB", (1, 1)),
]
TWO_BRANCHES = [
    ("Detect", (3, 1, True)),
    ("v10Detect", (3,)),
    ("Segment", (3, 8, 16, 1, True)),
    ("Segment26", (3, 8, 16, 1, True)),
    ("Pose", (1, (5, 3), 1, True)),
    ("Pose26", (1, (5, 3), 1, True)),
    ("OBB", (3, 1, 1, True)),
    ("OBB26", (1, 1, 1, True)),
]
HEADS = [
    *((*entry, "one2many") for entry in (*ONE_BRANCH, *TWO_BRANCHES)),
    *((*entry, "one2one") for entry in TWO_BRANCHES),
]


@pytest.mark.parametrize(("name", "arguments", "branch"), HEADS, ids=str)
def test_decoded_maps_are_the_heads_own_output(name: str, arguments: Any, branch: str) -> None:
    head = new_head(name, *arguments, branch=branch)
    with torch.no_grad():
        own = head(features())
        raw = raw_heads.RawHead(head, STRIDES, head.nc).eval()
        maps = raw(features())
        decoded = decoding.decode(maps, raw.layout)
    own = [*own] if isinstance(own, tuple) else [own]
    assert raw.layout.problem(maps) is None
    assert [tuple(value.shape) for value in decoded] == [tuple(value.shape) for value in own]
    for seen, expected in zip(decoded, own, strict=True):
        assert float(expected.std()) > 0.1, "the outputs differ from place to place"
        torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_maps_have_the_order_and_the_names_of_the_contract() -> None:
    raw = raw_heads.RawHead(new_head("Segment", 3, 8, 16), STRIDES, 3)
    assert raw.layout.names == [
        "box_8", "class_8", "extra_8", "box_16", "class_16", "extra_16", "box_32", "class_32", "extra_32", "prototypes",
    ]  # fmt: skip
    with torch.no_grad():
        shapes = [tuple(value.shape) for value in raw.eval()(features(1))]
    sides = [(12, 8), (6, 4), (3, 2)]
    assert shapes == [(1, c, *side) for side in sides for c in (64, 3, 8)] + [(1, 8, 24, 16)]


def test_no_map_has_passed_an_activation() -> None:
    """Each is what a convolution gives: twice the weights and biases of the last ones, twice the map."""
    head = new_head("Pose", 1, (5, 3))
    with torch.no_grad():
        before = raw_heads.RawHead(head, STRIDES, 1).eval()(features())
        for branch in (*head.cv2, *head.cv3, *head.cv4):
            branch[-1].weight.mul_(2)
            branch[-1].bias.mul_(2)
        after = raw_heads.RawHead(head, STRIDES, 1).eval()(features())
    torch.testing.assert_close(after, tuple(2 * value for value in before))


LAYOUT = Layout((8, 16), 4, 3, "masks")
GOOD = [(16, 8, 6), (3, 8, 6), (5, 8, 6), (16, 4, 3), (3, 4, 3), (5, 4, 3), (5, 16, 12)]


def problem_of(shapes: list[tuple[int, ...]]) -> str | None:
    return LAYOUT.problem([torch.zeros(1, *shape) for shape in shapes])


def test_maps_that_fit_have_no_problem() -> None:
    assert problem_of(GOOD) is None


@pytest.mark.parametrize(
    ("shapes", "problem"),
    [
        (GOOD[:-1], "6 outputs instead of 7"),
        ([GOOD[1], GOOD[0], *GOOD[2:]], r"its output box_8 has the shape \(1, 3, 8, 6\)"),
        ([*GOOD[:3], GOOD[0], *GOOD[4:]], "maps belong to images of different sizes"),
        ([*GOOD[:2], (4, 8, 6), *GOOD[3:]], "its output extra_8 has the shape"),
        ([(16, 48), *GOOD[1:]], r"its output box_8 has the shape \(1, 16, 48\)"),
    ],
)
def test_maps_in_other_places_are_seen(shapes: list[tuple[int, ...]], problem: str) -> None:
    assert re.search(problem, problem_of(shapes) or "")


# --- asking -----------------------------------------------------------------------------------------------------------


def test_asking_ends_with_its_block() -> None:
    assert not raw_heads.is_asked()
    with raw_heads.asked():
        with raw_heads.asked():
            pass
        assert raw_heads.is_asked()
    assert not raw_heads.is_asked()
    with pytest.raises(KeyError), raw_heads.asked():
        raise KeyError
    assert not raw_heads.is_asked()


def test_asking_concerns_this_thread() -> None:
    seen: list[bool] = []
    with raw_heads.asked():
        thread = threading.Thread(target=lambda: seen.append(raw_heads.is_asked()))
        thread.start()
        thread.join()
    assert seen == [False]


def new_exporter(head: nn.Module, **options: Any) -> Any:
    """What the refusals look at of an exporter."""
    arguments = {"format": "onnx", "nms": None, "dynamic": False, "quantize": None, **options}
    model = SimpleNamespace(model=nn.Sequential(head), names={0: "a", 1: "b"}, stride=torch.tensor(STRIDES))
    return SimpleNamespace(model=model, args=SimpleNamespace(**arguments))


REFUSED = [
    (RTDETRDecoder(2, (8, 8, 8), 16, 10, d_ffn=16, ndl=1), {}, "ends in RTDETRDecoder; raw heads exist for Detect"),
    (WorldDetect(2, 8, ch=CHANNELS), {}, "ends in WorldDetect; raw heads exist for Detect"),
    (YOLOEDetect(2, 32, ch=CHANNELS), {}, "ends in YOLOEDetect; raw heads exist for Detect"),
    (Classify(8, 2), {}, "ends in Classify; raw heads exist for Detect"),
    (Detect(2, ch=CHANNELS), {"nms": True}, "together with nms=True"),
    (Detect(2, ch=CHANNELS), {"format": "coreml"}, "in format=coreml, but raw heads were tested only as torchscript"),
    (Detect(5, ch=CHANNELS), {}, "2 names for 5 classes"),
]


@pytest.mark.parametrize(("head", "options", "message"), REFUSED, ids=lambda value: str(value)[:30].split("(")[0])
def test_what_cannot_have_a_raw_head_is_refused(head: nn.Module, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error, raw_heads.asked():
        raw_heads.prepare(new_exporter(head, **options))
    assert "\n" not in str(error.value)


def test_refusal_comes_before_anything_is_written(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "m.pt", ["Detect", [2]], classes=2)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="nms=True"), raw_heads.asked():
        YOLO(checkpoint).export(format="torchscript", imgsz=64, nms=True, verbose=False)
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("change", ["boxes", "scores"])
def test_head_that_computes_something_else_is_refused(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(tmp_path / "m.pt", ["Detect", [2]], classes=2)
    original = Detect._inference

    def other(self: Any, x: Any) -> torch.Tensor:
        out = original(self, x)
        out[:, slice(4) if change == "boxes" else slice(4, None)] *= 1.01
        return out

    monkeypatch.setattr(Detect, "_inference", other)
    message = "does not compute what this release of yolo_lightbackbones decodes"
    with pytest.raises(ValueError, match=message), raw_heads.asked():
        YOLO(checkpoint).export(format="torchscript", imgsz=64, verbose=False)


@pytest.mark.parametrize("write", [write_ours, lambda path: write_checkpoint(path, ["Detect", [2]], classes=2)])
def test_nothing_changes_for_exports_that_do_not_ask(write: Any, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    checkpoint = write(tmp_path / "m.pt")
    with raw_heads.asked():
        pass
    file = YOLO(checkpoint).export(format="onnx", imgsz=64, verbose=False)
    model = onnx.load(file)
    assert [output.name for output in model.graph.output] == ["output0"]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert not [key for key in metadata if key.startswith("raw")]
    assert (metadata["batch"], metadata["end2end"]) == ("1", "False")


def test_the_model_that_is_exported_stays_as_it_was(tmp_path: Path) -> None:
    detector = YOLO(write_checkpoint(tmp_path / "m.pt", ["Detect", [2]], classes=2))
    with raw_heads.asked():
        detector.export(format="torchscript", imgsz=64, verbose=False)
    assert isinstance(detector.model, BaseModel)
    assert type(detector.model.model[-1]) is Detect
    assert math.prod(detector.predict(torch.rand(1, 3, 64, 64), verbose=False)[0].boxes.data.shape[1:]) == 6


def test_formats_with_raw_heads_are_listed() -> None:
    assert formats.with_raw_heads()[:2] == ["torchscript", "onnx"]
    assert not formats.find("coreml").raw_heads
    assert not formats.find("unknown").raw_heads

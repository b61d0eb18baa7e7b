"""Neck and head by their place from the end: from stock models and between backbones, in `load` and in `convert`.

The stock checkpoints are built and saved by Ultralytics itself, with random values; nothing is downloaded.
"""

from __future__ import annotations

import copy
import functools
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from typer.testing import CliRunner, Result
from ultralytics import YOLO
from ultralytics.nn import tasks

import yolo_lightbackbones
from yolo_lightbackbones import create_backbone
from yolo_lightbackbones.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")

SHIFT = 5
"""Stock YOLO11 has so many rows more than `yolo11_repvit.yaml`: 24 and 19."""

CHANNELS_OF_TAPS = {f"model.{row}.cv1.conv.weight" for row in (8, 11)}
"""The two convolutions in `yolo11_repvit.yaml` on a concatenation with a tap."""


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    yolo_lightbackbones.register()
    yield
    yolo_lightbackbones.register()


def randomised(net: Any, seed: int) -> Any:
    """Every tensor random, statistics of norms as well; exact in half precision, in which Ultralytics saves."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_((torch.rand(tensor.shape, generator=generator) + 0.5).half())
    return net


def detector(name: str, *, seed: int = 0, **options: Any) -> Any:
    return randomised(copy.deepcopy(built(name, **options)), seed)


@functools.cache
def built(name: str, **options: Any) -> Any:
    return tasks.DetectionModel(name, verbose=False, **options)


def stock(folder: Path, name: str, names: list[str] | None = None) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint of a stock model as `YOLO.save` writes it, and its tensors."""
    saved = YOLO(f"{name}.yaml", verbose=False)
    randomised(saved.model, 1)
    if names:
        saved.model.names = dict(enumerate(names))
    saved.ckpt = {}
    saved.save(folder / f"{name}.pt")
    return folder / f"{name}.pt", copy.deepcopy(saved.model.state_dict())


@pytest.fixture(scope="module")
def yolo11n(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    return stock(tmp_path_factory.mktemp("stock"), "yolo11n", [f"thing {i}" for i in range(80)])


def renumbered(state: dict[str, Tensor], shift: int, first: int) -> dict[str, Tensor]:
    """The tensors of the rows from `first` on, under their names in a model with `shift` rows less."""
    parts = [(key.split(".", 2), tensor) for key, tensor in state.items()]
    return {f"model.{int(row) - shift}.{rest}": t for (_, row, rest), t in parts if int(row) >= first}


def unequal(seen: dict[str, Tensor], expected: dict[str, Tensor]) -> set[str]:
    return {key for key, tensor in expected.items() if not torch.equal(seen[key].float(), tensor.float())}


def convert(weights: object, output: Path, *options: str, model: str = "yolo11n_repvit.yaml") -> Result:
    return CliRunner().invoke(app, ["convert", str(weights), "--model", model, "-o", str(output), *options])


# --- BaseModel.load ---------------------------------------------------------------------------------------------------


def test_stock_neck_and_head_go_where_they_belong(caplog: pytest.LogCaptureFixture) -> None:
    mine, theirs = detector("yolo11n_repvit.yaml"), detector("yolo11n.yaml", seed=1)
    before = copy.deepcopy(mine.state_dict())
    with caplog.at_level(logging.INFO, "ultralytics"):
        logging.getLogger("ultralytics").addHandler(caplog.handler)
        mine.load(theirs)
        logging.getLogger("ultralytics").removeHandler(caplog.handler)
    after, expected = mine.state_dict(), renumbered(theirs.state_dict(), SHIFT, 10)
    assert len(expected) == 301
    assert unequal(after, expected) == CHANNELS_OF_TAPS
    others = {key: tensor for key, tensor in before.items() if key not in expected}
    assert any(key.startswith("model.4.") for key in others), "SPPF, whose width is half of its input's"
    assert not unequal(after, others | {key: before[key] for key in CHANNELS_OF_TAPS})
    (said,) = [record.getMessage() for record in caplog.records if "Neck and head" in record.getMessage()]
    assert "rows 4 to 18 take 299 of 313 tensors from rows 9 to 23" in said
    assert "row 4 SPPF" in said
    assert "model.8.cv1.conv.weight, model.11.cv1.conv.weight" in said


def test_another_number_of_classes_costs_the_last_convolutions(caplog: pytest.LogCaptureFixture) -> None:
    mine, theirs = detector("yolo11n_repvit.yaml", nc=3), detector("yolo11n.yaml", seed=1)
    logging.getLogger("ultralytics").addHandler(caplog.handler)
    mine.load(theirs)
    logging.getLogger("ultralytics").removeHandler(caplog.handler)
    last = {f"model.18.cv3.{level}.2.{kind}" for level in range(3) for kind in ("weight", "bias")}
    expected = renumbered(theirs.state_dict(), SHIFT, 10)
    fitting = {key: tensor for key, tensor in expected.items() if key not in last}
    assert unequal(mine.state_dict(), fitting) == CHANNELS_OF_TAPS
    assert mine.model[18].cv3[0][-1].weight.shape[0] == 3
    assert "for another number of classes" in caplog.text


@pytest.mark.parametrize(
    ("target", "source", "shift", "first", "kept"),
    [
        ("yolov8n-p2_repvit.yaml", "yolov8n-p2.yaml", 4, 10, 3),
        ("yolov5n-p6_repvit.yaml", "yolov5n-p6.yaml", 5, 10, 6),  # C3 has two convolutions on its input
        ("yolo11n.yaml", "yolo11n_edgevit.yaml", -5, 5, 2),
        ("yolo11n_repvit.yaml", "yolo11n_edgevit.yaml", 0, 5, 2),
    ],
)
def test_other_necks_and_between_our_backbones(target: str, source: str, shift: int, first: int, kept: int) -> None:
    mine, theirs = detector(target), detector(source, seed=1)
    mine.load(theirs, verbose=False)
    expected = renumbered(theirs.state_dict(), shift, first)
    wrong = unequal(mine.state_dict(), {k: v for k, v in expected.items() if mine.state_dict()[k].shape == v.shape})
    misfits = {key for key, tensor in expected.items() if mine.state_dict()[key].shape != tensor.shape}
    assert not wrong
    assert len(misfits) == kept
    assert all(key.endswith("conv.weight") for key in misfits)


def test_rows_that_are_the_same_but_connected_otherwise_are_not_taken() -> None:
    """Shapes alone would allow it: the maps of two rows of the neck are swapped in front of the head."""
    config = copy.deepcopy(detector("yolo11n_repvit.yaml").yaml)
    config["head"][-1][0] = [11, 17, 14]
    with pytest.warns(UserWarning, match="row 18 Detect takes its input from rows 11, 17, 14 in this model"):
        tasks.DetectionModel(config, verbose=False).load(detector("yolo11n.yaml", seed=1))


def test_a_head_without_its_neck_is_not_taken() -> None:
    """Every tensor of Detect has the shape of stock YOLOv8's, but the neck before it is YOLOv5's."""
    mine = detector("yolov5n_repvit.yaml")
    before = copy.deepcopy(mine.state_dict())
    with pytest.warns(UserWarning, match="row 18 is C3 in this model and row 21, its counterpart, C2f"):
        mine.load(detector("yolov8n.yaml", seed=1))
    assert not unequal(mine.state_dict(), before)


def test_a_stride_that_differs_is_another_neck() -> None:
    mine, theirs = detector("yolo11n_repvit.yaml"), detector("yolo11n.yaml", seed=1)
    theirs.model[17].conv.stride = (1, 1)
    with pytest.warns(UserWarning, match=r"row 12 Conv has conv.stride \[2, 2\] in this model"):
        mine.load(theirs)


def test_classifiers() -> None:
    """The head of a classifier sits on the tap itself: with other channels, its first convolution is another one."""
    mine = tasks.ClassificationModel("repvit-cls.yaml", nc=4, verbose=False)
    with pytest.warns(UserWarning, match="row 2 Classify: conv.conv.weight is 1280 x 384 x 1 x 1 in this model"):
        mine.load(tasks.ClassificationModel("yolo11n-cls.yaml", verbose=False))
    other = [[-1, 1, "RepViT", ["m0_9", {"input_norm": "none"}]], [0, 1, "Tap", ["P4"]], [0, 1, "Tap", ["P5"]]]
    config = {"nc": 4, "backbone": other, "head": [[-1, 1, "Classify", ["nc"]]]}
    theirs = randomised(tasks.ClassificationModel(config, verbose=False), 1)
    mine.load(theirs, verbose=False)
    assert not unequal(mine.state_dict(), renumbered(theirs.state_dict(), 1, 3))


# --- lightbackbones convert -------------------------------------------------------------------------------------------


def test_convert_takes_neck_and_head_of_a_stock_file(yolo11n: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    file, state = yolo11n
    result = convert(file, tmp_path / "init.pt")
    assert result.exit_code == 0, result.output
    assert "rows 4 to 18 take 299 of 313 tensors from rows 9 to 23" in result.stdout
    written = YOLO(str(tmp_path / "init.pt")).model
    assert unequal(written.state_dict(), renumbered(state, SHIFT, 10)) == CHANNELS_OF_TAPS
    assert written.names[79] == "thing 79", "so that training finds its classes by name"


def test_convert_takes_a_backbone_as_well(yolo11n: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    file, state = yolo11n
    backbone = randomised(create_backbone("repvit_m0_9"), 2).state_dict()
    torch.save(backbone, tmp_path / "repvit.pth")
    result = convert(file, tmp_path / "init.pt", "--backbone", str(tmp_path / "repvit.pth"), "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["family"], len(told["loaded"]), told["backbones"][0]["row"]) == ("repvit", len(backbone), 0)
    assert len(told["neck_and_head"]["taken"]) == 299
    written = YOLO(str(tmp_path / "init.pt")).model.state_dict()
    expected = {f"model.0.{key}": tensor for key, tensor in backbone.items()} | renumbered(state, SHIFT, 10)
    assert unequal(written, expected) == CHANNELS_OF_TAPS


def test_neck_and_head_of_our_own_checkpoint_with_another_backbone(tmp_path: Path) -> None:
    theirs = detector("yolo11n_repvit.yaml", seed=1)
    torch.save({"model": theirs, "ema": None}, tmp_path / "best.pt")
    torch.save(create_backbone("repvit_m0_9").state_dict(), tmp_path / "repvit.pth")
    result = convert(tmp_path / "best.pt", tmp_path / "init.pt", "-b", str(tmp_path / "repvit.pth"))
    assert result.exit_code == 0, result.output
    assert "rows 4 to 18 take 313 of 313 tensors from rows 4 to 18." in result.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yolo11s", "theirs has scale 's', this one 'n'"),
        ("yolov8n", "row 14 C3k2: m.0.cv1.conv.weight is 32 x 64 x 3 x 3 in this model and 64 x 64 x 3 x 3"),
        ("yolo11n-seg", "has the head 'Segment', and this model Detect"),
        ("yolo11n-cls", "has the head 'Classify', and this model Detect"),
    ],
)
def test_files_that_do_not_fit_are_refused(name: str, message: str, tmp_path: Path) -> None:
    file, _ = stock(tmp_path, name)
    result = convert(file, tmp_path / "init.pt")
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "init.pt").exists()


@pytest.mark.parametrize("damage", ["fused", "nan", "unconnected", "texts", "no rows", "row option"])
def test_damaged_models_are_refused(damage: str, yolo11n: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    checkpoint = torch.load(yolo11n[0], weights_only=False)
    net, options = checkpoint["model"].float(), []
    if damage == "fused":
        message, checkpoint["model"] = "The model in .*fused", net.eval().fuse(verbose=False)
    elif damage == "nan":
        message = "'model.18.cv2.0.0.conv.weight' has values that are not finite"
        net.model[23].cv2[0][0].conv.weight.data[0] = float("nan")
    elif damage == "unconnected":
        message, net.model[23].f = "do not say where their input comes from", [16, 99, "x"]
    elif damage == "texts":
        message, net.model[17].conv.stride = "row 12 Conv has conv.stride", "x" * 100_000
    elif damage == "no rows":
        message, net.model = "is damaged", torch.nn.Identity()
    else:
        message, options = "--row has no meaning", ["--row", "0"]
    torch.save(checkpoint, tmp_path / "x.pt")
    result = convert(tmp_path / "x.pt", tmp_path / "init.pt", *options)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert not (tmp_path / "init.pt").exists()
    assert len(result.stderr) < 1500
    assert re.search(message, result.stderr), result.stderr


# --- as users do it ---------------------------------------------------------------------------------------------------


def test_yolo_train_with_a_stock_checkpoint(yolo11n: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    """In a process of its own; one step that changes nothing, with other classes than the checkpoint's."""
    file, state = yolo11n
    generator = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for i in range(2):
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), generator.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        (tmp_path / "labels" / f"{i}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    data = {"path": str(tmp_path), "train": "images", "val": "images", "names": ["a", "b"]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(data))
    arguments = (
        f"train model=yolo11n_repvit.yaml pretrained={file} data=data.yaml project={tmp_path} name=run epochs=1 "
        "imgsz=32 batch=2 nbs=2 lr0=0 lrf=1 warmup_epochs=0 warmup_bias_lr=0 optimizer=SGD momentum=0 weight_decay=0 "
        "amp=False workers=0 device=cpu plots=False val=False"
    )
    entry = [sys.executable, "-c", "from ultralytics.cfg import entrypoint; entrypoint()", *arguments.split()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run(entry, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "Neck and head by their place from the end: rows 4 to 18" in run.stdout + run.stderr
    trained = YOLO(str(tmp_path / "run" / "weights" / "last.pt")).model.state_dict()
    expected = {
        key: tensor
        for key, tensor in renumbered(state, SHIFT, 10).items()
        if "running" not in key and "tracked" not in key and not key.endswith(("2.weight", "2.bias"))
    }
    assert unequal(trained, expected) == CHANNELS_OF_TAPS

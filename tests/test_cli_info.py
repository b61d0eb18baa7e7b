"""`lightbackbones info`: backbones, model YAMLs, checkpoints and weights, taken apart."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import published
import pytest
import torch
import yaml
from operations import operations
from torch import nn
from typer.testing import CliRunner, Result
from ultralytics.nn.tasks import DetectionModel

from yolo_lightbackbones import create_backbone, plugin
from yolo_lightbackbones.cli import app, targets
from yolo_lightbackbones.cli.common import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = {
    "nc": 3,
    "scales": {"n": [0.33, 0.25, 1024], "s": [0.33, 0.5, 1024]},
    "backbone": [
        [-1, 1, "RepViT", [{"n": "m0_6", "s": "m0_9"}]],
        [0, 1, "Tap", ["P3"]],
        [0, 1, "Tap", ["P4"]],
    ],
    "head": [[-1, 1, "Conv", [64, 1, 1]], [[1, 3], 1, "Detect", ["nc"]]],
}
"""A detector with taps P3 and P4 of three stages."""


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plugin.register()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["info", *map(str, arguments)], env={"COLUMNS": "120"})


def described(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def saved(net: Any, path: Path) -> Path:
    """What Ultralytics saves of a model, in half precision."""
    torch.save({"epoch": 3, "model": None, "ema": copy.deepcopy(net).half(), "train_args": {"task": "detect"}}, path)
    return path


# --- backbones --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["repvit_m0_9", "RepViT_m0.9"])
def test_a_variant(name: str) -> None:
    found = described(name, "--imgsz", "224")
    assert (found["name"], found["kind"], found["module"]) == ("repvit_m0_9", "variant", "RepViT")
    assert found["taps"] == {"P2": 48, "P3": 96, "P4": 192, "P5": 384}
    assert found["size_divisibility"] == 32
    assert found["input"] == {"order": "rgb", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert found["parameters"] == 4_717_792  # counted on the published code
    assert found["macs"] / 1e9 == pytest.approx(0.8165, abs=6e-5)
    # The paper's m0_9: blocks 3, 3, 15, 2; a stem of two 3x3 convolutions with norms.
    seen = [
        tuple(stage[key] for key in ("name", "blocks", "channels", "reduction", "tap")) for stage in found["stages"]
    ]
    assert seen == [
        ("stem", None, 48, 4, None),
        ("stage 1", 3, 48, 4, "P2"),
        ("stage 2", 3, 96, 8, "P3"),
        ("stage 3", 15, 192, 16, "P4"),
        ("stage 4", 2, 384, 32, "P5"),
    ]
    stem = found["stages"][0]
    assert stem["parameters"] == 3 * 24 * 9 + 2 * 24 + 24 * 48 * 9 + 2 * 48
    assert stem["macs"] == 112 * 112 * 3 * 24 * 9 + 56 * 56 * 24 * 48 * 9
    for key in ("parameters", "macs"):
        assert sum(stage[key] for stage in found["stages"]) == found[key]
    assert found["published"]["top1"] == 79.1


def test_a_variant_in_words() -> None:
    result = run("parcnet_s", "--imgsz", "256")
    assert result.exit_code == 0
    assert "height and width multiples of 32; inside the backbone: turned into BGR" in result.stdout
    assert "ImageNet top-1 78.6 %, 5.0 M parameters with the classifier, 1.74 GMACs at 256 px" in result.stdout
    total = next(line for line in result.stdout.splitlines() if "total" in line)
    assert re.findall(r"[\d.,]+", total) == ["4,292,408", "1.6502"]


def test_a_rectangular_image_costs_its_share() -> None:
    square, half = (described("repvit_m0_6", "--imgsz", size)["macs"] for size in ("64", "64,32"))
    pooled = half * 2 - square  # squeeze-and-excitation alone does not depend on the size
    assert 0 <= pooled < 0.05 * square


def test_variants_need_no_ultralytics() -> None:
    code = """
import sys
sys.modules["ultralytics"] = None
from yolo_lightbackbones.cli import app
app(sys.argv[1:])
"""
    command = [sys.executable, "-c", code, "info"]
    result = subprocess.run([*command, "edgevit_xxs", "--json"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["parameters"] == 3_778_128
    result = subprocess.run([*command, "yolov5n_repvit.yaml"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "needs Ultralytics, which cannot be imported" in result.stderr
    assert "lightbackbones doctor" in result.stderr
    assert "Traceback" not in result.stderr


# --- models -----------------------------------------------------------------------------------------------------------


def test_our_yaml_with_its_scale_in_the_name() -> None:
    found = described("yolov5n_repvit.yaml", "--imgsz", "320")
    assert (found["kind"], found["task"], found["scale"], found["classes"]) == ("yaml", "detect", "n", 80)
    backbone = found["backbone"]
    assert (backbone["module"], backbone["variants"]) == ("RepViT", ["repvit_m0_9"])
    assert backbone["taps"] == {"P3": 96, "P4": 192, "P5": 384}
    assert len(found["rows"]) == 20
    assert [row["module"] for row in found["rows"][:5]] == ["RepViT", "Tap P3", "Tap P4", "Tap P5", "SPPF"]
    assert found["rows"][-1]["module"] == "Detect"
    assert found["rows"][-1]["from"] == [12, 15, 18]
    assert [row["part"] for row in found["rows"]] == ["backbone"] * 5 + ["neck"] * 14 + ["head"]
    assert found["rows"][1]["output"] == [96, 40, 40]
    for key in ("parameters", "macs"):
        assert sum(row[key] for row in found["rows"]) == found[key]
        assert sum(stage[key] for stage in backbone["stages"]) == found["rows"][0][key]
        assert sum(part[key] for part in found["parts"].values()) == found[key]
    assert found["rows"][0]["parameters"] == 4_717_792


def test_a_yaml_of_the_users_and_its_checkpoint_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(MODEL))
    net = DetectionModel(str(tmp_path / "mine.yaml"), verbose=False)  # scale n, the first
    trained = described(saved(net, tmp_path / "best.pt"), "--imgsz", "96")
    written = described("mine.yaml", "--scale", "n", "--imgsz", "96")
    for document, kind in ((trained, "checkpoint"), (written, "yaml")):
        assert document["kind"] == kind
        assert document["backbone"]["taps"] == {"P3": 80, "P4": 160}
        assert [stage["tap"] for stage in document["backbone"]["stages"]] == [None, "P2", "P3", "P4"]
        assert document["backbone"]["variants"] == ["repvit_m0_6"]
        assert document["classes"] == 3
    assert trained["rows"] == written["rows"]

    flops = operations(net.eval(), torch.zeros(1, 3, 96, 96))
    assert trained["gflops"] == pytest.approx(flops / 1e9, rel=1e-12)
    assert trained["macs"] * 2 == flops
    assert trained["parameters"] == sum(parameter.numel() for parameter in net.parameters())
    other = described("mine.yaml", "-s", "s", "--imgsz", "96")
    assert (other["scale"], other["backbone"]["variants"]) == ("s", ["repvit_m0_9"])


def test_stock_models_are_described_as_well(tmp_path: Path) -> None:
    found = described("yolo11n.yaml", "--imgsz", "64")
    assert found["backbone"] is None
    assert found["parameters"] == 2_624_080  # what Ultralytics' own YAML says of yolo11n
    assert sum(row["macs"] for row in found["rows"]) == found["macs"] > 0
    path = saved(DetectionModel("yolov5n.yaml", nc=2, verbose=False), tmp_path / "stock.pt")
    result = run(path, "--imgsz", "64")
    assert result.exit_code == 0, result.output
    assert "backbone: none of ours" in result.stdout
    assert "SPPF" in result.stdout
    assert "GFLOPs" in result.stdout


def test_without_a_letter_it_is_the_first_as_in_ultralytics() -> None:
    assert described("yolov5_edgevit.yaml", "--imgsz", "64")["scale"] == "n"


def test_a_classifier_and_grey_images(tmp_path: Path) -> None:
    assert described("edgevit-cls.yaml", "--imgsz", "64")["task"] == "classify"
    net = DetectionModel({**MODEL, "scale": "n"}, ch=1, verbose=False)
    found = described(saved(net, tmp_path / "grey.pt"), "--imgsz", "64")
    assert found["image_channels"] == 1
    assert found["backbone"]["input"] == {"order": "as given", "mean": None, "std": None}


def test_a_model_in_words() -> None:
    result = run("yolov5n_edgevit.yaml", "--imgsz", "64")
    assert result.exit_code == 0
    assert "yolov5n_edgevit.yaml: detect, scale n, 80 classes" in result.stdout
    assert "EdgeViT, edgevit_xxs; taps in use: P3 (72), P4 (144), P5 (288)" in result.stdout
    assert re.search(r"stage 4, P5 +│ +288x2x2", result.stdout)
    assert "5,433,097 parameters" not in result.stdout  # that one had three classes
    assert re.search(r"│ total .* [\d,]+ │ +0\.\d{4} │", result.stdout)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_published_weights_are_recognised(tmp_path: Path) -> None:
    state = published.make_state(published.golden("repvit_m0_9_96x64")["keys"])
    path = published.save_checkpoint(state, tmp_path / "official.pth", "model")
    found = described(path, "--imgsz", "64")
    assert (found["kind"], found["name"], found["parameters"]) == ("weights", "repvit_m0_9", 4_717_792)
    assert found["note"] == f"{path}: These are the weights of repvit_m0_9."
    assert f"{path}: These are the weights of repvit_m0_9." in run(path, "--imgsz", "64").stdout


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["repvit_m09"], "Unknown variant 'repvit_m09' of RepViT. Did you mean 'm0_9'.*such as .*\\.yaml.*\\.pt"),
        (["resnet50"], "Unknown backbone 'resnet50'.*Allowed: edgevit_xxs"),
        (["best.pt"], "There is no file best.pt"),
        (["yolo11n_repvit.pt"], "no trained model of that name is published: take its YAML, yolo11n_repvit.yaml"),
        (["yolo11n-RepViT.yaml"], "no YAML yolo11n-RepViT.yaml. Did you mean yolo11n_repvit.yaml"),
        (["runs/best"], "There is no file runs/best"),
        (["nowhere.yaml"], "no YAML nowhere.yaml.*such as .*.yaml"),
        (["yolov5x_edgevit.yaml"], "asks for scale 'x', but it has the scales n, s, m"),
        (["yolov5_repvit.yaml", "-s", "q"], "no scale 'q'"),
        (["repvit_m0_6", "-s", "n"], "--scale n is for model YAMLs; repvit_m0_6 is none"),
        (["repvit_m0_6", "--imgsz", "100"], "100 x 100 .*repvit_m0_6 needs multiples of 32.*--imgsz 128\\."),
        (["yolov5n_repvit.yaml", "--imgsz", "64,100"], "64 x 100 .*multiples of 32.*--imgsz 64,128\\."),
        (["repvit_m0_6", "--imgsz", "big"], "image size is 'big'"),
        (["text.pth"], "text.pth is not a checkpoint"),
        (["other.pth"], "other.pth holds 1 tensors, but they are the weights of no backbone"),
        (["stranger.pt"], "stranger.pt holds pickled Python objects"),
        (["folder.pt"], "folder.pt is a folder"),
        (["bad.yaml"], "m0_8.*m0_9"),
        (["*_repvit.yaml"], r"no YAML \*_repvit\.yaml"),
        (["channels.yaml"], r"channels\.yaml: channels is \[3\]; it must be a whole number"),
        (["scales.yaml"], r"scales\.yaml, row 0 .*'scales' is .*must map letters to \[depth, width"),
        (["stock.yaml"], r"cannot build stock\.yaml: not enough values"),
        (["bare.pt"], r"bare\.pt holds a Sequential and no model of Ultralytics around it"),
    ],
)
def test_mistakes(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save({"model": subprocess.CompletedProcess([], 0)}, tmp_path / "stranger.pt")
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "bad.yaml").write_text(
        yaml.safe_dump({**MODEL, "scales": None, "backbone": [[-1, 1, "RepViT", ["m0_8"]], *MODEL["backbone"][1:]]})
    )
    (tmp_path / "channels.yaml").write_text(yaml.safe_dump({**MODEL, "channels": [3]}))
    (tmp_path / "scales.yaml").write_text(yaml.safe_dump({**MODEL, "scales": {"n": [0.33]}}))
    stock = {"nc": 1, "scales": {"n": [0.33]}, "backbone": [[-1, 1, "Conv", [8]]], "head": [[[0], 1, "Detect", [1]]]}
    (tmp_path / "stock.yaml").write_text(yaml.safe_dump(stock))
    if "bare.pt" in arguments:
        from ultralytics.nn.tasks import DetectionModel

        torch.save(DetectionModel("yolov8n.yaml", verbose=False), tmp_path / "bare.pt")
    result = run(*arguments)
    assert result.exit_code == 1
    assert re.search(message, result.stderr), result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_an_image_that_a_model_cannot_run_on() -> None:
    target = targets.Target("small.yaml", "yaml", nn.Conv2d(3, 4, 5), channels=3, divisor=1)
    assert target.count((5, 6)).total.macs == 2 * 4 * 75
    with pytest.raises(UserError, match=r"small\.yaml cannot run on an image of 4 x 6: .*[Kk]ernel size"):
        target.count((4, 6))


def test_json_is_all_there_is_on_stdout(tmp_path: Path) -> None:
    """Also in a first process, in which Ultralytics makes its settings and says so."""
    code = "import sys; from yolo_lightbackbones.cli import app; app(sys.argv[1:])"
    command = [sys.executable, "-c", code, "info", "yolov5n_repvit.yaml", "--imgsz", "64", "--json"]
    environment = {**os.environ, "YOLO_CONFIG_DIR": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["scale"] == "n"


def test_weights_inside_a_larger_model_are_recognised(tmp_path: Path) -> None:
    with torch.device("meta"):
        backbone = create_backbone("edgevit_xs")
    state = published.make_state({key: tuple(value.shape) for key, value in backbone.state_dict().items()})
    torch.save({f"backbone.{key}": value for key, value in state.items()}, tmp_path / "part.pth")
    note = described(tmp_path / "part.pth", "--imgsz", "32")["note"]
    assert note.endswith("weights of edgevit_xs, in the part of a larger model called 'backbone.'.")

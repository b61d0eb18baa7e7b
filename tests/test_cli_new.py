"""`lightbackbones new`: what it writes is built by Ultralytics, and nothing is written where something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner
from ultralytics import YOLO

from yolo_lightbackbones.cli import app, models
from yolo_lightbackbones.configs import necks


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["new", *map(str, arguments)])


def test_the_written_file_is_the_model_that_was_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    result = run(
        "-b", "repvit_m1.0", "--neck", "yolo11", "--task", "detect", "--taps", "P3,P4,P5", "-o", file, "--json"
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    model = YOLO(file).model
    assert type(model.model[0]).__name__ == "RepViT"
    assert model.model[0].out_channels[-1] == 448  # M1.0, Table 1 of arXiv 2307.09283
    assert model.stride.tolist() == told["strides"] == [8, 16, 32]
    assert told["parameters"] == sum(p.numel() for p in model.parameters())
    assert told["scale"] == "n"


@pytest.mark.parametrize(
    ("task", "neck", "head"),
    [
        ("segment", "yolov8", "Segment"),
        ("pose", "yolo26", "Pose26"),
        ("obb", "yolov5", "OBB"),
        ("classify", "yolo11", "Classify"),
        ("semantic", "yolo26", "SemanticSegment"),
        ("depth", "yolo11", "Depth"),
    ],
)
def test_every_task(task: str, neck: str, head: str, tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    result = run("-b", "edgevit", "-n", neck, "-t", task, "-o", file)
    assert result.exit_code == 0, result.output
    assert YOLO(file).task == task
    assert yaml.safe_load(file.read_text())["head"][-1][2] == head
    assert f"yolo {task} train model={file}" in result.output


@pytest.mark.parametrize(
    ("neck", "head", "model"),
    [
        ("rtdetr", "RTDETRDecoder", "RTDETRDetectionModel"),
        ("yolov8-worldv2", "WorldDetect", "WorldModel"),
        ("yoloe-11", "YOLOEDetect", "YOLOEModel"),
    ],
)
def test_necks_that_ultralytics_knows_by_the_name_of_the_file(
    neck: str, head: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    original = models.build
    monkeypatch.setattr(models, "build", lambda *args: built.append(original(*args)) or built[-1])
    result = run("-b", "edgevit_xxs", "-n", neck, "-o", file := tmp_path / f"{neck}_mine.yaml")
    assert result.exit_code == 0, result.output
    assert yaml.safe_load(file.read_text())["head"][-1][2] == head
    assert type(built[0]).__name__ == model


def test_a_head_that_this_ultralytics_lacks_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.nn import tasks

    monkeypatch.delattr(tasks, "DepthModel")
    result = run("-b", "edgevit_xxs", "-n", "yolo26", "-t", "depth", "-o", tmp_path / "mine.yaml")
    assert result.exit_code == 1
    assert "has no Depth. Tested with 8.4.150 to " in " ".join(result.output.split())
    monkeypatch.setattr(necks, "modules", lambda: {"Later"})
    config = {"nc": 1, "backbone": [[-1, 1, "EdgeViT", ["xxs"]], [0, 1, "Tap", ["P5"]]], "head": [[-1, 1, "Later", []]]}
    with pytest.raises(ValueError, match=r"row 2 \[-1, 1, Later, \[\]\]: Ultralytics .* has no Later\. Tested with"):
        tasks.DetectionModel(config, verbose=False)
    stock = {**config, "backbone": [[-1, 1, "Conv", [8]]]}
    with pytest.raises(KeyError, match=r"^'Later'$"):  # a stock model's error stays Ultralytics' own
        tasks.DetectionModel(stock, verbose=False)
    assert not list(tmp_path.iterdir())


def test_the_commands_of_a_classifier_name_a_detector_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for backbone, written in (("repvit_m0_6", True), ("repvit", False)):
        run("-b", backbone, "-t", "classify", "-o", f"{backbone}.yaml")
        commands = [
            line[2:] for line in Path(f"{backbone}.yaml").read_text().splitlines() if line.startswith("# light")
        ]
        assert ("lightbackbones new" in commands[0]) == written
        assert f"--model yolov5_{backbone}.yaml --scale n" in commands[-1]
        if written:
            result = CliRunner().invoke(app, commands[0].split()[1:])
            assert result.exit_code == 0, result.output
            assert Path(f"yolov5_{backbone}.yaml").is_file()


def test_levels_and_one_scale_alone(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    assert run("-b", "edgevit", "-n", "yolov8", "--taps", "p2, p3", "-s", "s", "-o", file).exit_code == 0
    config = yaml.safe_load(file.read_text())
    assert list(config["scales"]) == ["s"]
    assert config["backbone"][0] == [-1, 1, "EdgeViT", ["xs"]]
    assert YOLO(file).model.stride.tolist() == [4, 8]


def test_the_letter_in_the_name_of_the_file_counts(tmp_path: Path) -> None:
    result = run("-b", "edgevit", "-o", tmp_path / "yolo11s_mine.yaml", "--json")
    assert json.loads(result.stdout)["scale"] == "s"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-b", "resnet50"], "Allowed: a family (edgevit, parcnet, repvit, conv2former"),
        (["-b", "repvit_m9"], "Did you mean"),
        (["-b", "repvit", "-n", "yolov9"], "There is no neck 'yolov9'. Allowed: yolov5, yolov8, "),
        (["-b", "repvit", "-t", "seg"], "detect, segment, pose, obb, classify, semantic, depth"),
        (["-b", "repvit", "-n", "rtdetr"], "only if 'rtdetr' is in the name of its file, and the output is mine.yaml"),
        (["-b", "repvit", "-n", "yolov8-worldv2"], "only if '-world' is in the name of its file"),
        (["-b", "repvit", "-o", "my_yoloe.yaml"], "takes a file with 'yoloe' in its name for another class of model"),
        (["-b", "repvit", "-n", "yolov10", "-t", "pose"], "yolov10 has no head for the task 'pose'"),
        (["-b", "edgevit", "-n", "rtdetr-x", "-o", "rtdetr.yaml"], "and rtdetr-x has the scales x. Choose a variant"),
        (["-b", "repvit", "--taps", "P3,P5"], "follow each other"),
        (["-b", "repvit", "--taps", "P7"], "There is no level 'P7'"),
        (["-b", "edgevit", "-s", "x"], "Allowed: n, s, m"),
        (["-b", "edgevit", "-o", "yolo11x_mine.yaml"], "scale 'x'"),
        (["-b", "edgevit", "-o", "mine.txt"], ".yaml"),
        (["-b", "edgevit", "-o", "mine.YAML"], "its suffix must be one of .yaml, .yml"),
        (["-b", "edgevit", "-o", "yolov5n6.yaml"], "Ultralytics reads yolov5n6.yaml as yolov5n-p6.yaml"),
        (["-b", "edgevit", "-o", "a\nb.yaml"], "cannot be printed"),
        (["-b", "edgevit", "-s", "n", "-o", "yolo11s_mine.yaml"], "asks for scale 's', and the model has n"),
        (["-b", "edgevit", "-t", "classify", "--taps", "P4,P5"], "Leave --taps out"),
        (["-b", "edgevit", "-o", "no/mine.yaml"], "no folder"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, *([] if "-o" in arguments else ["-o", "mine.yaml"]))
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_kept_unless_forced(tmp_path: Path) -> None:
    (file := tmp_path / "mine.yaml").write_text("mine")
    assert run("-b", "edgevit", "-o", file).exit_code == 1
    assert file.read_text() == "mine"
    assert run("-b", "edgevit", "-o", file, "--force").exit_code == 0
    assert "EdgeViT" in file.read_text()

"""Timm rows of model YAMLs: what they build, what they refuse, and what becomes of their detectors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from contract import random_image, randomise, run
from typer.testing import CliRunner

from yolo_lightbackbones import fuse, registry
from yolo_lightbackbones.cli import app
from yolo_lightbackbones.plugin import register, rows, sizes
from yolo_lightbackbones.plugin.row import ConfigError

timm = pytest.importorskip("timm")

pytestmark = pytest.mark.usefixtures("one_thread")

register()


def config(args: str, taps: tuple[str, ...] = ("P3", "P4", "P5")) -> dict[str, Any]:
    import yaml

    text = "\n".join(
        [
            "nc: 3",
            "scales: {n: [0.5, 0.25, 1024], s: [0.5, 0.5, 1024]}",
            "scale: s",
            "backbone:",
            f"  - [-1, 1, Timm, [{args}]]",
            *(f"  - [0, 1, Tap, [{tap}]]" for tap in taps),
            "head:",
            f"  - [{[*range(1, len(taps) + 1)]}, 1, Detect, [nc]]",
        ]
    )
    loaded: dict[str, Any] = yaml.safe_load(text)
    return {**loaded, "yaml_file": "my.yaml"}


def detector(args: str, *taps: str) -> Any:
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    return DetectionModel(config(args, taps or ("P3", "P4", "P5")), ch=3, verbose=False)


def test_a_row_becomes_a_backbone() -> None:
    model = detector("test_efficientnet, {tap_norm: batch, drop_path_rate: 0.1}", "P3", "P4")
    backbone = model.model[0]
    assert (backbone.variant, model.stride.tolist()) == ("test_efficientnet", [8, 16])
    assert backbone.taps == ("P2", "P3", "P4")
    assert list(backbone.tap_norms) == ["P3", "P4"]


def test_the_scale_letter_picks_the_name() -> None:
    given = rows.translate(config("{n: test_resnet, s: test_convnext.r160_in1k}"), 3, registry.families())
    assert given["backbone"][0][3][0] == "timm/test_convnext.r160_in1k"


def test_the_row_is_the_same_in_a_table_of_layers_and_in_the_checkpoint() -> None:
    model = detector("test_resnet, {input_norm: none}")
    assert model.yaml["backbone"][0] == [-1, 1, "Timm", ["test_resnet", {"input_norm": "none"}]]


@pytest.mark.parametrize(
    ("args", "taps", "message"),
    [
        (
            "mobilenetv4_small",
            (),
            r"timm has no model 'mobilenetv4_small'\. Did you mean '.*'\? Allowed: a name of timm",
        ),
        ("test_resnet.nothing", (), r"timm has no weights 'nothing' of test_resnet\..* Allowed: test_resnet, or with"),
        (
            "resnet18, {pretraind: true}",
            (),
            r"unknown option 'pretraind'\. Allowed: drop_path_rate, input_norm, tap_norm",
        ),
        ("resnet18, {init: scratch}", (), r"unknown option 'init'\. Allowed: drop_path_rate"),
        ("resnet18, {pretrained: 3}", (), "pretrained is 3; it must be true, false, or a file of weights"),
        ("resnet18, {imgsz: 224}", (), "resnet18 takes images of any size; leave imgsz out"),
        (
            "resnet18, {imgsz: 16}",
            (),
            "imgsz is 16; it must be a side in pixels or .height, width., whole numbers from 32",
        ),
        ("test_coatnet", (), "test_coatnet is built for images of one size; say which: imgsz: 160"),
        ("test_coatnet, {imgsz: [160, 150]}", (), "imgsz is 160 x 150; test_coatnet needs multiples of 32"),
        ("shvit_s1", ("P3", "P4"), r"timm/shvit_s1 has no tap P3\. Allowed, one of: P4, P5, P6"),
        ("vit_tiny_patch16_224", ("P4",), "has only maps at a reduction of 16"),
        ("5", (), "the variant is 5; it must be a name out of NAME, a model of timm"),
        ("", (), r"0 arguments; Timm takes a variant, .* for example \[mobilenetv4_conv_small\]"),
    ],
)
def test_mistakes_name_the_row(args: str, taps: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^my\.yaml, row [01] .*{message}") as error:
        rows.translate(config(args, taps or ("P3",)), 3, registry.families())
    assert "\n" not in str(error.value)


def test_without_timm_one_sentence_says_what_to_install() -> None:
    code = f"""
import sys
sys.modules["timm"] = None
from yolo_lightbackbones import registry
from yolo_lightbackbones.plugin import row, rows
try:
    rows.translate({config("resnet18")!r}, 3, registry.families())
except row.ConfigError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.startswith(
        "my.yaml, row 0 [-1, 1, Timm, [resnet18]]: Timm rows and timm/NAME backbones need the package timm"
    )
    assert "pip install 'timm>=1.0.16'" in said


# --- detectors --------------------------------------------------------------------------------------------------------


def test_a_detector_folds_and_keeps_its_outputs() -> None:
    model = detector("test_byobnet").eval()
    randomise(model.model[0])
    image = random_image(64, 96)
    expected = run(model, image)[0]
    fused = model.fuse(verbose=False)
    assert fused.is_fused()
    torch.testing.assert_close(run(fused, image)[0], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("safe", ["0", "1"])
def test_a_checkpoint_loads_in_a_process_of_its_own(tmp_path: Path, safe: str) -> None:
    from ultralytics import YOLO

    yolo = YOLO("yolo11n.yaml", verbose=False)
    yolo.model = detector("test_mambaout").eval()
    randomise(yolo.model.model[0])
    yolo.model.half().float()  # Ultralytics saves in half precision
    image = random_image(64, 96)
    torch.save((image, run(yolo.model, image)[0]), tmp_path / "expected.pth")
    yolo.save(tmp_path / "model.pt")
    code = """
import torch
from ultralytics import YOLO
image, expected = torch.load("expected.pth")
model = YOLO("model.pt").model.eval()
with torch.no_grad():
    torch.testing.assert_close(model(image)[0], expected, rtol=0, atol=0)
"""
    environment = {**os.environ, "ULTRALYTICS_SAFE_LOAD": safe}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)


def test_a_detector_of_one_size_is_built_and_refuses_others() -> None:
    model = detector("test_coatnet, {imgsz: 160}").eval()
    assert model.stride.tolist() == [8, 16, 32]
    assert run(model, random_image(160, 160))[0].shape[-1] == 525
    with pytest.raises(ValueError, match=r"The image is 256 x 256 .* built for 160 x 160"):
        run(model, torch.zeros(1, 3, 256, 256))


def trainer(model: Any, **args: Any) -> Any:
    dataset = SimpleNamespace(rect=True)
    loader = SimpleNamespace(dataset=dataset, resets=0)
    loader.reset = lambda: setattr(loader, "resets", loader.resets + 1)
    given = SimpleNamespace(**{"imgsz": 160, "rect": False, "multi_scale": 0.0, **args})
    return SimpleNamespace(model=model, args=given, test_loader=loader, ema=None)


def test_a_training_of_one_size_validates_on_squares() -> None:
    one, any_size = detector("test_coatnet, {imgsz: 160}"), detector("test_resnet")
    given = trainer(one)
    sizes.on_training(given)
    assert (given.test_loader.dataset.rect, given.test_loader.resets) == (False, 1)
    given = trainer(any_size, imgsz=640, rect=True)
    sizes.on_training(given)
    assert given.test_loader.dataset.rect


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"imgsz": 640}, "imgsz is 640; this model is built for images of 160 x 160: imgsz=160"),
        ({"rect": True}, "rect is True; this model is built for images of 160 x 160"),
        ({"multi_scale": 0.5}, "multi_scale is 0.5; this model"),
    ],
)
def test_a_training_with_images_of_other_sizes_is_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sizes.on_training(trainer(detector("test_coatnet, {imgsz: 160}"), **args))


def test_operations_of_one_size_are_counted() -> None:
    from ultralytics.utils.torch_utils import get_flops

    model = detector("test_coatnet, {imgsz: 160}")
    assert get_flops(model, 640) == get_flops(model, 160) > 0.1


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    import yaml

    path = tmp_path / "my.yaml"
    content = config("test_efficientnet")
    del content["scales"], content["scale"], content["yaml_file"]
    path.write_text(yaml.safe_dump(content))
    return path


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_convert_and_info(yaml_file: Path, tmp_path: Path) -> None:
    source = timm.create_model("test_efficientnet")
    randomise(source)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    output = tmp_path / "init.pt"
    result = invoke("convert", str(tmp_path / "weights.pth"), "--model", str(yaml_file), "-o", str(output), "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["layout"], report["missing"], report["unexpected"]) == ("timm", [], [])
    assert "classifier.weight" in report["dropped"]
    for target in (yaml_file, output):
        result = invoke("info", str(target), "--imgsz", "64", "--json")
        assert result.exit_code == 0, result.output
        backbone = json.loads(result.stdout)["backbone"]
        assert backbone["variants"] == ["timm/test_efficientnet"]
        assert [stage["name"] for stage in backbone["stages"]][:2] == ["conv_stem", "bn1"]


def test_info_and_compare_of_a_name() -> None:
    result = invoke("info", "timm/test_efficientnet", "--imgsz", "64", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["name"] == "timm/test_efficientnet"
    result = invoke("compare", "timm/test_efficientnet", "timm/test_resnet", "--imgsz", "64", "--json")
    assert result.exit_code == 0, result.output
    result = invoke("info", "timm/resnet19")
    assert result.exit_code != 0
    assert "timm has no model 'resnet19'. Did you mean 'resnet18'?" in result.output.replace("\n", " ")


def test_weights_of_another_model_are_refused(yaml_file: Path, tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")
    output = tmp_path / "init.pt"
    result = invoke("convert", str(tmp_path / "weights.pth"), "--model", str(yaml_file), "-o", str(output))
    assert result.exit_code != 0
    assert "tensors fit timm/test_efficientnet" in result.output.replace("\n", " ")
    assert not output.exists()


def test_a_backbone_is_exported(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = detector("test_convnext").eval()
    randomise(model.model[0])
    backbone = fuse(model.model[0])
    image = random_image(64, 96)
    torch.onnx.export(backbone, (image,), str(tmp_path / "model.onnx"), dynamo=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    given = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    for ours, theirs in zip(given, run(model.model[0], image), strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-3, atol=1e-3)

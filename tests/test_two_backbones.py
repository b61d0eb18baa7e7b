"""Models with two backbones, some channels of the image for each, and rows before a backbone."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from operations import operations
from torch import Tensor, nn
from typer.testing import CliRunner, Result
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.utils import torch_utils

import yolo_lightbackbones
from yolo_lightbackbones import create_backbone
from yolo_lightbackbones.cli import app
from yolo_lightbackbones.input_norm import InputNorm
from yolo_lightbackbones.layers import Channels
from yolo_lightbackbones.plugin import transfer
from yolo_lightbackbones.plugin.row import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")

TWO = """
nc: 2
channels: 6
scales: {n: [0.5, 0.25, 1024]}
scale: n
yaml_file: two.yaml
backbone:
  - [-1, 1, nn.Identity, []]
  - [0, 1, Channels, [0, 3]]
  - [-1, 1, RepViT, [m0_6]]
  - [0, 1, Channels, [3, 6]]
  - [-1, 1, EdgeViT, [xxs]]
  - [2, 1, Tap, [P3]]
  - [4, 1, Tap, [P3]]
  - [[5, 6], 1, Concat, [1]]
  - [2, 1, Tap, [P4]]
  - [4, 1, Tap, [P4]]
  - [[8, 9], 1, Concat, [1]]
head:
  - [[7, 10], 1, Detect, [nc]]
"""

STEM = """
nc: 2
scales: {n: [0.5, 0.25, 1024]}
scale: n
yaml_file: stem.yaml
backbone:
  - [-1, 1, Conv, [48, 3, 2]]
  - [-1, 2, RepViTBlock, [96]]
  - [-1, 1, RepViT, [m0_6]]
  - [-1, 1, Tap, [P2]]
  - [2, 1, Tap, [P3]]
head:
  - [[3, 4], 1, Detect, [nc]]
"""


@pytest.fixture(autouse=True)
def _registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ultralytics writes `runs/` into the current folder."""
    monkeypatch.chdir(tmp_path)
    yolo_lightbackbones.register()
    yield
    yolo_lightbackbones.register()


def config(text: str, **rows: str) -> dict[str, Any]:
    """The model with some rows replaced: `config(TWO, row2="[-1, 1, RepViT, [m0_9]]")`."""
    made: dict[str, Any] = yaml.safe_load(text)
    for key, row in rows.items():
        made["backbone"][int(key.removeprefix("row"))] = yaml.safe_load(row)
    return made


def build(text: str, **rows: str) -> Any:
    return tasks.DetectionModel(config(text, **rows), verbose=False)


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.4 + 0.1)
    return net


def image(channels: int, size: int = 64, batch: int = 1) -> Tensor:
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


# --- what is built ----------------------------------------------------------------------------------------------------


def test_each_backbone_gets_its_channels_of_the_image() -> None:
    net = build(TWO)
    assert [type(row).__name__ for row in net.model[:5]] == ["Identity", "Channels", "RepViT", "Channels", "EdgeViT"]
    assert (net.model[3].i, net.model[3].f, net.model[3].np) == (3, 0, 0)
    assert net.yaml["channels"] == 6
    assert net.stride.tolist() == [8, 16]
    seen: dict[int, Tensor] = {}
    for row in (2, 4):
        net.model[row].register_forward_hook(lambda module, given, made, row=row: seen.update({row: given[0]}))
    x = image(6)
    net.eval()(x)
    torch.testing.assert_close(seen[2], x[:, :3], rtol=0, atol=0)
    torch.testing.assert_close(seen[4], x[:, 3:], rtol=0, atol=0)


def test_the_input_norm_is_for_images_only() -> None:
    two, stem = build(TWO), build(STEM)
    assert isinstance(two.model[2].input_norm, InputNorm)
    assert isinstance(two.model[4].input_norm, InputNorm)
    one_channel = build(TWO, row3="[0, 1, Channels, [3, 4]]")
    assert isinstance(one_channel.model[4].input_norm, nn.Identity)
    assert isinstance(stem.model[2].input_norm, nn.Identity)
    three = build(STEM, row1="[-1, 1, Channels, [0, 3]]")  # three feature maps are no image either
    assert isinstance(three.model[2].input_norm, nn.Identity)
    assert three.model[2].image_conv()[1].in_channels == 3


def test_rows_before_a_backbone_and_their_channels() -> None:
    net = build(STEM)
    stem = net.model[2].stem.conv1.conv
    assert stem.in_channels == 24, "96 channels at a width of 0.25, as Ultralytics' parser scales them"
    assert net.stride.tolist() == [8, 16], "P2 and P3 of a backbone behind a convolution with stride 2"
    assert {type(row).__name__ for row in net.model[:2]} == {"Conv", "RepViTBlocks"}
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    build_rows = config(STEM)
    with torch.device("meta"):
        tasks.parse_model(build_rows, 3, verbose=False)
    assert torch.equal(torch.rand(1), before), "finding the channels draws no random numbers"


def test_a_backbone_on_another_backbones_tap() -> None:
    rows = {"row3": "[2, 1, Tap, [P3]]", "row4": "[-1, 1, EdgeViT, [xxs]]", "row6": "[4, 1, Tap, [P2]]"}
    made = config(TWO, **rows)
    made["backbone"] = [*made["backbone"][:7]]
    made["head"] = [[[5, 6], 1, "Detect", ["nc"]]]
    net = tasks.DetectionModel(made, verbose=False)
    assert net.model[4].image_conv()[1].in_channels == net.model[2].out_channels[1]
    assert isinstance(net.model[4].input_norm, nn.Identity)


@pytest.mark.parametrize("text", [TWO, STEM])
def test_folding_changes_nothing(text: str) -> None:
    net = build(text).eval()
    generator = torch.Generator().manual_seed(3)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:  # affine terms and statistics of norms, biases
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.75)
    x = image(net.yaml["channels"])
    folded = copy.deepcopy(net).fuse(verbose=False)
    assert folded.is_fused()
    with torch.no_grad():
        expected, seen = net(x)[0], folded(x)[0]
    assert expected.std() > 0
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)


def test_operations_are_counted_on_all_channels() -> None:
    net = build(TWO)
    counted = torch_utils.get_flops(net, 64) * 1e9
    by_torch = operations(net.eval(), image(6))
    assert by_torch > 0
    assert counted == pytest.approx(by_torch, rel=0.01)


def test_without_the_channels_of_the_yaml_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"row 3 .*channels 3 to 5 of the image, which has 3. Set `channels`"):
        tasks.DetectionModel(config(TWO), ch=3, verbose=False)


def test_stock_models_and_given_channels_are_left_alone() -> None:
    stock = tasks.yaml_model_load("yolo11n.yaml")
    assert tasks.DetectionModel({**stock, "channels": 6}, verbose=False).yaml["channels"] == 3
    own = tasks.yaml_model_load("yolo11n_repvit.yaml")
    assert tasks.DetectionModel({**own, "channels": 6}, 4, verbose=False).yaml["channels"] == 4


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"row3": "[0, 1, Channels, [3, 9]]"}, r"row 3 .*it takes channels 3 to 8 of the image, which has 6\."),
        ({"row3": "[1, 1, Channels, [3, 6]]"}, r"row 3 .*it takes channels 3 to 5 of the image, which has 3\."),
        (
            {"row3": "[0, 1, Channels, [3]]"},
            r"row 3 .*the arguments are \[3\]; Channels takes the first channel and",
        ),
        ({"row3": "[0, 1, Channels, [6, 3]]"}, r"row 3 .*the arguments are \[6, 3\]; .*\[0, 3\] are the first three"),
        ({"row3": "[0, 2, Channels, [3, 6]]"}, r"row 3 .*repeats is 2; Channels cannot be repeated: write 1"),
        ({"row3": "[7, 1, Channels, [3, 6]]"}, r"row 3 .*'from' is 7; it must be the number of an earlier row"),
        ({"row3": "[2, 1, Channels, [3, 6]]"}, r"row 3 .*the backbone \(row 2\), which gives a list of maps"),
        ({"row0": "[0, 1, Channels, [0, 6]]"}, r"row 0 .*'from' is 0; Channels takes the image: write -1"),
        (
            {"row4": "[[0, 3], 1, EdgeViT, [xxs]]"},
            r"row 4 .*'from' is \[0, 3\]; EdgeViT takes one map: put a row",
        ),
        ({"row4": "[5, 1, EdgeViT, [xxs]]"}, r"row 4 .*'from' is 5; it must be the number of an earlier row, or -1"),
        ({"row4": "[2, 1, EdgeViT, [xxs]]"}, r"row 4 .*EdgeViT takes its input from the backbone \(row 2\)"),
        ({"row4": "[-1, 3, EdgeViT, [xxs]]"}, r"row 4 .*repeats is 3; a backbone cannot be repeated"),
        (
            {"row6": "[3, 1, Tap, [P3]]"},
            r"row 6 .*row 3, which is not a backbone. Write \[2 or 4, 1, Tap, \[P3\]\]",
        ),
        ({"row6": "[4, 1, Tap, [P9]]"}, r"row 6 .*EdgeViT has no tap P9. Allowed, one of: P2, P3, P4, P5"),
        ({"row6": "[[2, 4], 1, Tap, [P3]]"}, r"row 6 .*'from' is \[2, 4\]; write 2"),
        (
            {"row6": "[2, 1, Tap, [P3]]", "row9": "[2, 1, Tap, [P4]]"},
            r"row 4 .*nothing uses this backbone.*\[4, 1, T",
        ),
        ({"row1": "[0, 1, Konv, [3]]"}, r"row 2 .*row 1 Konv, which it takes its input from, cannot be built"),
        (
            {"row1": "[0, 1, nn.Flatten, []]"},
            r"row 2 .*row 1 nn.Flatten, .*cannot be built: it does not give one",
        ),
    ],
)
def test_mistakes_name_the_row(rows: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        build(TWO, **rows)
    assert str(error.value).startswith("two.yaml, ")
    assert "\n" not in str(error.value)


# --- training, exports, commands --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of 6 channels, one page of a TIFF for each, and their labels."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    generator = np.random.default_rng(0)
    for i in range(4):
        pages = [generator.integers(0, 256, (64, 64), dtype=np.uint8) for _ in range(6)]
        assert cv2.imwritemulti(str(folder / "images" / f"{i}.tiff"), pages)
        (folder / "labels" / f"{i}.txt").write_text("1 0.5 0.5 0.4 0.4\n")
    names = {0: "a", 1: "b"}
    made = {"path": str(folder), "train": "images", "val": "images", "names": names, "channels": 6}
    (folder / "data.yaml").write_text(yaml.safe_dump(made))
    return folder / "data.yaml"


def test_training_export_and_prediction_on_six_channels(data: Path, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(TWO)
    model = YOLO("two.yaml")
    assert model.model.yaml["channels"] == 6
    before = {row: copy.deepcopy(model.model.model[row].state_dict()) for row in (2, 4)}
    torch.save(model.model.model[2].state_dict(), "rgb.pth")
    result = run("convert", "rgb.pth", "--model", "two.yaml", "--scale", "n", "--row", "2", "-o", "init.pt")
    assert result.exit_code == 0, result.output
    YOLO("init.pt").train(
        data=str(data), epochs=1, imgsz=64, batch=4, nbs=4, optimizer="SGD", lr0=0.01, warmup_epochs=0, device="cpu",
        amp=False, workers=0, plots=False, project=str(tmp_path), name="run", exist_ok=True, seed=0, verbose=False,
    )  # fmt: skip
    best = YOLO(str(tmp_path / "run" / "weights" / "last.pt"))
    trained = best.model.model
    for row in (2, 4):
        moved = [k for k, v in trained[row].named_parameters() if not torch.equal(v.float(), before[row][k])]
        assert len(moved) > 50, f"row {row} was trained"
    stem = "stem.conv1.conv.weight"
    torch.testing.assert_close(trained[2].state_dict()[stem].float(), before[2][stem], rtol=0, atol=0.02)
    results = best.predict(np.full((64, 64, 6), 7, np.uint8), imgsz=64, verbose=False, device="cpu")
    assert len(results) == 1

    x = image(6)
    exported = best.export(format="onnx", imgsz=64, device="cpu", verbose=False)
    with torch.no_grad():
        expected = YOLO(str(tmp_path / "run" / "weights" / "last.pt")).model.float().eval()(x)[0]
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 6, 64, 64]
    (seen,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(seen), expected, rtol=1e-3, atol=1e-2)
    assert len(YOLO(exported, task="detect").predict(np.full((64, 64, 6), 7, np.uint8), imgsz=64, verbose=False)) == 1


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_info_and_compare_show_both(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(TWO)
    told = json.loads(run("info", "two.yaml", "--imgsz", "64", "--json").stdout)
    assert told["image_channels"] == 6
    assert [(b["row"], b["module"], list(b["taps"])) for b in told["backbones"]] == [
        (2, "RepViT", ["P3", "P4"]),
        (4, "EdgeViT", ["P3", "P4"]),
    ]
    assert sum(row["parameters"] for row in told["rows"]) == told["parameters"]
    shown = run("info", "two.yaml", "--imgsz", "64").stdout
    assert "backbone in row 2: RepViT" in shown
    assert "backbone in row 4: EdgeViT" in shown
    compared = run("compare", "two.yaml", "two.yaml", "--imgsz", "64", "--json")
    assert compared.exit_code == 0, compared.output


def test_convert_says_which_backbone(tmp_path: Path) -> None:
    (tmp_path / "same.yaml").write_text(TWO.replace("EdgeViT, [xxs]", "RepViT, [m0_6]"))
    state = randomised(create_backbone("repvit_m0_6"), 3).state_dict()
    torch.save(state, "repvit.pth")
    arguments = ("convert", "repvit.pth", "--model", "same.yaml", "-o", "init.pt")
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "same.yaml has several backbones: row 2 (RepViT), row 4 (RepViT)" in refused.stderr
    assert "--row 2" in refused.stderr
    wrong = run(*arguments, "--row", "3")
    assert "Row 3 of same.yaml is no backbone of ours" in wrong.stderr
    assert not (tmp_path / "init.pt").exists()
    both = run(*arguments, "--row", "2", "--row", "4", "--json")
    assert both.exit_code == 0, both.output
    assert [one["row"] for one in json.loads(both.stdout)["backbones"]] == [2, 4]
    net = YOLO("init.pt").model.model
    for row in (2, 4):
        for key, tensor in net[row].state_dict().items():
            assert torch.equal(tensor, state[key])
    ambiguous = run("convert", "init.pt", "--model", "yolo11n_repvit.yaml", "-o", "again.pt")
    assert "init.pt has several backbones: row 2 (RepViT), row 4 (RepViT)" in ambiguous.stderr


def test_weights_for_images_do_not_go_behind_a_stem(tmp_path: Path) -> None:
    (tmp_path / "stem.yaml").write_text(STEM)
    torch.save(create_backbone("repvit_m0_6").state_dict(), "repvit.pth")
    result = run("convert", "repvit.pth", "--model", "stem.yaml", "-o", "init.pt")
    assert result.exit_code == 1
    assert re.search(r"Row 2 of stem.yaml, RepViT, takes feature maps, not the image", result.stderr)
    assert not (tmp_path / "init.pt").exists()


def test_weights_go_between_such_models() -> None:
    mine, theirs = build(TWO), randomised(build(TWO), 2)
    mine.load(theirs, verbose=False)
    state = theirs.state_dict()
    assert [key for key, tensor in mine.state_dict().items() if not torch.equal(tensor, state[key])] == []


# --- the bundled YAML -------------------------------------------------------------------------------------------------


def test_the_bundled_yaml(repository: Path) -> None:
    text = (repository / "cfg" / "yolo11_repvit-rgbir.yaml").read_text()
    net = YOLO("yolo11n_repvit-rgbir.yaml", verbose=False).model
    figures = re.search(r"n: .*?([\d,]+) parameters, ([\d.]+) GFLOPs", text)
    assert figures
    assert f"{sum(p.numel() for p in net.parameters()):,}" == figures[1]
    assert f"{torch_utils.get_flops(net, 640):.1f}" == figures[2]
    assert net.stride.tolist() == [8, 16, 32]
    assert isinstance(net.model[1], Channels)
    assert isinstance(net.model[2].input_norm, InputNorm)
    assert isinstance(net.model[4].input_norm, nn.Identity), "infrared is no RGB image"
    stock = randomised(tasks.DetectionModel("yolo11n.yaml", verbose=False), 1)
    chosen = transfer.choose_tail(net, stock)
    assert (chosen.tail.pairs[17], chosen.tail.pairs[31], chosen.tail.kept) == (9, 23, {})

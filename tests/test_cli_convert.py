"""`lightbackbones convert`, and stock training from what it writes."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import published
import pytest
import torch
import yaml
from hostile import Call
from places import SHARED
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner, Result

from yolo_lightbackbones import Backbone, __version__, create_backbone
from yolo_lightbackbones.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = {
    "nc": 3,
    "scales": {"n": [0.33, 0.25, 1024], "s": [0.33, 0.5, 1024]},
    "backbone": [
        [-1, 1, "RepViT", [{"n": "m0_6", "s": "m0_9"}]],
        [0, 1, "Tap", ["P3"]],
        [0, 1, "Tap", ["P4"]],
        [0, 1, "Tap", ["P5"]],
    ],
    "head": [[[1, 2, 3], 1, "Detect", ["nc"]]],
}
"""The smallest detector with a backbone of ours."""

ONE_STEP = (
    "epochs=1 imgsz=32 batch=4 nbs=4 lr0=0 lrf=1 warmup_epochs=0 warmup_bias_lr=0 optimizer=SGD momentum=0 "
    "weight_decay=0 amp=False workers=0 device=cpu plots=False val=False exist_ok=True seed=0"
)
"""Arguments of `yolo train` with which one optimizer step changes no parameter."""


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ultralytics writes `runs/` into the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Weights of repvit_m0_6 under our names, made from the names alone."""
    state = create_backbone("repvit_m0_6").state_dict()
    return published.make_state({key: tuple(value.shape) for key, value in state.items()})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Tensor]) -> Path:
    """A folder with the weights, the model YAML and two data sets: four images of two classes, and of three."""
    import cv2

    folder = tmp_path_factory.mktemp("files")
    torch.save({"model": weights}, folder / "weights.pth")
    (folder / "yolov5_tiny.yaml").write_text(yaml.safe_dump(MODEL))
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(4):
            cv2.imwrite(
                str(folder / "images" / split / f"{i}.png"), generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            )
            (folder / "labels" / split / f"{i}.txt").write_text(f"{i % 2} 0.5 0.5 0.4 0.4\n")
    for classes in (2, 3):
        names = {i: f"class {i}" for i in range(classes)}
        data = {"path": str(folder), "train": "images/train", "val": "images/val", "names": names}
        (folder / f"data{classes}.yaml").write_text(yaml.safe_dump(data))
    return folder


@pytest.fixture(scope="module")
def initial(files: Path) -> Path:
    """The converted checkpoint."""
    result = convert(files / "weights.pth", files / "yolov5_tiny.yaml", files / "init.pt", "--scale", "n")
    assert result.exit_code == 0, result.output
    return files / "init.pt"


def convert(weights: object, model: object, output: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["convert", str(weights), "--model", str(model), "-o", str(output), *options])


def assert_refused(result: Result, message: str, output: Path | None = None) -> None:
    assert result.exit_code == 1
    assert re.search(message, result.stderr), result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert isinstance(result.exception, SystemExit)
    if output is not None:
        assert not output.exists()
        assert list(output.parent.glob(".*")) == []


def yolo(arguments: str) -> None:
    """Run the `yolo` command in this process."""
    from ultralytics.cfg import entrypoint

    entrypoint(arguments)


def backbone_of(path: Path) -> Backbone:
    """The backbone in a checkpoint, as Ultralytics itself loads it."""
    from ultralytics import YOLO

    backbone = YOLO(str(path)).model.model[0]
    assert isinstance(backbone, Backbone)
    return backbone


def assert_parameters(backbone: Backbone, expected: dict[str, Tensor], *, rtol: float = 0.0) -> None:
    parameters = dict(backbone.named_parameters())
    assert parameters.keys() == {
        key for key in expected if not key.endswith(("running_mean", "running_var", "tracked"))
    }
    for key, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach(), expected[key], rtol=rtol, atol=1e-2 * rtol)


# --- what is written --------------------------------------------------------------------------------------------------


def test_checkpoint_holds_the_weights_exactly(initial: Path, weights: dict[str, Tensor]) -> None:
    from ultralytics import YOLO

    model = YOLO(str(initial))
    backbone = model.model.model[0]
    assert model.task == "detect"
    assert backbone.taps == ("P2", "P3", "P4", "P5")
    assert [key for key, value in backbone.state_dict().items() if not torch.equal(value, weights[key])] == []
    assert model.model.yaml["backbone"] == MODEL["backbone"]  # as the user wrote it
    results = model.predict(np.zeros((32, 32, 3), np.uint8), imgsz=32, verbose=False)
    assert len(results) == 1


def test_checkpoint_is_like_ultralytics_own(initial: Path) -> None:
    from ultralytics.nn.tasks import torch_safe_load

    checkpoint, _ = torch_safe_load(str(initial), safe_only=True)  # with ULTRALYTICS_SAFE_LOAD, that is
    assert checkpoint["epoch"] == -1
    assert checkpoint["ema"] is None
    assert checkpoint["optimizer"] is None
    assert checkpoint["train_args"]["task"] == "detect"
    assert {"date", "version", "license", "docs"} <= checkpoint.keys()


def test_official_file_with_the_bundled_yaml(tmp_path: Path) -> None:
    state = published.make_state(published.golden("repvit_m0_9_96x64")["keys"])
    file = published.save_checkpoint(state, tmp_path / "official.pth", "model")
    result = convert(file, "yolov5_repvit.yaml", tmp_path / "init.pt", "--scale", "n")
    assert result.exit_code == 0, result.output
    assert "loaded 699 of 699 tensors (official layout), dropped 14 (classifier)" in result.stdout
    assert f"yolo train model={tmp_path / 'init.pt'}" in result.stdout
    loaded = backbone_of(tmp_path / "init.pt").state_dict()
    for ours, theirs in {
        "stem.conv1.conv.weight": "features.0.0.c.weight",
        "stages.0.blocks.2.token_mixer.norm.running_var": "features.3.token_mixer.0.bn.running_var",
        "stages.1.downsample.pointwise.conv.weight": "features.4.token_mixer.2.c.weight",
        "stages.3.blocks.1.channel_mixer.conv2.norm.bias": "features.26.channel_mixer.m.2.bn.bias",
    }.items():
        torch.testing.assert_close(loaded[ours], state[theirs], rtol=0, atol=0)


def test_scale_letter_in_the_name_of_the_yaml(files: Path, tmp_path: Path) -> None:
    result = convert(files / "weights.pth", files / "yolov5n_tiny.yaml", tmp_path / "init.pt")
    assert result.exit_code == 0, result.output


def test_grey_images_get_an_adapted_stem(files: Path, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    options = ("--scale", "n", "--channels", "1")
    result = convert(files / "weights.pth", files / "yolov5_tiny.yaml", tmp_path / "init.pt", *options)
    assert result.exit_code == 0, result.output
    stem = backbone_of(tmp_path / "init.pt").state_dict()["stem.conv1.conv.weight"]
    torch.testing.assert_close(stem, weights["stem.conv1.conv.weight"].sum(1, keepdim=True))


def test_backbone_of_a_trained_classifier(files: Path, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    from ultralytics.nn.tasks import ClassificationModel

    backbone = [[-1, 1, "RepViT", ["m0_6"]], [0, 1, "Tap", ["P5"]]]
    net = ClassificationModel({"nc": 4, "backbone": backbone, "head": [[-1, 1, "Classify", ["nc"]]]}, verbose=False)
    net.model[0].load_state_dict(weights)
    torch.save({"epoch": 9, "model": None, "ema": net.half(), "train_args": {"task": "classify"}}, tmp_path / "best.pt")

    result = convert(tmp_path / "best.pt", files / "yolov5_tiny.yaml", tmp_path / "init.pt", "--scale", "n")

    assert result.exit_code == 0, result.output
    assert "loaded 462 of 462 tensors" in result.stdout
    assert_parameters(backbone_of(tmp_path / "init.pt"), {key: value.half().float() for key, value in weights.items()})


def test_published_name_comes_from_the_cache(
    files: Path, tmp_path: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    content = (files / "weights.pth").read_bytes()
    (cache / "repvit_m0_6_distill_300e.pth").write_bytes(content)
    result = convert("repvit_m0_6", files / "yolov5_tiny.yaml", tmp_path / "init.pt", "--scale", "n")
    assert result.exit_code == 0, result.output
    assert_parameters(backbone_of(tmp_path / "init.pt"), weights)
    recorded = (cache / "repvit_m0_6_distill_300e.pth.sha256").read_text().strip()
    assert recorded == hashlib.sha256(content).hexdigest()


def test_json_is_one_object(files: Path, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    output = tmp_path / "init.pt"
    result = convert(files / "weights.pth", files / "yolov5_tiny.yaml", output, "--scale", "n", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["file"], told["family"], told["missing"]) == (str(output), "repvit", [])
    assert set(told["loaded"]) | set(told["dropped"]) == set(weights)


def test_partial_weights_only_when_asked_for(files: Path, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    save_file({k: v for k, v in weights.items() if not k.startswith("stages.3")}, tmp_path / "some.safetensors")
    arguments = (tmp_path / "some.safetensors", files / "yolov5_tiny.yaml", tmp_path / "init.pt", "--scale", "n")
    missing = [key for key in weights if key.startswith("stages.3") and not key.endswith("tracked")]
    assert_refused(convert(*arguments), f"{len(missing)} missing in the file", tmp_path / "init.pt")

    result = convert(*arguments, "--partial")

    assert result.exit_code == 0, result.output
    assert f"missing: {', '.join(missing)}\nunexpected: none\n" in result.stdout


# --- training from it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_training_starts_from_the_checkpoint(
    classes: int, initial: Path, files: Path, tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    yolo(f"train model={initial} data={files / f'data{classes}.yaml'} project={tmp_path} name=run {ONE_STEP}")
    trained = backbone_of(tmp_path / "run" / "weights" / "last.pt")
    assert_parameters(trained, weights, rtol=1e-3)  # Ultralytics saves float16
    seen = trained.state_dict()["stem.conv1.norm.running_mean"]
    assert not torch.equal(seen, weights["stem.conv1.norm.running_mean"].half().float())  # it did see images


def test_pretrained_with_a_model_yaml(initial: Path, files: Path, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    yolo(
        f"train model={files / 'yolov5n_tiny.yaml'} pretrained={initial} data={files / 'data2.yaml'} "
        f"project={tmp_path} name=run {ONE_STEP}"
    )
    assert_parameters(backbone_of(tmp_path / "run" / "weights" / "last.pt"), weights, rtol=1e-3)


def test_resumed_training_keeps_the_weights(
    initial: Path, files: Path, tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    from ultralytics import YOLO

    class InterruptionError(Exception):
        pass

    def interrupt(trainer: Any) -> None:
        raise InterruptionError

    arguments = dict(argument.split("=") for argument in ONE_STEP.split())
    settings = {key: yaml.safe_load(value) for key, value in arguments.items()} | {"epochs": 2}
    model = YOLO(str(initial))
    model.add_callback("on_model_save", interrupt)
    with pytest.raises(InterruptionError):
        model.train(data=str(files / "data2.yaml"), project=str(tmp_path), name="run", **settings)

    resumed = YOLO(str(tmp_path / "run" / "weights" / "last.pt"))
    resumed.train(resume=True)

    assert resumed.trainer.start_epoch == 1
    assert_parameters(resumed.trainer.model.model[0], weights, rtol=1e-3)


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_output_is_overwritten_only_by_force(files: Path, tmp_path: Path) -> None:
    output = tmp_path / "init.pt"
    output.write_text("precious")
    arguments = (files / "weights.pth", files / "yolov5_tiny.yaml", output, "--scale", "n")
    assert_refused(convert(*arguments), r"init\.pt exists already\. Add --force")
    assert output.read_text() == "precious"
    assert convert(*arguments, "--force").exit_code == 0
    assert backbone_of(output)


def test_failure_while_writing_leaves_nothing_behind(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(path: Path, content: Any) -> None:
        with path.open("wb") as file:
            file.write(b"half a file")
        raise OSError(28, "No space left on device")

    output = tmp_path / "init.pt"
    output.write_text("precious")
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    result = convert(files / "weights.pth", files / "yolov5_tiny.yaml", output, "--scale", "n", "--force")
    assert_refused(result, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["init.pt"]
    assert output.read_text() == "precious"


PLAIN = {"nc": 1, "backbone": [[-1, 1, "Conv", [8, 3, 2]]], "head": [[[0], 1, "Detect", [1]]]}
"""A detector without a backbone of ours."""

BROKEN_YAMLS = {
    "syntax.yaml": "backbone: [",
    "list.yaml": "- 1\n- 2\n",
    "empty.yaml": "nc: 80\n",
    "plain.yaml": yaml.safe_dump(PLAIN),
    "headless.yaml": yaml.safe_dump({**MODEL, "head": []}),
    "head.yaml": yaml.safe_dump({**MODEL, "head": [[[1, 2, 3], 1, "Detektor", ["nc"]]]}),
    "module.yaml": yaml.safe_dump({**MODEL, "backbone": [*MODEL["backbone"], [-1, 1, "Konv", [8]]]}),
    "variant.yaml": yaml.safe_dump({**MODEL, "backbone": [[-1, 1, "RepViT", ["m0_8"]], *MODEL["backbone"][1:]]}),
}


@pytest.mark.parametrize(
    ("weights_name", "model", "options", "message"),
    [
        ("nowhere.pth", "yolov5_tiny.yaml", ["--scale", "n"], r"no weights file nowhere\.pth"),
        ("edgevit_xxs", "yolov5_tiny.yaml", ["--scale", "n"], "No EdgeViT weights were ever released"),
        ("repvit_m09", "yolov5_tiny.yaml", ["--scale", "n"], "Did you mean 'repvit_m0_9'"),
        ("weights.pth", "yolov5_tiny.yaml", ["--scale", "s"], "this is repvit_m0_6; you asked for repvit_m0_9"),
        ("weights.pth", "yolov5_tiny.yaml", ["--scale", "q"], r"no scale 'q'\. Allowed: n, s"),
        ("weights.pth", "yolov5_tiny.yaml", [], "has the scales n, s. Choose one with --scale"),
        ("weights.pth", "nowhere.yaml", [], r"no YAML nowhere\.yaml.*such as .*\.yaml"),
        ("weights.pth", "init.pt", [], r"give a model YAML, .*such as .*yaml"),
        ("weights.pth", "syntax.yaml", [], r"syntax\.yaml"),
        ("weights.pth", "list.yaml", [], r"list\.yaml"),
        ("weights.pth", "empty.yaml", [], r"empty\.yaml is not a model YAML"),
        ("weights.pth", "plain.yaml", [], r"plain\.yaml has no backbone of ours.*EdgeViT"),
        ("weights.pth", "module.yaml", ["--scale", "n"], "names a module .*Konv"),
        ("weights.pth", "head.yaml", ["--scale", "n"], r"last row of .*head\.yaml is no head .*Detect"),
        ("weights.pth", "headless.yaml", ["--scale", "n"], r"last row of .*headless\.yaml is no head .*Detect"),
        ("weights.pth", "yolo*_repvit.yaml", ["--scale", "n"], r"no YAML yolo\*_repvit\.yaml"),
        ("weights.pth", "variant.yaml", ["--scale", "n"], "m0_8.*m0_9"),
        ("text.pth", "yolov5_tiny.yaml", ["--scale", "n"], r"text\.pth is not a checkpoint"),
        (
            "stranger.pt",
            "yolov5_tiny.yaml",
            ["--scale", "n"],
            r"stranger\.pt do not fit .*row 4 Detect",
        ),
    ],
)
def test_mistakes(
    weights_name: str, model: str, options: list[str], message: str, *, files: Path, tmp_path: Path
) -> None:
    for name, content in BROKEN_YAMLS.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "text.pth").write_text("hello")
    if weights_name == "stranger.pt":
        from ultralytics.nn.tasks import DetectionModel

        torch.save({"model": DetectionModel(PLAIN, verbose=False), "ema": None}, tmp_path / "stranger.pt")
    folder = tmp_path / "out"
    folder.mkdir()
    weights_file = files / weights_name if (files / weights_name).exists() else Path(weights_name)
    model_file = files / model if (files / model).exists() else Path(model)
    assert_refused(convert(weights_file, model_file, folder / "init.pt", *options), message, folder / "init.pt")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("init.pth", r"by their suffix \.pt"),
        ("nowhere/init.pt", "no folder nowhere"),
        ("folder.pt", r"folder\.pt is a folder"),
    ],
)
def test_outputs_that_cannot_be_written(output: str, message: str, files: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.pt").mkdir()
    result = convert(files / "weights.pth", files / "yolov5_tiny.yaml", Path(output), "--scale", "n")
    assert_refused(result, message)


@pytest.mark.parametrize("name", ["yolo11n.pt", "yolov5n.pt", "it's.pt", "checkpoint.pth", "checkpoint"])
def test_checkpoints_of_any_name_are_read_where_they_are(
    name: str, initial: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ultralytics takes some names for its own checkpoints: it downloads them, and removes a damaged one."""
    from ultralytics.utils import downloads

    for function in ("get_github_assets", "safe_download"):
        monkeypatch.setattr(downloads, function, lambda *arguments, **options: pytest.fail("a download"))
    good = tmp_path / "weights" / name
    good.parent.mkdir()
    good.write_bytes(initial.read_bytes())
    result = convert(good, files / "yolov5_tiny.yaml", tmp_path / "again.pt", "--scale", "n")
    assert result.exit_code == 0, result.output
    (damaged := tmp_path / name).write_bytes(initial.read_bytes()[:-1000])
    assert convert(damaged, files / "yolov5_tiny.yaml", tmp_path / "no.pt", "--scale", "n").exit_code == 1
    assert damaged.exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("call", r"calls ultralytics\.nn\.tasks\.DetectionModel\), which could run any code"),
        ("class", r"keeps ultralytics\.nn\.tasks\.DetectionModel\), which could run any code"),
        ("getattr", r"calls builtins\.getattr"),
        ("itself", "whose model contains itself"),
        ("shared", "whose model contains itself"),
        ("strange", "whose model contains itself, or things that are no layers"),
        ("wide", r"declares tensors of 216\d{9} bytes, which it cannot hold"),
        ("old", "has the format of torch before 1.6"),
    ],
)
def test_checkpoints_of_strangers(kind: str, message: str, initial: Path, files: Path, tmp_path: Path) -> None:
    """Ultralytics' restricted loader knows its models, and building one evaluates its YAML's activation."""
    from ultralytics.nn.tasks import DetectionModel

    trace = tmp_path / "executed"
    config = {**PLAIN, "activation": f"__import__('os').mkdir({str(trace)!r}) or nn.SiLU()"}
    checkpoint = torch.load(initial, weights_only=False)
    net = checkpoint["model"]
    if kind in {"call", "class", "getattr"}:
        odd = {"call": Call(DetectionModel, config), "class": DetectionModel}
        checkpoint["odd"] = odd.get(kind, Call(getattr, DetectionModel, "load"))
    elif kind == "itself":
        net._modules["itself"] = net
    elif kind == "shared":
        part: torch.nn.Module = torch.nn.Identity()
        for _ in range(12):
            part = torch.nn.Sequential(*[part] * 40)
        net._modules["shared"] = part
    elif kind == "strange":
        net._modules["strange"] = {"a": 1}
    elif kind == "wide":
        net.register_buffer("wide", torch.zeros(1).expand(10**9, 54))
    torch.save(checkpoint, path := tmp_path / "x.pt", _use_new_zipfile_serialization=kind != "old")
    arguments = ("--scale", "n")
    assert_refused(convert(path, files / "yolov5_tiny.yaml", tmp_path / "init.pt", *arguments), message)
    for command in (["info", str(path)], ["compare", "repvit_m0_6", str(path), "--imgsz", "32"]):
        assert_refused(CliRunner().invoke(app, command), message)
    assert not trace.exists()


@pytest.mark.parametrize("command", ["info", "convert"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_damaged_files_are_told_in_one_sentence(
    command: str, suffix: str, initial: Path, files: Path, tmp_path: Path
) -> None:
    """A directory that says it is on two disks, one whose names are no text, one whose entries are elsewhere."""
    content = (initial if suffix == ".pt" else files / "weights.pth").read_bytes()
    last = content.rindex(b"PK\x05\x06")
    two_disks = content[:last] + b"PK\x06\x07" + struct.pack("<LQL", 0, 0, 2) + content[last:]
    for number, damaged in enumerate(
        (
            two_disks,
            content[:-400] + content[-400:].replace(b"/", b"\xaa"),
            content[:-400] + content[-400:].replace(b"PK\x01\x02", b"PK\x01\x03"),
            content[: len(content) // 2],
            content[1000:],
        )
    ):
        (path := tmp_path / f"x{number}{suffix}").write_bytes(damaged)
        if command == "info":
            result = CliRunner().invoke(app, ["info", str(path)])
        else:
            result = convert(path, files / "yolov5_tiny.yaml", tmp_path / "init.pt", "--scale", "n")
        assert_refused(result, r"^Error: .*(damaged|not a checkpoint|not a safetensors file).*\.\n$")


@pytest.mark.parametrize("name", ["BadZipFile_zip.pth", "UnicodeDecodeError_zip.pth", "w_86_zip.pth"])
def test_damaged_files_that_were_seen(name: str, files: Path, tmp_path: Path) -> None:
    if not (path := SHARED / "cases" / name).is_file():
        pytest.skip("the file is not beside this checkout; the test before this one makes such files itself")
    assert_refused(CliRunner().invoke(app, ["info", str(path)]), "is damaged")
    assert_refused(convert(path, files / "yolov5_tiny.yaml", tmp_path / "init.pt", "--scale", "n"), "is damaged")


def test_partial_weights_with_thousands_of_names(files: Path, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    strange = {f"odd\x1b[2J{i}": torch.zeros(1) for i in range(3000)}
    save_file({**weights, **strange}, tmp_path / "x.safetensors")
    arguments = (tmp_path / "x.safetensors", files / "yolov5_tiny.yaml", tmp_path / "init.pt", "--scale", "n")
    result = convert(*arguments, "--partial")
    assert result.exit_code == 0, result.output
    assert re.search(r"unexpected: odd\\x1b\[2J0, .*, \.\.\. \(2,950 more\)\n", result.stdout)
    assert len(result.stdout) < 5000


def test_what_a_download_is_compared_with_is_said(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (cache := tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (cache / "repvit_m0_6_distill_300e.pth").write_bytes((files / "weights.pth").read_bytes())
    result = convert("repvit_m0_6", files / "yolov5_tiny.yaml", tmp_path / "init.pt", "--scale", "n", "--json")
    assert json.loads(result.stdout)["family"] == "repvit"
    assert "repvit_m0_6_distill_300e: nobody has published its SHA-256" in result.stderr


def test_a_fused_checkpoint_is_told(initial: Path, files: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(initial, weights_only=False)
    checkpoint["model"] = checkpoint["model"].eval().fuse(verbose=False)
    torch.save(checkpoint, tmp_path / "fused.pt")
    result = convert(tmp_path / "fused.pt", files / "yolov5_tiny.yaml", tmp_path / "init.pt", "--scale", "n")
    assert_refused(result, r"The backbone in .*fused\.pt is fused", tmp_path / "init.pt")


def test_averaged_weights_that_are_no_module(initial: Path, files: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(initial, weights_only=False)
    checkpoint["ema"] = checkpoint["model"].state_dict()
    torch.save(checkpoint, tmp_path / "x.pt")
    result = convert(tmp_path / "x.pt", files / "yolov5_tiny.yaml", tmp_path / "init.pt", "--scale", "n")
    assert result.exit_code == 0, result.output


def test_usage() -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["convert"]).exit_code == 2
    assert runner.invoke(app, ["--version"]).stdout == f"yolo_lightbackbones {__version__}\n"
    assert "convert" in runner.invoke(app, ["--help"]).stdout
    assert "--scale" in runner.invoke(app, ["convert", "--help"], env={"COLUMNS": "200"}).stdout

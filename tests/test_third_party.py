"""Families of other packages: the template in examples/third-party-package, installed, and packages that are broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import commands
import forking
import pytest
import yaml
from commands import Installation
from installing import pip
from places import REPOSITORY

from yolo_lightbackbones.configs import finding

TEMPLATE = REPOSITORY / "examples" / "third-party-package"
SCRIPTS = Path(sysconfig.get_path("scripts"))
SMALL = ["imgsz=64", "epochs=1", "batch=4", "workers=0", "plots=False", "device=cpu", "exist_ok=True"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of its own with the template installed in it, as pip does it, without network."""
    pytest.importorskip("hatchling", reason="the template is built with hatchling")
    folder = tmp_path_factory.mktemp("site")
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    pip("install", "--quiet", *offline, "--target", str(folder), str(TEMPLATE), cwd=folder)
    return folder


def beside(*sites: Path) -> dict[str, str]:
    """The environment of a process that finds packages in these folders, too."""
    path = [*map(str, sites), *filter(None, [os.environ.get("PYTHONPATH")])]
    untested = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "GITHUB_"))}
    return {**untested, **commands.QUIET, "PYTHONPATH": os.pathsep.join(path), "YOLO_OFFLINE": "true"}


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(site: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run a command in a process of its own, in a folder outside the checkout, with the template installed."""
    variables = beside(site)
    installation = Installation(Path(sys.executable), SCRIPTS, SCRIPTS / "yolo", variables)
    with commands.forking_server(installation, tmp_path_factory.mktemp("server")) as address:

        def run_there(program: str, *words: str, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
            script = SCRIPTS / program if program in {"yolo", "lightbackbones"} else program
            client = [sys.executable, "-I", "-S", forking.__file__, "run", address, str(script), *words]
            env = {**variables, **more}
            done = subprocess.run(client, cwd=folder, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == code, f"{program} {words}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            return done

        yield run_there


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the checkout, with a small data set."""
    pytest.importorskip("sklearn", reason="the digits are drawn from scikit-learn's scans")
    from yolo_lightbackbones.datasets.digits import CLASS_NAMES, build_digits

    folder = tmp_path_factory.mktemp("elsewhere")
    root = build_digits(folder / "digits", train_images=8, val_images=4)
    data = {"path": str(root), "train": "images/train", "val": "images/val", "names": dict(enumerate(CLASS_NAMES))}
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    return folder


def script(folder: Path, text: str) -> str:
    (folder / "script.py").write_text(text)
    return str(folder / "script.py")


# --- the template, with the commands ----------------------------------------------------------------------------------


def test_it_is_listed_described_and_compared(run: Run) -> None:
    listed = run("lightbackbones", "list", "--family", "sepnet", "--imgsz", "64", "--json").stdout
    sepnet = json.loads(listed)["backbones"]
    assert [entry["name"] for entry in sepnet] == ["sepnet_n", "sepnet_s"]
    assert sepnet[0]["taps"] == {"P2": 16, "P3": 32, "P4": 64, "P5": 128}
    assert sepnet[0]["origin"] == "github.com/me/yolo-sepnet (MIT)"
    assert sepnet[0]["weights"]["by_hand"] == "SepNet's weights are on request: write to me@example.org."

    seen = json.loads(run("lightbackbones", "info", "yolo11s_sepnet.yaml", "--imgsz", "64", "--json").stdout)
    assert (seen["backbone"]["module"], seen["backbone"]["variants"]) == ("SepNet", ["sepnet_s"])
    assert seen["backbone"]["taps"] == {"P3": 64, "P4": 128, "P5": 256}

    names = ("sepnet_n", "yolo11n_sepnet.yaml")
    seen = json.loads(run("lightbackbones", "compare", *names, "--imgsz", "64", "--repeats", "3", "--json").stdout)
    assert all(name in json.dumps(seen) for name in names)


def test_its_names_are_completed(run: Run) -> None:
    for line, expected in (
        ("lightbackbones new --backbone sep", ["sepnet", "sepnet_n", "sepnet_s"]),
        ("lightbackbones info yolo11n_se", ["yolo11n_sepnet.yaml"]),
        ("lightbackbones list --family sep", ["sepnet"]),
    ):
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
        done = run("lightbackbones", _LIGHTBACKBONES_COMPLETE="complete_bash", **words)
        assert done.stdout.split() == expected


def test_a_model_yaml_is_written_and_a_block_is_a_row(run: Run, folder: Path) -> None:
    run("lightbackbones", "new", "-b", "sepnet", "-n", "yolov8", "-o", "yolov8_mine.yaml")
    text = (folder / "yolov8_mine.yaml").read_text()
    assert yaml.safe_load(text)["backbone"][0] == [-1, 1, "SepNet", [{"n": "n", "s": "s"}]]
    other = text.replace("C2f, [512]", "SepBlock, [512, {kernel_size: 5}]", 1)
    assert other != text
    (folder / "yolov8_blocks.yaml").write_text(other)
    seen = json.loads(run("lightbackbones", "info", "yolov8n_blocks.yaml", "--imgsz", "64", "--json").stdout)
    assert [row["module"] for row in seen["rows"] if row["module"].startswith("Sep")] == ["SepNet", "SepBlock"]
    (folder / "wrong.yaml").write_text(text.replace("C2f, [512]", "SepBlock, [512, {kernel_size: 4}]", 1))
    failed = run("lightbackbones", "info", "wrong.yaml", "--scale", "n", code=1)
    assert "SepBlock" in failed.stderr
    assert "kernel_size is 4; it must be an odd number" in failed.stderr
    assert "Did you mean yolo11n_sepnet.yaml?" in run("lightbackbones", "info", "yolo11n-SepNet.yaml", code=1).stderr


def test_the_committed_yaml_is_what_the_command_writes(run: Run, folder: Path) -> None:
    (folder / "written").mkdir()
    run("lightbackbones", "new", "-b", "sepnet", "-n", "yolo11", "-o", "written/yolo11_sepnet.yaml")
    committed = TEMPLATE / "yolo_sepnet" / "cfg" / "yolo11_sepnet.yaml"
    assert committed.read_text() == (folder / "written" / "yolo11_sepnet.yaml").read_text()


AUTHORS = """
import re
import torch
from yolo_lightbackbones import create_backbone, testing

backbone = create_backbone("sepnet_n")
testing.randomise(backbone)
def theirs(key):
    key = re.sub(r"stages.(\\d).blocks.(\\d+).depthwise", r"layer\\1.\\2.dw", key)
    key = re.sub(r"stages.(\\d).blocks.(\\d+).pointwise", r"layer\\1.\\2.pw", key)
    return re.sub(r"stages.(\\d).downsample", r"down\\1", key)
state = {theirs(key): value for key, value in backbone.state_dict().items()}
assert not any(key.startswith("stages") for key in state)
torch.save({"state_dict": {**state, "head.weight": torch.zeros(1000, 128)}}, "authors.pth")
"""
CONVERTED = """
import torch
from ultralytics import YOLO

model = YOLO("init.pt").model
theirs = torch.load("authors.pth")["state_dict"]
ours = model.model[0].state_dict()
torch.testing.assert_close(ours["stages.2.blocks.1.depthwise.conv.weight"], theirs["layer2.1.dw.conv.weight"])
torch.testing.assert_close(ours["stages.3.downsample.norm.running_var"], theirs["down3.norm.running_var"])
torch.testing.assert_close(ours["stem.0.conv.weight"], theirs["stem.0.conv.weight"])
"""


def test_weights_of_its_authors_are_converted(run: Run, folder: Path) -> None:
    run(script(folder, AUTHORS))
    assert "sepnet_n" in run("lightbackbones", "info", "authors.pth", "--imgsz", "64").stdout
    run("lightbackbones", "convert", "authors.pth", "--model", "yolo11n_sepnet.yaml", "-o", "init.pt")
    run(script(folder, CONVERTED), ULTRALYTICS_SAFE_LOAD="1")
    failed = run("lightbackbones", "convert", "sepnet_n", "--model", "yolo11n_sepnet.yaml", "-o", "no.pt", code=1)
    assert "SepNet's weights are on request" in failed.stderr


EXPORTED = """
import numpy as np, onnxruntime, torch
from ultralytics import YOLO

model = YOLO("runs/train/weights/best.pt").model.float().eval()
assert not model.is_fused()
image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    expected = model(image)[0]
    fused = model.fuse(verbose=False)
    norms = [type(module).__name__ for module in fused.model[0].modules() if "BatchNorm" in type(module).__name__]
    assert not norms
    torch.testing.assert_close(fused(image)[0], expected, rtol=1e-4, atol=1e-3)
session = onnxruntime.InferenceSession("runs/train/weights/best.onnx", providers=["CPUExecutionProvider"])
(seen,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
assert np.abs(seen - expected.numpy()).max() < 1e-2  # boxes in pixels
"""


def test_it_trains_validates_folds_and_exports(run: Run, folder: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the exported file is run")
    small = [*SMALL, f"project={folder / 'runs'}"]
    run("yolo", "detect", "train", "model=yolo11n_sepnet.yaml", "data=data.yaml", *small, "name=train")
    best = "model=runs/train/weights/best.pt"
    run("yolo", "val", best, "data=data.yaml", *small, "name=val", ULTRALYTICS_SAFE_LOAD="1")
    run("yolo", "export", best, "format=onnx", "imgsz=64")
    run(script(folder, EXPORTED), ULTRALYTICS_SAFE_LOAD="1")


def test_its_own_tests_pass(site: Path, tmp_path: Path) -> None:
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TEMPLATE / "tests")]
    done = subprocess.run(tests, cwd=tmp_path, env=beside(site), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert "4 passed" in done.stdout


# --- packages that are broken, newer, or in the way -------------------------------------------------------------------


def announce(site: Path, package: str, entry_points: str, files: Mapping[str, str]) -> None:
    """Put a package into a folder as an installer does it."""
    information = site / f"{package}-9.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 9.0\n")
    (information / "entry_points.txt").write_text(entry_points)
    for name, text in files.items():
        path = site / package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


FAMILY = """
from torch import nn
from yolo_lightbackbones import Stage, StagedBackbone
from yolo_lightbackbones.blocks import BlockRow
class C3(BlockRow):
    options = {}
    def build_block(self, dim, index, options):
        return nn.Conv2d(dim, dim, 1)
class NAME(StagedBackbone):
    family, variants = "FAMILY", {"a": 8}
    BODY
    def build_stem(self, config, in_channels):
        return nn.Conv2d(in_channels, config, 4, 4)
    def build_stages(self, config, drop_path_rate):
        yield Stage([nn.ReLU()], channels=config, reduction=4)
"""


def family(name: str, body: str = "") -> str:
    return FAMILY.replace("NAME", name).replace("FAMILY", name.lower()).replace("BODY", body)


STILL_THERE = """
import torch, yolo_lightbackbones
from ultralytics import YOLO
from ultralytics.nn import modules
from yolo_lightbackbones import create_backbone, list_backbones

stock = YOLO("yolov5n.yaml").model
assert {type(layer) for layer in stock.model[:3]} == {modules.Conv, modules.C3}
assert type(YOLO("yolov5n_repvit.yaml").model.model[0]).__name__ == "RepViT"
assert create_backbone("edgevit_xxs", taps=("P2",)).out_channels == (36,)
print(*list_backbones())
"""


def test_nothing_that_others_do_takes_ours_down(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for package, text, name in (
        ("newer", "from yolo_lightbackbones.backbone import SomethingOfTheFuture", "Net"),
        ("quits", "raise SystemExit('no licence')", "Net"),
        ("field", "from yolo_lightbackbones.card import Card\nCard(title='A', doi='10.1/2')", "Net"),
        ("clash", family("Conv"), "Conv"),
        ("tapped", family("Tap"), "Tap"),
        ("blocks", family("Blocky", "block_rows = {'C3': C3}"), "Blocky"),
        ("fine", family("Fine"), "Fine"),
    ):
        announce(
            site, package, f"[yolo_lightbackbones]\nx = {package}.net:{name}\n", {"__init__.py": "", "net.py": text}
        )
    announce(site, "nowhere", "[yolo_lightbackbones.configs]\nx = nowhere.cfg\n", {"__init__.py": "1 / 0"})
    shadow = {"__init__.py": "1 / 0", "cfg/yolov5_repvit.yaml": "nc: 80", "cfg/yolov5_mine.yaml": "nc: 80"}
    announce(site, "shadow", "[yolo_lightbackbones.configs]\nx = shadow.cfg\n", shadow)
    code = [sys.executable, "-c", STILL_THERE]
    done = subprocess.run(code, cwd=tmp_path, env=beside(site), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    assert {"conv2former_n", "conv_a", "tap_a", "blocky_a", "fine_a"} <= set(names)
    for said in (
        "Backbone 'newer.net:Net' of the package newer 9.0 could not be registered: cannot import name",
        "Backbone 'quits.net:Net' of the package quits 9.0 could not be registered: no licence",
        "Backbone 'field.net:Net' of the package field 9.0 could not be registered: ",
        "Rows of model YAMLs cannot name Conv: ultralytics.nn.tasks has a Conv of its own",
        "Rows of model YAMLs cannot name C3: ultralytics.nn.tasks has a C3 of its own",
        "Rows of model YAMLs cannot name Tap: Tap rows are taps",
        "The folder of YAMLs 'nowhere.cfg', entry point 'x' of the group yolo_lightbackbones.configs, does not exist",
        f"is {finding.config_dir() / 'yolov5_repvit.yaml'}; give its path if you mean {site / 'shadow' / 'cfg'}",
    ):
        assert said in done.stderr, f"{said}\n{done.stderr}"


def test_a_name_that_two_packages_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("one_of_two", "two_of_two"):
        files = {"__init__.py": "1 / 0", "cfg/a/yolo11_both.yaml": "nc: 1", f"cfg/{package}.yaml": "nc: 1"}
        announce(tmp_path, package, f"[yolo_lightbackbones.configs]\nx = {package}.cfg\n", files)
    assert finding.find_config("one_of_two.yaml") is None, "not installed yet"
    monkeypatch.syspath_prepend(str(tmp_path))
    assert finding.find_config("one_of_two.yaml") == tmp_path / "one_of_two" / "cfg" / "one_of_two.yaml"
    assert finding.find_config("cfg/one_of_two.yaml") is None, "folders are for ours"
    assert finding.find_config("yolo11_both.yaml") is None
    both = [str(tmp_path / package / "cfg" / "a" / "yolo11_both.yaml") for package in ("one_of_two", "two_of_two")]
    said = finding.explain_missing("yolo11_both.yaml")
    assert said in {
        f"Several packages have a YAML yolo11_both.yaml: {', '.join(order)}. Give the path of one."
        for order in (both, both[::-1])
    }
    from ultralytics.utils import checks

    import yolo_lightbackbones

    yolo_lightbackbones.register()
    with pytest.raises(FileNotFoundError, match="Several packages have a YAML"):
        checks.check_file("yolo11_both.yaml")
    assert checks.check_file("two_of_two.yaml") == str(tmp_path / "two_of_two" / "cfg" / "two_of_two.yaml")
    assert "one_of_two" not in sys.modules

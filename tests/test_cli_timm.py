"""Commands about models of timm: `list --timm`, `new --backbone timm/NAME`, and what the shell completes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner
from ultralytics import YOLO

from yolo_lightbackbones import timm_catalogue
from yolo_lightbackbones.cli import app, completion

timm = pytest.importorskip("timm", reason="the commands ask timm: pip install timm")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})


def listed(pattern: str) -> list[dict[str, Any]]:
    result = run("list", "--timm", pattern, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["matched"] == len(document["models"])
    models: list[dict[str, Any]] = document["models"]
    return models


# --- list -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["test_resnet", "timm/test_resnet", "TEST_RES*", "test_resne?"])
def test_a_pattern(pattern: str) -> None:
    (model,) = listed(pattern)
    net = timm.create_model("test_resnet")
    assert model["name"] == "timm/test_resnet"
    assert model["parameters"] == sum(parameter.numel() for parameter in net.parameters())
    infos = {f"P{info['reduction'].bit_length() - 1}": info["num_chs"] for info in net.feature_info if info["num_chs"]}
    assert model["taps"] == {tap: infos[tap] for tap in ("P2", "P3", "P4", "P5")}
    assert model["weights"] == {"r160_in1k": "apache-2.0"}


def test_licences_are_those_of_the_weights() -> None:
    (model,) = [model for model in listed("mobilevit_s") if model["name"] == "timm/mobilevit_s"]
    assert model["weights"] == {"cvnets_in1k": "cvnets-license"}
    assert "cvnets-license (1)" in run("list", "--timm", "mobilevit_s").output


def test_the_table() -> None:
    result = run("list", "--timm", "deit_tiny*")
    assert result.exit_code == 0, result.output
    assert "Models of timm: 2" in result.output
    assert "P4 only: 192" in result.output  # DeiT-Ti, Table 1 of arXiv 2012.12877
    assert "pyramid: simple" in result.output


def test_many_models_are_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_catalogue, "without_values", lambda *_: pytest.fail("a model was built"))
    models = listed("*")
    assert [model["name"] for model in models] == [f"timm/{n}" for n in sorted(timm.list_models(include_tags=False))]
    assert {model["parameters"] for model in models} == {None}
    assert "Narrow the pattern" in run("list", "--timm", "resnet").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--timm", "convnxt"], "models is called like 'convnxt'. Did you mean"),
        (["--timm", "resnet18", "--family", "repvit"], "Leave one of them out"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    result = run("list", *arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())


def test_without_timm_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "timm", None)
    file = tmp_path / "my.yaml"
    for arguments in (["list", "--timm", "x"], ["info", "timm/resnet18"], ["new", "-b", "timm/resnet18", "-o", file]):
        result = run(*arguments)
        assert result.exit_code == 1
        assert "pip install 'timm>=1.0.16'" in " ".join(result.output.split()), arguments
    assert not file.exists()


def test_list_without_the_option_imports_no_timm() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from yolo_lightbackbones.cli import app\n"
        "assert CliRunner().invoke(app, ['list', '--family', 'parcnet', '--imgsz', '64']).exit_code == 0\n"
        "assert 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- info and compare -------------------------------------------------------------------------------------------------


def test_a_model_of_one_size() -> None:
    result = run("info", "timm/test_coatnet", "--imgsz", "192", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["imgsz"] == [192, 192]
    result = run("info", "timm/efficientformer_l1", "--imgsz", "192")
    assert result.exit_code == 1
    assert "imgsz is 192 x 192; efficientformer_l1 does not work with it. Its own is 224 x 224." in result.output


def test_a_model_of_one_reduction() -> None:
    result = run("info", "timm/test_vit", "--imgsz", "64,96", "--json")
    assert result.exit_code == 0, result.output
    assert [stage["name"] for stage in json.loads(result.stdout)["stages"]].count("pyramid") == 1


# --- new --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row", "size"),
    [
        ("timm/test_resnet.r160_in1k", ["test_resnet.r160_in1k"], None),
        ("timm/test_coatnet", ["test_coatnet", {"imgsz": 160}], 160),
        ("timm/test_vit", ["test_vit", {"pyramid": "simple"}], None),
    ],
)
def test_what_new_writes_builds(name: str, row: list[Any], size: int | None, tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    result = run("new", "--backbone", name, "-s", "n", "-o", file)
    assert result.exit_code == 0, result.output
    assert yaml.safe_load(file.read_text())["backbone"][0] == [-1, 1, "Timm", row]
    model = YOLO(file).model
    assert model.model[0].variant == row[0]
    assert model.stride.tolist() == [8, 16, 32]
    assert (f"imgsz={size}" in result.output) == (f"imgsz={size}" in file.read_text()) == (size is not None)


def test_a_series_has_its_letters(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    assert run("new", "-b", "mobilevit", "-o", file, "--json").exit_code == 0
    letters = {"n": "mobilevit_xxs", "s": "mobilevit_xs", "m": "mobilevit_s"}
    assert yaml.safe_load(file.read_text())["backbone"][0] == [-1, 1, "Timm", [letters]]
    assert run("new", "-b", "mobilevit", "-s", "x", "-o", tmp_path / "x.yaml").exit_code == 1
    assert run("new", "-b", "mobilevit", "-s", "s", "-o", file, "-f").exit_code == 0
    assert yaml.safe_load(file.read_text())["backbone"][0] == [-1, 1, "Timm", ["mobilevit_xs"]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnt18", "timm has no model 'resnt18'. Did you mean 'resnet18'?"),
        ("timm/shvit_s1", "has no tap P3"),
        ("timm", "Choose a variant: timm/NAME"),
        ("nothing", "a series of timm's models (mobilenetv4, "),
    ],
)
def test_what_new_refuses(name: str, message: str, tmp_path: Path) -> None:
    result = run("new", "-b", name, "-o", tmp_path / "my.yaml")
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


# --- completion -------------------------------------------------------------------------------------------------------


def test_names_are_found_without_an_import() -> None:
    assert timm_catalogue.names_in_sources() == sorted(timm.list_models(include_tags=False))
    code = (
        "import sys; from yolo_lightbackbones.cli import completion\n"
        "assert completion.targets('timm/resnet18') == ['timm/resnet18', 'timm/resnet18d']\n"
        "assert completion.backbones('timm/resnet18') == ['timm/resnet18', 'timm/resnet18d']\n"
        "assert not {'torch', 'timm'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_completion_offers_the_start_first() -> None:
    assert completion.variants("ti") == ["timm/"]
    assert completion.backbones("mobilev") == ["mobilevit"]
    assert not [name for name in completion.variants("") if name.startswith("timm/")]

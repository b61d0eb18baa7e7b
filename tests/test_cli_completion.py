"""Shell completion: what is offered for values."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml
from families import FAMILIES
from ultralytics.nn.tasks import guess_model_scale, yaml_model_load

from yolo_lightbackbones import registry
from yolo_lightbackbones.cli import completion
from yolo_lightbackbones.configs import finding


def test_names() -> None:
    assert completion.families("") == [cls.family for cls in registry.families().values()]
    assert completion.families("re") == ["repvit"]
    assert completion.variants("edgevit_x") == ["edgevit_xxs", "edgevit_xs"]
    assert completion.published_weights("repvit_m0_6") == ["repvit_m0_6", "repvit_m0_6_distill_300e"]
    assert completion.targets("edgevit_x") == ["edgevit_xxs", "edgevit_xs"]
    assert set(completion.targets("")) == {*registry.list_backbones(), *completion.model_yamls("")}
    assert completion.targets("yolov5s_e") == ["yolov5s_edgevit.yaml"]
    assert completion.targets("nothing") == []


def test_every_yaml_that_is_offered_is_found_at_its_scale() -> None:
    offered = completion.model_yamls("")
    assert len(offered) == len(set(offered))
    assert {"yolov5_edgevit.yaml", "yolov5n_edgevit.yaml", "yolov5m_edgevit.yaml", "repvit-cls.yaml"} <= set(offered)
    assert "yolov5x_edgevit.yaml" not in offered
    for path in finding.config_dir().glob("*.yaml"):
        assert path.name in offered
        if path.name.startswith("yolo"):
            for letter in yaml.safe_load(path.read_text())["scales"]:
                name = finding.scaled_name(path.name, letter)
                assert name in offered
                if path.name.startswith("yolov9t_"):  # Ultralytics reads no letter off it, and takes the only one
                    assert (guess_model_scale(name), letter) == ("", "n")
                    continue
                assert guess_model_scale(name) == letter
                assert yaml_model_load(name)["scale"] == letter


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lightbackbones com", ["compare"]),
        ("lightbackbones info yolov5n_", sorted(FAMILIES)),
        ("lightbackbones list --family e", ["edgevit"]),
    ],
)
def test_in_bash(line: str, expected: list[str]) -> None:
    words = line.split()
    environment = {
        **os.environ,
        "_LIGHTBACKBONES_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    code = "from yolo_lightbackbones.cli import app; app(prog_name='lightbackbones')"
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    offered = [word.removeprefix("yolov5n_").removesuffix(".yaml") for word in result.stdout.split()]
    assert offered == expected, result.stderr


def test_the_scripts_are_to_be_had() -> None:
    from typer.testing import CliRunner

    from yolo_lightbackbones.cli import app

    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"})
    assert "--install-completion" in result.stdout

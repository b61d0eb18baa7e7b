"""Every model YAML at every scale: it builds what its comment says, with the right strides."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from ultralytics.nn.tasks import DetectionModel, yaml_model_load

from yolo_lightbackbones import registry

CFG = Path(__file__).resolve().parent.parent / "cfg"
YAMLS = {path.name: yaml.safe_load(path.read_text()) for path in sorted(CFG.glob("*.yaml"))}
MODELS = [(name, letter) for name, config in YAMLS.items() for letter in config.get("scales", ())]
CLASSIFIERS = [name for name in YAMLS if name.endswith("-cls.yaml")]
RECIPES = sorted(path.name for path in (CFG / "recipes").glob("*.yaml"))


def scaled(name: str, letter: str) -> str:
    """`yolov5_repvit.yaml` as `yolov5n_repvit.yaml`."""
    return re.sub(r"^(yolov?\d+)", rf"\g<1>{letter}", name)


@pytest.fixture(autouse=True)
def _freed() -> Iterator[None]:
    yield
    gc.collect()


def test_every_family_has_its_yamls() -> None:
    for names in ({name for name, _ in MODELS}, CLASSIFIERS):
        assert {YAMLS[name]["backbone"][0][2] for name in names} == set(registry._BUILT_IN)
    plain = {name for name, _ in MODELS if name.startswith("yolov5_")}
    families = {name.removeprefix("yolov5_").removesuffix(".yaml") for name in plain}
    assert {YAMLS[name]["backbone"][0][2] for name in plain} == set(registry._BUILT_IN)
    assert {f"{family}_{start}.yaml" for family in families for start in ("scratch", "pretrained")} <= set(RECIPES)


@pytest.mark.parametrize(("name", "letter"), MODELS)
def test_it_builds_at_every_scale(name: str, letter: str) -> None:
    model = DetectionModel(yaml_model_load(scaled(name, letter)), nc=3, verbose=False)
    backbone = model.model[0]
    config = yaml.safe_load((CFG / name).read_text())
    variant = config["backbone"][0][3][0][letter]
    with torch.device("meta"):
        expected = type(backbone)(variant)
    assert backbone.taps == expected.taps
    assert sum(p.numel() for p in backbone.parameters()) == sum(p.numel() for p in expected.parameters())
    assert model.stride.tolist() == [8, 16, 32]
    comment = re.search(rf"^  {letter}: \[.*\] # (\S+)$", (CFG / name).read_text(), re.MULTILINE)
    assert comment
    assert comment[1].split("-")[-1].lower().replace(".", "_") == variant


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_pretrains_a_detectors_backbone(name: str, tmp_path: Path) -> None:
    """What `yolo classify train` saves, `lightbackbones convert` makes a detector of: every weight of the backbone."""
    from typer.testing import CliRunner
    from ultralytics import YOLO

    from yolo_lightbackbones.cli import app

    classifier = YOLO(name)
    assert classifier.task == "classify"
    classifier.model.eval()
    with torch.no_grad():
        out = classifier.model(torch.rand(2, 3, 64, 96))
    assert (out[0] if isinstance(out, tuple) else out).shape == (2, 1000)
    classifier.save(best := tmp_path / "best.pt")
    model = f"yolov5_{name.removesuffix('-cls.yaml')}.yaml"
    arguments = ["convert", str(best), "-m", model, "-s", "n", "-o", str(tmp_path / "init.pt")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    trained = classifier.model.model[0].float().state_dict()
    converted = YOLO(tmp_path / "init.pt").model.model[0].float().state_dict()
    assert list(trained) == list(converted)
    for key, tensor in trained.items():
        # Ultralytics saves its checkpoints in half precision.
        torch.testing.assert_close(converted[key], tensor.half().float() if tensor.is_floating_point() else tensor)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_found_by_name_and_hold_known_arguments_alone(name: str) -> None:
    from ultralytics.cfg import get_cfg
    from ultralytics.utils import YAML, checks

    recipe = YAML.load(checks.check_yaml(name))
    arguments = get_cfg(overrides=recipe)
    assert arguments.optimizer == "AdamW"
    assert all(getattr(arguments, key) == value for key, value in recipe.items())

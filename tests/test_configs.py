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
MODELS = [
    (path.name, letter) for path in sorted(CFG.glob("*.yaml")) for letter in yaml.safe_load(path.read_text())["scales"]
]


def scaled(name: str, letter: str) -> str:
    """`yolov5_repvit.yaml` as `yolov5n_repvit.yaml`."""
    return re.sub(r"^(yolov?\d+)", rf"\g<1>{letter}", name)


@pytest.fixture(autouse=True)
def _freed() -> Iterator[None]:
    yield
    gc.collect()


def test_every_family_has_a_yaml() -> None:
    named = {yaml.safe_load((CFG / name).read_text())["backbone"][0][2] for name, _ in MODELS}
    assert named == set(registry._BUILT_IN)


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

"""Checkpoints load for ever: files of the module paths that 0.1.0 has, and of those before."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from yolo_lightbackbones import moved

FIXTURES = Path(__file__).parent / "fixtures"
FILES = sorted(str(path.relative_to(FIXTURES).with_suffix("")) for path in FIXTURES.rglob("*.pt"))


def test_there_are_checkpoints_of_every_family() -> None:
    before = {"before_0_1_0/" + name for name in ("blocks", "conv2former", "edgevit", "parcnet", "repvit")}
    assert before | {"before_0_1_0/fused_parcnet", "best_0_1_0"} <= set(FILES)


def test_frozen_paths_are_the_ones_that_design_lists(repository: Path) -> None:
    section = (repository / "docs" / "design.md").read_text().split("## What checkpoints rely on")[1].split("\n## ")[0]
    listed = {
        f"{module}.{name}"
        for module, names in re.findall(r"^\| `([\w.]+)` \| (.+) \|$", section, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
    }
    assert listed == set(moved.pickled_classes())


@pytest.mark.parametrize("earlier", moved.MOVED)
def test_an_earlier_path_leads_to_a_frozen_one(earlier: str) -> None:
    module, _, name = earlier.rpartition(".")
    cls = getattr(importlib.import_module(f"yolo_lightbackbones.{module}"), name)
    path = f"{cls.__module__}.{cls.__qualname__}"
    assert path == f"yolo_lightbackbones.{moved.MOVED[earlier]}"
    assert moved.pickled_classes()[path] is cls
    assert (cls, f"yolo_lightbackbones.{earlier}") in moved.safe_globals()


@pytest.mark.parametrize("module", ["backbone", "blocks", "backbones.parcnet", "backbones.conv2former"])
def test_a_name_that_never_was_is_an_attribute_error(module: str) -> None:
    full = f"yolo_lightbackbones.{module}"
    with pytest.raises(AttributeError, match=f"module '{full}' has no attribute 'Stages'"):
        importlib.import_module(full).Stages  # noqa: B018


@pytest.mark.parametrize("safe", ["0", "1"])
def test_a_fresh_process_loads_them_and_gets_the_same_outputs(safe: str, tmp_path: Path) -> None:
    """Each with the image that it was stored with; `ULTRALYTICS_SAFE_LOAD=1` unpickles known classes only."""
    code = """
        import runpy, sys, torch
        from ultralytics import YOLO

        image = runpy.run_path(sys.argv[1])["image"]()
        for path in sys.argv[2:]:
            model = YOLO(path + ".pt").model.float().eval()
            with torch.no_grad():
                torch.save(model(image)[0][0], path.rpartition("/")[2] + "_out.pt")
    """
    environment = {**os.environ, "ULTRALYTICS_SAFE_LOAD": safe}
    paths = [str(FIXTURES / name) for name in FILES]
    command = [sys.executable, "-c", textwrap.dedent(code), str(FIXTURES / "make.py"), *paths]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    for name in FILES:
        expected = torch.tensor(json.loads((FIXTURES / f"{name}.json").read_text()))
        output = torch.load(tmp_path / f"{Path(name).name}_out.pt")
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)

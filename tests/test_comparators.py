"""The systems that others compare with: the page is what its data say, and rows that are said to run do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from places import REPOSITORY

from yolo_lightbackbones import registry
from yolo_lightbackbones.plugin import rows

SYSTEMS = json.loads((REPOSITORY / "docs" / "comparators.json").read_text())["systems"]
RUNNING = [system["row"] for system in SYSTEMS if "row" in system]
FIGURES = {"top1", "parameters", "gmacs"}
WANTED = """
MobileViT, ConvNeXt, Swin, HorNet, RepLKNet, SLaK, MobileNetV2, MobileNetV3, DeiT, CoAtNet, MOAT, EfficientNet,
EfficientFormer, PVTv2, MogaNet, FcaFormer, DFFormer, ParC-ConvNeXt, ParC-ResNet, ParC-MobileNetV2, Conv2Former
"""


def test_every_system_is_there_and_runs_or_says_why_not() -> None:
    assert set(re.split(r",\s+", WANTED.strip())) == {re.split(r"[, ]", system["system"])[0] for system in SYSTEMS}
    for system in SYSTEMS:
        assert ("row" in system) != ("reason" in system), system["system"]
        assert re.fullmatch(r"\d{4}\.\d{5}", system["paper"])
        assert (
            {"system", "paper"}
            <= system.keys()
            <= {*("system", "paper", "variant", *FIGURES, "source", "compared_by", "row", "note", "code", "reason")}
        )


def test_every_figure_names_its_source_and_only_the_four_papers_compare() -> None:
    for system in SYSTEMS:
        assert bool(FIGURES & system.keys()) == bool(system.get("source")), system["system"]
        assert not system.get("source") or system.get("variant"), system["system"]
        assert set(system.get("compared_by", [])) <= {"EdgeViT", "ParC-Net", "RepViT", "Conv2Former"}, system["system"]


@pytest.mark.parametrize(("change", "code"), [("", 0), ("| a | b |\n", 1)])
def test_the_page_is_up_to_date(change: str, code: int, tmp_path: Path) -> None:
    for name in ("tools/make_comparators.py", "docs/comparators.json", "docs/comparators.md"):
        copy = tmp_path / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_text((REPOSITORY / name).read_text() + (change if name.endswith(".md") else ""))
    command = [sys.executable, str(tmp_path / "tools" / "make_comparators.py"), "--check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert ("is out of date; run: python tools/make_comparators.py" in done.stderr) == bool(code)


@pytest.mark.parametrize("text", RUNNING)
def test_a_row_that_is_said_to_run_builds(text: str) -> None:
    """Skipped where the module or the variant has not been added yet, and where timm is not installed."""
    row: list[Any] = yaml.safe_load(text)
    source, repeats, module, (name, *_) = row
    assert (source, repeats) == (-1, 1)
    families = registry.families()
    if module == "Timm":
        timm = pytest.importorskip("timm", reason="Timm rows are built by timm")
        assert timm.is_model(name)
    taps = [[0, 1, "Tap", [tap]] for tap in ("P3", "P4", "P5")]
    config = {"nc": 1, "backbone": [row, *taps], "head": [[[1, 2, 3], 1, "Detect", ["nc"]]]}
    translated = rows.translate(config, 3, families)["backbone"]
    with torch.device("meta"):
        backbone = families[module](*translated[0][3])
    assert [reduction for tap, reduction in zip(backbone.taps, backbone.reductions, strict=True) if tap != "P2"] == [
        8,
        16,
        32,
    ]
    assert [index[3][0] for index in translated[1:]] == list(backbone.out_channels[-3:])

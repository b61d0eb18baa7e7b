"""`lightbackbones list`: what the families are, what they cost, and what was published."""

from __future__ import annotations

import json
import re
from typing import Any

import published as published_code
import pytest
from typer.testing import CliRunner, Result

from yolo_lightbackbones import registry
from yolo_lightbackbones.backbones.edgevit import EdgeViT
from yolo_lightbackbones.backbones.repvit import RepViT
from yolo_lightbackbones.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["list", *arguments], env={"COLUMNS": "120"})


def listed(*arguments: str) -> dict[str, dict[str, Any]]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return {entry["name"]: entry for entry in json.loads(result.stdout)["backbones"]}


@pytest.fixture
def own_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    registry.families()
    monkeypatch.setattr(registry, "_families", dict(registry._families))


def test_a_family_as_json() -> None:
    found = listed("--family", "edgevit")
    assert list(found) == ["edgevit_xxs", "edgevit_xs", "edgevit_s"]
    for name, entry in found.items():
        parameters, gmacs = published_code.COUNTED[name]
        assert entry["parameters"] == parameters
        assert entry["macs"] / 1e9 == pytest.approx(gmacs, abs=6e-5)
        assert (entry["family"], entry["module"], entry["problem"]) == ("edgevit", "EdgeViT", None)
        assert entry["weights"]["status"] == "none released"
        assert entry["weights"]["download"] is None
        assert "No EdgeViT weights were ever released" in entry["weights"]["by_hand"]
    assert found["edgevit_xxs"]["taps"] == {"P2": 36, "P3": 72, "P4": 144, "P5": 288}
    published = found["edgevit_xxs"]["published"]
    assert (published["top1"], published["source"], published["gmacs"]) == (74.4, "arXiv 2205.03436", 0.56)


@pytest.mark.slow
def test_every_variant_has_its_published_counts() -> None:
    found = listed()
    assert list(found) == registry.list_backbones()
    for name, (parameters, gmacs) in published_code.COUNTED.items():
        assert found[name]["parameters"] == parameters
        assert found[name]["macs"] / 1e9 == pytest.approx(gmacs, abs=6e-5)


@pytest.fixture
def one_repvit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family of one variant, for time."""
    monkeypatch.setattr(RepViT, "variants", {"m0_9": RepViT.variants["m0_9"]})


@pytest.mark.usefixtures("one_repvit")
def test_the_table() -> None:
    result = run("--family", " RepViT ", "--imgsz", "224")  # as its module is written
    assert result.exit_code == 0
    row = next(line for line in result.stdout.splitlines() if "repvit_m0_9" in line)
    assert re.findall(r"[\w.]+(?: \d+)*", row) == ["repvit_m0_9", "4.72", "0.82", "48 96 192 384", "79.1", "download"]
    assert "GMACs" in result.stdout
    assert "@224" in result.stdout
    assert "ImageNet top-1 as published: github.com/THU-MIG/RepViT" in result.stdout
    assert "repvit_m0_9: 450 epochs, distilled" in result.stdout
    assert "RepViT: arXiv 2307.09283, github.com/THU-MIG/RepViT (Apache-2.0)" in result.stdout
    assert "edgevit" not in result.stdout
    assert result.stderr == ""


@pytest.mark.usefixtures("one_repvit")
def test_the_way_to_weights_as_json() -> None:
    url = "https://github.com/THU-MIG/RepViT/releases/download/v1.0/repvit_m0_9_distill_450e.pth"
    weights = listed("--family", "repvit", "--imgsz", "32")["repvit_m0_9"]["weights"]
    assert weights == {"status": "download", "download": "repvit_m0_9", "url": url, "by_hand": None}


@pytest.mark.usefixtures("own_families")
def test_a_third_partys_family_shows_up() -> None:
    @registry.register_backbone
    class Ours(EdgeViT):
        family = "ours"
        variants = {"tiny": EdgeViT.variants["xxs"]}

    found = listed("--family", "ours", "--imgsz", "64")
    assert found["ours_tiny"]["parameters"] == 3_778_128
    assert found["ours_tiny"]["published"] is None
    assert found["ours_tiny"]["weights"] == {"status": None, "download": None, "url": None, "by_hand": None}
    row = next(line for line in run("--family", "ours", "--imgsz", "64").stdout.splitlines() if "ours_tiny" in line)
    assert row.count(" - ") == 2


@pytest.mark.usefixtures("own_families")
def test_a_third_partys_family_without_our_four_taps_or_that_fails_takes_none_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Shallow(EdgeViT):
        family = "shallow"
        variants = {"tiny": EdgeViT.variants["xxs"]}

        def build_stages(self, config: Any, drop_path_rate: float) -> Any:
            for stage in super().build_stages(config, drop_path_rate):
                if stage.reduction <= 16:
                    yield stage

    class Broken(EdgeViT):
        family = "broken"
        variants = {"tiny": None}

    monkeypatch.setattr(registry, "_families", {})  # without those that come with the package, for time
    registry.register_backbone(Shallow)
    registry.register_backbone(Broken)
    result = run("--imgsz", "32", "--json")
    assert result.exit_code == 0
    entries = {entry["name"]: entry for entry in json.loads(result.stdout)["backbones"]}
    assert entries["broken_tiny"]["parameters"] is None
    assert "NoneType" in entries["broken_tiny"]["problem"]
    assert "broken_tiny" in result.stderr
    assert entries["shallow_tiny"]["taps"] == {"P2": 36, "P3": 72, "P4": 144}
    assert entries["shallow_tiny"]["macs"] > 0
    assert run("--family", "broken").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "repvitt"], "Unknown family 'repvitt'. Did you mean 'repvit'\\? Allowed: edgevit, parcnet"),
        (["--family", "edgevit", "--imgsz", "100"], "100 x 100 .* multiples of 32.* 128 x 128"),
        (["--imgsz", "12x"], "image size is '12x'; write one number of pixels, 640, or height,width: 480,640"),
        (["--imgsz", "0"], "image size is '0'"),
        (["--imgsz", "-32"], "image size is '-32'"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert re.search(message, result.stderr), result.stderr
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit)

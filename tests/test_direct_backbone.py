"""A family of somebody else with a forward of its own: no stem, no stages, no input norm, no P2."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import random_image, randomise, run
from torch import Tensor, nn
from typer.testing import CliRunner

from yolo_lightbackbones import Backbone, Options, create_backbone, fuse, load_weights, registry
from yolo_lightbackbones.cli import app
from yolo_lightbackbones.layers import ConvNorm
from yolo_lightbackbones.options import ROW_OPTIONS
from yolo_lightbackbones.plugin import register, rows
from yolo_lightbackbones.plugin.row import ConfigError
from yolo_lightbackbones.stages import Stage, StagedBackbone

YAML = """
nc: 1
backbone:
  - [-1, 1, Direct, [a, {OPTIONS}]]
  - [0, 1, Tap, [P3]]
  - [0, 1, Tap, [P4]]
head:
  - [[1, 2], 1, Detect, [nc]]
"""


class Direct(Backbone):
    """P3 and P4, in which `entry` and `body` are called what nothing of the package is called."""

    family, variants = "direct", {"a": 8, "b": 16}

    def __init__(self, variant: Any, options: Options | None = None) -> None:
        super().__init__()
        options = options or Options()
        width = self.variants[self.resolve_variant(variant)]
        self.entry = ConvNorm(options.in_channels, width, 3, stride=2)
        self.body = nn.ModuleList([ConvNorm(width, width, 3, stride=4), ConvNorm(width, 2 * width, 3, stride=2)])
        self.set_taps({"P3": width, "P4": 2 * width}, options)

    def forward(self, x: Tensor) -> list[Tensor]:
        self.check_size(x)
        x = self.entry(x)
        maps = {}
        for tap, layer in zip(("P3", "P4"), self.body, strict=True):
            maps[tap] = x = layer(x)
        return [maps[tap] for tap in self.taps]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from ultralytics.nn import tasks

    monkeypatch.setattr(registry, "_families", {**registry.families(), "Direct": Direct})
    register()
    yield
    if hasattr(tasks, "Direct"):
        monkeypatch.delattr(tasks, "Direct")


def detector(tmp_path: Path, options: str = "") -> Any:
    from ultralytics import YOLO

    path = tmp_path / "direct.yaml"
    path.write_text(YAML.replace("{OPTIONS}", f"{{{options}}}"))
    return YOLO(path, verbose=False)


def test_taps_are_what_it_offers() -> None:
    assert Direct.offered_taps("b") == {"P3": 16, "P4": 32}
    backbone = create_backbone("direct_a", taps=("P4",))
    assert (backbone.taps, backbone.out_channels, backbone.reductions) == (("P4",), (16,), (16,))
    assert Direct("a", Options(taps=None)).taps == ("P3", "P4")
    with pytest.raises(ValueError, match=r"Direct has no tap 'P2', 'P5'\. Allowed: P3, P4\."):
        create_backbone("direct_a")


def test_it_folds_and_keeps_its_outputs() -> None:
    backbone = create_backbone("direct_a", taps=("P3", "P4")).eval()
    randomise(backbone)
    fused = fuse(backbone)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(run(fused, random_image(64, 96)), run(backbone, random_image(64, 96)))


def test_weights_of_its_own_layout(tmp_path: Path) -> None:
    source, target = (create_backbone("direct_a", taps=("P3", "P4")).eval() for _ in range(2))
    randomise(source)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    report = load_weights(target, tmp_path / "w.pth")
    assert set(report.loaded) == set(source.state_dict())
    torch.testing.assert_close(run(target, random_image(32, 32)), run(source, random_image(32, 32)), rtol=0, atol=0)
    grey = create_backbone("direct_a", taps=("P3", "P4"), in_channels=1)
    assert load_weights(grey, tmp_path / "w.pth").adapted == ("entry.conv.weight",)
    with pytest.raises(ValueError, match="this is direct_a; you asked for direct_b"):
        load_weights(create_backbone("direct_b", taps=("P3", "P4")), tmp_path / "w.pth")


def test_it_is_a_module_of_model_yamls(tmp_path: Path) -> None:
    model = detector(tmp_path).model
    assert model.stride.tolist() == [8, 16]
    grey = type(model)({**model.yaml, "channels": 1}, ch=1, verbose=False)
    grey.load(model)
    conv = model.model[0].entry.conv.weight.sum(1, keepdim=True)
    torch.testing.assert_close(grey.model[0].entry.conv.weight, conv)


def test_a_tap_that_it_does_not_offer_names_the_row(tmp_path: Path) -> None:
    config = {"yaml_file": "my.yaml", "backbone": [[-1, 1, "Direct", ["a"]], [0, 1, "Tap", ["P2"]]], "head": []}
    with pytest.raises(ConfigError, match=r"my\.yaml, row 1 .*Direct has no tap P2\. Allowed, one of: P3, P4\."):
        rows.translate(config, 3, registry.families())


def test_it_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where a model without a file is exported to
    model = detector(tmp_path)
    path = model.export(format="torchscript", imgsz=64)
    image = torch.rand(1, 3, 64, 64)
    traced = torch.jit.load(path)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(traced(image), run(model.model.eval(), image)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arguments", [["info", "direct.yaml"], ["info", "direct_a"], ["list", "--family", "direct"]])
def test_commands_describe_it(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    detector(tmp_path)
    result = CliRunner().invoke(app, [*arguments, "--imgsz", "64", "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    if arguments[0] == "list":
        assert [entry["taps"] for entry in document["backbones"]] == [{"P3": 8, "P4": 16}, {"P3": 16, "P4": 32}]
    else:
        backbone = document.get("backbone", document)
        assert backbone.get("variants", ["direct_a"]) == ["direct_a"]
        assert backbone["taps"] == {"P3": 8, "P4": 16}
        assert [stage["name"] for stage in backbone["stages"]] == ["entry", "body.0", "body.1"]


def test_a_skeleton_that_derives_the_contract_is_told_what_to_derive() -> None:
    with pytest.raises(TypeError, match="Old builds a stem and stages: derive it from StagedBackbone, not"):

        class Old(Backbone):
            def build_stages(self, config: int, drop_path_rate: float) -> Iterator[Stage]:
                yield Stage([nn.ReLU()], channels=8, reduction=4)


def test_options_come_one_way() -> None:
    class Toy(StagedBackbone):
        family, variants = "toy", {"a": 4}

        def build_stem(self, config: int, in_channels: int) -> nn.Module:
            return nn.Conv2d(in_channels, config, 4, 4)

        def build_stages(self, config: int, drop_path_rate: float) -> Iterator[Stage]:
            yield Stage([nn.ReLU()], channels=config, reduction=4)

    assert Toy("a", taps=("P2",)).taps == Toy("a", Options(taps=("P2",))).taps == ("P2",)
    with pytest.raises(TypeError, match=r"give Options\(taps=\.\.\., \.\.\.\)"):
        Toy("a", Options(), taps=("P2",))
    with pytest.raises(TypeError, match=r"The options are 3; give Options"):
        Toy("a", 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="weights"):
        Toy("a", weights=True)
    with pytest.raises(ValueError, match=r"taps is 'P2'; give a sequence of taps: \('P2',\)"):
        Toy("a", taps="P2")
    assert str(Options(taps=["P3"], init="scratch")) == "Options(taps=('P3',), init='scratch')"
    for channels in (0, 8193, True, "3"):
        with pytest.raises(ValueError, match=r"the image has .* channels; allowed are 1 to 8192"):
            Options(in_channels=channels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"pretrained": True}, "pretrained"),
        ({"imgsz": 224}, "imgsz"),
        ({"pyramid": "simple"}, "pyramid"),
        ({"taps": ("P3",), "normed_taps": ("P3",)}, "tap_norm"),
    ],
)
def test_an_option_that_the_family_does_not_have_is_refused(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], name: str
) -> None:
    monkeypatch.setattr(Direct, "row_options", {"init": ROW_OPTIONS["init"]})
    with pytest.raises(ValueError, match=f"Direct has no option '{name}'. Allowed: init."):
        Direct("a", Options(**{"taps": ("P3", "P4"), **given}))


def test_a_row_takes_the_options_of_its_family_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Direct, "row_options", {"init": ROW_OPTIONS["init"]})
    with pytest.raises(ConfigError, match=r"unknown option 'tap_norm'\. Allowed: init\."):
        detector(tmp_path, "tap_norm: batch")

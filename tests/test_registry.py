"""Names of backbones: what is listed, what is understood, what is refused, and what others may add."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from yolo_lightbackbones import backbones, registry
from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.backbones.edgevit import EdgeViT
from yolo_lightbackbones.backbones.repvit import RepViT
from yolo_lightbackbones.blocks import BlockRow
from yolo_lightbackbones.registry import create_backbone, families, list_backbones, register_backbone
from yolo_lightbackbones.stages import Stage, StagedBackbone

NAMES = [f"{cls.family}_{variant}" for cls in registry.built_in() for variant in cls.variants]


def own_family(class_name: str = "TinyNet", family: str = "tinynet") -> type[Backbone]:
    """A family as somebody else would write it."""

    def build_stem(self: Backbone, config: int, in_channels: int) -> nn.Module:
        return nn.Conv2d(in_channels, config, 4, 4)

    def build_stages(self: Backbone, config: int, drop_path_rate: float) -> Iterator[Stage]:
        yield Stage([nn.ReLU()], channels=config, reduction=4)

    attributes: dict[str, Any] = {"family": family, "variants": {"a": 8}}
    return type(class_name, (StagedBackbone,), attributes | {"build_stem": build_stem, "build_stages": build_stages})


@pytest.fixture(autouse=True)
def untouched_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_families", families())


@pytest.fixture
def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A registry that has not looked for families yet."""
    monkeypatch.setattr(registry, "_families", {})
    monkeypatch.setattr(registry, "_loaded", False)
    return monkeypatch


def test_all_published_variants_are_listed() -> None:
    assert list_backbones() == NAMES
    assert list(families())[:4] == ["EdgeViT", "ParCNet", "RepViT", "Conv2Former"]


def test_every_module_of_backbones_is_a_family() -> None:
    files = {path.stem for path in Path(backbones.__path__[0]).glob("*.py")} - {"__init__"}
    assert {cls.__module__.rpartition(".")[2] for cls in families().values()} == files


def test_what_a_module_of_backbones_imports_is_no_family_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[RepViT.__module__], "Imported", EdgeViT, raising=False)
    assert registry.built_in().count(EdgeViT) == 1


def test_one_family_is_listed() -> None:
    assert list_backbones("edgevit") == ["edgevit_xxs", "edgevit_xs", "edgevit_s"]
    with pytest.raises(ValueError, match=r"Unknown family 'repvti'. Did you mean 'repvit'\? Allowed: edgevit, parcnet"):
        list_backbones("repvti")


@pytest.mark.parametrize("name", ["repvit_m0_9", "repvit_m0.9", "RepViT_M0.9", " repvit_m0_9\n"])
def test_spellings(name: str) -> None:
    backbone = create_backbone(name, taps=("P2",))
    assert type(backbone).__name__ == "RepViT"
    assert backbone.out_channels == (48,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("repvit_m0_8", r"Unknown variant 'repvit_m0_8' of RepViT. Did you mean '.+'\? Allowed: m0_6, m0_9, m1_0"),
        ("edgvit_xxs", r"Unknown backbone 'edgvit_xxs'. Did you mean 'edgevit_xxs'\? Allowed: edgevit_xxs, "),
        (
            "resnet50",
            r"Unknown backbone 'resnet50'\. Did you mean 'parc_resnet50'\? Allowed: edgevit_xxs, .*conv2former_b_k7",
        ),
        ("", "Unknown backbone ''"),
        ("repvit_", "Unknown variant 'repvit_'"),
        ("RepViTM0_9", r"Unknown backbone 'RepViTM0_9'. Did you mean 'repvit_m0_9'\?"),
        ("RepViT-M0.9", r"Unknown backbone 'RepViT-M0.9'. Did you mean 'repvit_m0_9'\?"),
        ("edgeformer_s", r"Unknown backbone 'edgeformer_s'. Did you mean 'parcnet_s'\?"),
        ("repvit_m0_9.dist_450e_in1k", r"Unknown variant .* of RepViT. Did you mean 'm0_9'\?"),
        ("conv2former_b_k7_22k", r"Unknown variant .* of Conv2Former. Did you mean 'b_k7'\?"),
        ("repvit_\n\x1b[31m" + "x" * 100_000, r"^Unknown variant 'repvit_\\n\\x1b\[31mx{50,120}\.\.\. of RepViT"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone(name)


def test_options_are_strict() -> None:
    with pytest.raises(TypeError, match="weights"):
        create_backbone("edgevit_xxs", weights=True)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"EdgeViT has no option 'pretrained'\. Allowed: drop_path_rate, input_norm"):
        create_backbone("edgevit_xxs", pretrained=True)
    with pytest.raises(TypeError, match="positional"):
        create_backbone("edgevit_xxs", 3)  # type: ignore[call-arg]


def test_somebody_elses_family() -> None:
    cls = own_family()
    assert register_backbone(cls) is cls
    assert families()["TinyNet"] is cls
    assert list_backbones()[-1] == "tinynet_a"
    assert create_backbone("tinynet_a", taps=("P2",)).out_channels == (8,)


def test_names_are_taken_once() -> None:
    register_backbone(own_family())
    with pytest.raises(ValueError, match=r"The family 'tinynet' is registered already, by .*TinyNet"):
        register_backbone(own_family("OtherNet"))
    with pytest.raises(ValueError, match="class called TinyNet is registered already"):
        register_backbone(own_family(family="other"))
    with pytest.raises(ValueError, match=r"The family 'repvit' is registered already, by .*repvit.RepViT"):
        register_backbone(own_family("MyRepViT", "repvit"))


def test_rows_of_blocks_of_others() -> None:
    class TinyBlocks(BlockRow):
        options = {}

    cls = own_family()
    cls.block_rows = {"TinyBlock": TinyBlocks}
    register_backbone(cls)
    assert registry.block_rows()["TinyBlock"] is TinyBlocks
    other = own_family("OtherNet", "othernet")
    other.block_rows = {"LGLBlock": TinyBlocks}
    with pytest.raises(ValueError, match=r"Rows of LGLBlock are registered already, by .*edgevit\.EdgeViT"):
        register_backbone(other)


@pytest.mark.parametrize("thing", [nn.Module, "RepViT", 3])
def test_only_backbones_are_registered(thing: Any) -> None:
    with pytest.raises(TypeError, match="takes a subclass of Backbone"):
        register_backbone(thing)


@pytest.mark.parametrize("missing", ["family", "variants"])
def test_a_family_needs_a_name_and_variants(missing: str) -> None:
    cls = own_family()
    setattr(cls, missing, {} if missing == "variants" else "")
    with pytest.raises(TypeError, match=f"TinyNet needs the class attribute '{missing}'"):
        register_backbone(cls)


def test_threads_load_the_families_once(fresh_registry: pytest.MonkeyPatch) -> None:
    import_module = registry.importlib.import_module

    def slowly(name: str) -> Any:  # so that the others arrive meanwhile
        time.sleep(0.01)
        return import_module(name)

    fresh_registry.setattr(registry.importlib, "import_module", slowly)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: list_backbones(), range(32))) == [NAMES] * 32


def test_entry_points(fresh_registry: pytest.MonkeyPatch) -> None:
    class Announced:
        value = "somewhere:TinyNet"

        @staticmethod
        def load() -> type[Backbone]:
            return own_family()

    def announced(group: str) -> list[Any]:
        assert group == "yolo_lightbackbones"
        return [Announced]

    fresh_registry.setattr(registry, "entry_points", announced)
    assert list_backbones() == [*NAMES, "tinynet_a"]


def test_a_broken_entry_point_does_not_take_the_others_down(fresh_registry: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("broken", "no_such_package.at_all:Net", "yolo_lightbackbones")
    fresh_registry.setattr(registry, "entry_points", lambda group: [broken])
    with pytest.warns(UserWarning, match="'no_such_package.at_all:Net' could not be registered: No module named"):
        assert list_backbones() == NAMES

"""Cards: what a family's card may say, and that somebody else's family with a card is treated as the built-in ones."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from families import LISTED
from torch import Tensor, nn
from typer.testing import CliRunner, Result
from ultralytics import YOLO

from yolo_lightbackbones import Backbone, Stage, StagedBackbone, create_backbone, list_backbones, load_weights, registry
from yolo_lightbackbones.backbones.repvit import RepViT
from yolo_lightbackbones.card import Card, Figures, Release
from yolo_lightbackbones.checkpoints import identify, releases, rules
from yolo_lightbackbones.checkpoints.layouts import layouts_of
from yolo_lightbackbones.checkpoints.rules import Drop, Layout, Rename
from yolo_lightbackbones.cli import app, completion
from yolo_lightbackbones.layers import ConvNorm

pytestmark = pytest.mark.usefixtures("one_thread")

LAYOUTS = (
    Layout(
        "theirs",
        rules=(
            Rename(r"patch\.(.+)", r"stem.\1", example="patch.conv.weight"),
            Rename(r"body\.(\d)\.(.+)", r"stages.\1.blocks.0.\2", example="body.0.conv.weight"),
            Drop(r"head\..+", example="head.weight"),
        ),
    ),
)
"""Found by the card below, whose `layouts` is the name of this module."""

CARD = Card(
    title="Plain-Net",
    paper="2401.00001",
    repository="example.org/plain",
    licence="MIT",
    former_names=("dullformer",),
    letters={"n": "n", "m": "s"},
    figures={"n": Figures(70.5, "example.org", parameters=1.5)},
    releases=(Release("plain_n_300e", "https://example.org/files/n.pth", variant="n"),),
    weights={"s": "by hand"},
    by_hand="Ask the authors for S.",
    layouts=__name__,
)


def family(
    class_name: str, name: str, card: Card | None = None, *, dims: dict[str, int] | None = None, first: int = 2
) -> type[Backbone]:
    """A family as somebody else would write it, with taps from P`first` on."""

    def build_stem(self: Backbone, config: int, in_channels: int) -> nn.Module:
        return ConvNorm(in_channels, config, 3, stride=2)

    def build_stages(self: Backbone, config: int, drop_path_rate: float) -> Iterator[Stage]:
        reduction = 2**first
        channels = config
        while reduction <= 32:
            stride = reduction // 2 if channels == config else 2
            yield Stage(
                [ConvNorm(channels, 2 * channels, 3, stride=stride)], channels=2 * channels, reduction=reduction
            )
            reduction, channels = 2 * reduction, 2 * channels

    attributes: dict[str, Any] = {"family": name, "variants": dims or {"n": 8, "s": 12}}
    if card is not None:
        attributes["card"] = card
    cls = type(class_name, (StagedBackbone,), attributes | {"build_stem": build_stem, "build_stages": build_stages})
    globals()[class_name] = cls  # checkpoints look it up by its module
    return cls


PLAIN_NET = family("PlainNet", "plainnet", CARD)


@pytest.fixture(autouse=True)
def untouched_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_families", registry.families())


@pytest.fixture
def plain() -> type[Backbone]:
    """Somebody else's family with a card, registered."""
    return registry.register_backbone(PLAIN_NET)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "120"})


def succeed(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def told(*arguments: object) -> str:
    """The one line of a command that refuses."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    return result.stderr.strip()


def theirs(backbone: Backbone) -> dict[str, Tensor]:
    """The state dict of a PlainNet as `LAYOUTS` has it, with a classifier."""
    renamed = {
        key.replace("stem.", "patch.").replace("stages.", "body.").replace("blocks.0.", ""): value
        for key, value in backbone.state_dict().items()
    }
    return {**renamed, "head.weight": torch.ones(3)}


# --- what a card may say ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"title": ""}, "The title of a card is ''; it must be a text of one line"),
        ({"title": "a\nb"}, "The title of a card is 'a"),
        ({"paper": "arXiv:2401.00001"}, "The paper of the card of Net is .* a number of arXiv: '2203.03952'"),
        ({"licence": 3}, "The licence of the card of Net is 3; it must be a text"),
        ({"letters": "n"}, "The letters of the card of Net is 'n'; it must be a mapping from scale letter to variant"),
        ({"letters": {"nano": "n"}}, "The card of Net has the scale letter 'nano'; it must be one small letter"),
        ({"letters": {"": "n"}}, "The card of Net has the scale letter ''"),
        ({"letters": {"N": "n"}}, "The card of Net has the scale letter 'N'"),
        ({"letters": {"n": 3}}, "The letters of the card"),
        ({"former_names": "oldnet"}, "The former_names of the card of Net is 'oldnet'; it must be a tuple of texts"),
        ({"figures": {"n": 70.5}}, "it must be a mapping from variant to Figures"),
        ({"releases": [Release("a", "https://a/b.pth")]}, "it must be a tuple of Release"),
        ({"weights": {"n": "somewhere"}}, "one of 'by hand', 'none listed', 'none released'"),
        (
            {"weights": {"n": "by hand"}, "releases": (Release("a", "https://a/b.pth", variant="n"),)},
            "The card of Net has 'n' both in weights and in releases; keep one",
        ),
        ({"layouts": "my/layouts.py"}, "'my/layouts.py'; it must be the dotted name of a module"),
    ],
)
def test_a_card_with_a_mistake_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Card(**{"title": "Net", **values})


@pytest.mark.parametrize(
    "values",
    [
        {"letters": {"n": "nn"}},
        {"figures": {"nn": Figures(1.0, "us")}},
        {"weights": {"nn": "by hand"}},
        {"releases": (Release("a", "https://a/b.pth", variant="nn"),)},
    ],
)
def test_variants_that_a_family_does_not_have_are_refused_when_it_is_registered(values: dict[str, Any]) -> None:
    (field,) = values
    with pytest.raises(ValueError, match=rf"Net names the variant 'nn' in {field}.*Did you mean 'n'\? Allowed: n, s\."):
        registry.register_backbone(family("Net", "net", Card("Net", **values)))
    assert "Net" not in registry.families()


def test_the_name_of_a_release_is_that_of_a_file() -> None:
    assert Release("w", "https://a/b.safetensors?download=true").filename == "w.safetensors"
    with pytest.raises(ValueError, match=r"The name of the release at 'https://a/b.pth' is '\.\./w'; it must be"):
        Release("../w", "https://a/b.pth")


def test_a_family_without_a_card_has_one_with_the_name_of_its_class() -> None:
    assert family("Bare", "bare").card == Card("Bare")


def test_a_card_goes_to_subclasses_of_the_same_family_only() -> None:
    class Changed(RepViT):
        """Still a RepViT."""

    class Other(RepViT):
        family = "other"

    assert Changed.card is RepViT.card
    assert Other.card == Card("Other")
    assert layouts_of(Changed) == layouts_of(RepViT)
    assert layouts_of(Other) == (rules.OURS,)


# --- somebody else's family with a card -------------------------------------------------------------------------------


@pytest.mark.usefixtures("plain")
def test_list_shows_its_card() -> None:
    entries = json.loads(succeed("list", "--family", "plainnet", "--imgsz", "32", "--json"))["backbones"]
    small, large = entries
    assert (small["title"], small["origin"]) == ("Plain-Net", "arXiv 2401.00001, example.org/plain (MIT)")
    assert (small["published"]["top1"], large["published"]) == (70.5, None)
    url = "https://example.org/files/n.pth"
    assert small["weights"] == {"status": "download", "download": "plainnet_n", "url": url, "by_hand": None}
    assert large["weights"]["status"] == "by hand"
    assert large["weights"]["by_hand"] == "Ask the authors for S."
    shown = succeed("list", "--family", "plainnet", "--imgsz", "32")
    assert "Plain-Net: arXiv 2401.00001, example.org/plain (MIT)" in shown
    assert "Ask the authors for S." in shown


@pytest.mark.usefixtures("plain")
def test_new_picks_its_variants_by_letter(tmp_path: Path) -> None:
    file = tmp_path / "yolo11_plainnet.yaml"
    succeed("new", "-b", "plainnet", "-o", file)
    text = file.read_text()
    config = yaml.safe_load(text)
    assert config["backbone"][0] == [-1, 1, "PlainNet", [{"n": "n", "m": "s"}]]
    assert list(config["scales"]) == ["n", "m"]
    assert "a Plain-Net backbone (arXiv 2401.00001), P3/8 - P5/32 outputs" in text
    assert YOLO(tmp_path / "yolo11m_plainnet.yaml").model.model[0].out_channels[-1] == 12 * 16
    assert completion.backbones("plain") == ["plainnet", "plainnet_n", "plainnet_s"]


def test_its_published_weights_are_loaded_and_recognised(plain: type[Backbone], tmp_path: Path) -> None:
    donor = plain("n")
    torch.save(theirs(donor), tmp_path / "theirs.pth")
    backbone = plain("n")
    report = load_weights(backbone, tmp_path / "theirs.pth")
    assert (report.layout, report.dropped) == ("theirs", ("head.weight",))
    for key, value in donor.state_dict().items():
        torch.testing.assert_close(backbone.state_dict()[key], value)
    with pytest.raises(ValueError, match=r"this is plainnet_n; you asked for repvit_m0_6"):
        load_weights(create_backbone("repvit_m0_6"), tmp_path / "theirs.pth")
    found = json.loads(succeed("info", tmp_path / "theirs.pth", "--imgsz", "32", "--json"))
    assert (found["name"], found["published"]["top1"]) == ("plainnet_n", 70.5)


def test_convert_knows_its_release(plain: type[Backbone], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / "plain_n_300e.pth"
    cached.parent.mkdir(parents=True)
    donor = plain("n")
    torch.save(theirs(donor), cached)
    model = tmp_path / "yolo11n_mine.yaml"
    succeed("new", "-b", "plainnet", "-o", model)
    for name in ("plainnet_n", "plain_n_300e"):
        succeed("convert", name, "--model", model, "-o", tmp_path / "init.pt", "--force")
        loaded = YOLO(tmp_path / "init.pt").model.model[0].state_dict()
        torch.testing.assert_close(loaded["stem.conv.weight"], donor.state_dict()["stem.conv.weight"])
    assert completion.published_weights("plain") == ["plainnet_n", "plain_n_300e"]
    assert "'plainnet_s' cannot be downloaded. Ask the authors for S." in told(
        "convert", "plainnet_s", "--model", model, "-o", tmp_path / "s.pt"
    )


@pytest.mark.usefixtures("plain")
def test_a_former_name_is_understood() -> None:
    with pytest.raises(ValueError, match=r"Unknown backbone 'dullformer_s'. Did you mean 'plainnet_s'\?"):
        create_backbone("dullformer_s")


def test_a_family_without_p2_is_recognised() -> None:
    shallow = registry.register_backbone(family("NoP2", "nop2", first=3))
    found = identify.recognise(shallow("s", taps=("P3", "P4", "P5")).state_dict())
    assert found is not None
    assert ([str(variant) for variant in found.variants], found.similarity) == (["nop2_s"], 1)


@pytest.mark.parametrize(
    ("layouts", "message"),
    [
        ("no_such.module", r"cannot be imported: No module named 'no_such'"),
        ("json", r"its LAYOUTS is None; it must be a tuple of Layout"),
    ],
)
def test_layouts_that_are_not_there_are_named_and_hide_no_other_family(
    layouts: str, message: str, tmp_path: Path
) -> None:
    broken = registry.register_backbone(family("Broken", "broken", Card("Broken", layouts=layouts)))
    torch.save(create_backbone("repvit_m0_6").state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=f"The card of Broken names the layouts '{layouts}', and .*{message}"):
        load_weights(broken("n"), tmp_path / "a.pth")
    with pytest.warns(UserWarning, match=message), pytest.raises(ValueError, match="this is repvit_m0_6"):
        load_weights(create_backbone("repvit_m0_9"), tmp_path / "a.pth")


# --- without a card ---------------------------------------------------------------------------------------------------


def test_a_family_without_a_card_works_by_its_variants(tmp_path: Path) -> None:
    bare = registry.register_backbone(family("Bare", "bare"))
    (entry, _) = json.loads(succeed("list", "--family", "bare", "--imgsz", "32", "--json"))["backbones"]
    assert (entry["title"], entry["origin"], entry["weights"]["status"]) == ("Bare", None, None)
    succeed("new", "-b", "bare_s", "-o", tmp_path / "mine.yaml")
    assert "# YOLO11 object detection with a Bare-S backbone, P3/8" in (tmp_path / "mine.yaml").read_text()
    said = told("new", "-b", "bare", "-o", tmp_path / "other.yaml")
    assert said == "Error: The card of Bare has no variants for scale letters. Choose a variant: bare_n, bare_s."
    assert completion.backbones("bare") == ["bare_n", "bare_s"]
    with pytest.raises(ValueError, match=r"'bare_n' cannot be downloaded\. The card of Bare lists no file for it"):
        releases.find("bare_n")
    torch.save(bare("n").state_dict(), tmp_path / "n.pth")
    assert load_weights(bare("n"), tmp_path / "n.pth").layout == "yolo_lightbackbones"


def test_letters_that_no_neck_has_are_told(tmp_path: Path) -> None:
    registry.register_backbone(family("Odd", "odd", Card("Odd", letters={"q": "n"})))
    said = told("new", "-b", "odd", "-o", tmp_path / "mine.yaml")
    assert said.startswith("Error: Odd has variants for the scale letters q, and yolo11 has the scales n, s, m, l, x.")


# --- names that begin with another family's ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["repvit_wide", "edgevit_wide"])
def test_a_family_whose_name_begins_with_anothers(name: str, tmp_path: Path) -> None:
    module = name.title().replace("_", "")
    card = Card("Wide", letters={"n": "n"}, figures={"n": Figures(60.0, "us")}, layouts=__name__)
    wide = registry.register_backbone(family(module, name, card))
    assert list_backbones(name) == [f"{name}_n", f"{name}_s"]
    assert type(create_backbone(f"{name}_n")) is wide
    assert type(create_backbone(" Repvit_m0.9")) is RepViT
    with pytest.raises(ValueError, match=rf"Unknown variant '{name}_q' of {module}\. .*Allowed: n, s\."):
        create_backbone(f"{name}_q")
    assert json.loads(succeed("info", f"{name}_n", "--imgsz", "32", "--json"))["published"]["top1"] == 60.0
    (entry, _) = json.loads(succeed("list", "--family", name, "--imgsz", "32", "--json"))["backbones"]
    assert (entry["name"], entry["module"], entry["weights"]["by_hand"]) == (f"{name}_n", module, None)

    for asked in (name, f"{name}_n"):
        model = tmp_path / f"yolo11n_{asked}.yaml"
        succeed("new", "-b", asked, "-o", model)
        assert yaml.safe_load(model.read_text())["backbone"][0][2] == module
    donor = wide("n")
    torch.save(theirs(donor), tmp_path / "theirs.pth")
    succeed("convert", tmp_path / "theirs.pth", "--model", model, "-o", tmp_path / "init.pt")
    found = identify.recognise(theirs(donor))
    assert found is not None
    assert [str(variant) for variant in found.variants] == [f"{name}_n"]
    with pytest.raises(ValueError, match="The card of Wide lists no file for it"):
        releases.find(f"{name}_n")


@pytest.mark.parametrize(
    ("name", "dims", "message"),
    [
        (
            "a",
            {"b_c": 8},
            "The name 'a_b_c' would stand for the variant 'c' of First and for the variant 'b_c' of Second",
        ),
        ("a", {"b": 8}, "The name 'a_b' would stand for the family of First and for the variant 'b' of Second"),
        ("a_b_c", {"d": 8}, "The name 'a_b_c' would stand for the variant 'c' of First and for the family of Second"),
        (
            "d",
            {"e": 8, "d_e": 8},
            "The name 'd_e' would stand for the variant 'd_e' of Second and for the variant 'e' of",
        ),
    ],
)
def test_a_name_with_two_meanings_is_refused(name: str, dims: dict[str, int], message: str) -> None:
    registry.register_backbone(family("First", "a_b", dims={"c": 8}))
    with pytest.raises(ValueError, match=message):
        registry.register_backbone(family("Second", name, dims=dims))
    assert "Second" not in registry.families()


def test_a_release_takes_no_name_of_somebody_elses() -> None:
    def card(name: str) -> Card:
        return Card("Mine", releases=(Release(name, "https://example.org/n.pth", variant="n"),))

    for taken in ("repvit_m0_9", "repvit_m0_9.dist_450e_in1k", "mine_s"):
        with pytest.raises(
            ValueError, match=rf"The name '{taken}' would stand for .* and for a file of weights on the"
        ):
            registry.register_backbone(family("Mine", "mine", card(taken)))
    registry.register_backbone(family("Mine", "mine", card("mine_n")))  # the file of the variant with this name
    assert releases.find("mine_n").url == "https://example.org/n.pth"


def test_a_short_name_may_begin_with_the_familys() -> None:
    registry.register_backbone(family("Net", "net", dims={"a": 8, "net_b": 12}))
    assert create_backbone("net_net_b", taps=("P2",)).out_channels == (24,)
    assert create_backbone("net_a", taps=("P2",)).out_channels == (16,)


# --- the pages --------------------------------------------------------------------------------------------------------

PAGES = {name: (Path(__file__).parent.parent / name).read_text() for name in ("README.md", "docs/weights.md")}


def row(page: str, start: str) -> list[str]:
    """The cells of the one row of a table that begins like this."""
    (line,) = (line for line in PAGES[page].splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("cls", LISTED, ids=lambda cls: cls.__name__)
def test_the_table_of_the_readme_is_that_of_the_card(cls: type[Backbone]) -> None:
    paper = cls.card.paper
    name, variants, *_, scales = row("README.md", f"`{cls.__name__}`")
    assert name == f"`{cls.__name__}` ([{paper}](https://arxiv.org/abs/{paper}))"
    assert variants == ", ".join(cls.variants)
    assert scales.partition(" = ")[0] == f"`*_{cls.family}.yaml`, {' '.join(cls.card.letters)}"


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("cls", LISTED, ids=lambda cls: cls.__name__)
def test_the_tables_of_weights_say_what_the_cards_say(page: str, cls: type[Backbone]) -> None:
    *_, where = row(page, f"{cls.card.title} |")
    assert ("downloads" in where) == bool(cls.card.releases)
    assert ("links in the authors' repository" in where) == ("by hand" in cls.card.weights.values())
    assert ("none were ever released" in where) == (
        not cls.card.releases and set(cls.card.weights.values()) == {"none released"}
    )
    if "github.com" in where:
        assert cls.card.repository is not None
        assert f"(https://{cls.card.repository})" in where


def test_the_table_of_checksums_counts_the_releases() -> None:
    files = RepViT.card.releases
    assert [release.name for release in files if release.sha256] == ["repvit_m0_9_distill_450e"]
    assert len([release for release in files if not release.sha256 and not release.repo_id]) == 10
    assert len([release for release in files if release.repo_id]) == 10
    assert row("docs/weights.md", "the authors' other ten")
    assert row("docs/weights.md", "timm's ten")


def test_the_page_on_families_shows_a_card_and_a_layout_that_work() -> None:
    page = (Path(__file__).parent.parent / "docs" / "add-a-backbone.md").read_text()
    shown: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        if "--8<--" not in block:
            exec(block, shown)
    registry.register_backbone(family("Shown", "shown", shown["card"]))
    (layout,) = shown["LAYOUTS"]
    converted = rules.convert(layout, {"layer0.0.conv.weight": torch.ones(1), "head.weight": torch.ones(1)})
    assert list(converted.placed) == ["stages.0.blocks.0.conv.weight"]
    fields = re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `")))
    assert fields == [field.name for field in dataclasses.fields(Card)]

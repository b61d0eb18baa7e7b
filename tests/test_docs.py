"""The documentation: the site builds without a warning, links lead somewhere, quoted messages are still the code's."""

from __future__ import annotations

import ast
import html
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from families import LISTED
from places import REPOSITORY

import yolo_lightbackbones
from yolo_lightbackbones import registry
from yolo_lightbackbones.plugin import rows
from yolo_lightbackbones.plugin.row import ConfigError

DOCS = REPOSITORY / "docs"
PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *DOCS.rglob("*.md"), *REPOSITORY.glob("examples/**/*.md")],
    key=lambda page: page.relative_to(REPOSITORY),
)

LINK = re.compile(r"\]\(([^()\s]+)\)")
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1\s*?$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*$", re.MULTILINE)


# --- links ------------------------------------------------------------------------------------------------------------


def prose(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Names that GitHub and MkDocs give to the headings of a page."""
    headings = [re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in HEADING.findall(prose(page))]
    return {re.sub(r"[- ]+", "-", heading) for heading in headings} | {
        heading.replace(" ", "-") for heading in headings
    }


def problem_of(link: str, page: Path) -> str | None:
    """What is wrong with a relative link; None for one that leads somewhere."""
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    if not target.exists():
        return "there is no such file"
    if not target.is_relative_to(DOCS if page.is_relative_to(DOCS) else REPOSITORY):
        return "leads out of the site"
    if anchor and anchor not in anchors(target):
        return f"no such heading; there are {', '.join(sorted(anchors(target)))}"
    return None


def relative_links(page: Path) -> list[str]:
    return [link for link in LINK.findall(prose(page)) if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_relative_links(page: Path) -> None:
    problems = {link: problem for link in relative_links(page) if (problem := problem_of(link, page))}
    assert not problems


def test_the_link_check_sees_links_and_their_faults(tmp_path: Path) -> None:
    assert "docs/exports.md" in relative_links(REPOSITORY / "README.md")
    assert "demo.jpg" in relative_links(DOCS / "index.md")
    faq = DOCS / "faq.md"
    assert problem_of("taps.md#freezing", faq) is None
    assert problem_of("taps.md#frozen", faq) is not None
    assert problem_of("nothing.md", faq) is not None
    assert problem_of("../README.md", faq) is not None, "it is not part of the site"
    page = tmp_path / "page.md"
    page.write_text("[a](a.md)\n```md\n[b](b.md)\n```\n[c](https://c.d)\n# `X: 'y'` in `z_w`\n")
    assert relative_links(page) == ["a.md"]
    assert anchors(page) == {"x-y-in-z_w"}


# --- messages ---------------------------------------------------------------------------------------------------------


def texts_in_code() -> Iterator[str]:
    """Every string of the package, with … for what an f-string fills in."""
    for module in (REPOSITORY / "yolo_lightbackbones").rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def quoted_messages() -> list[str]:
    """The first cells of the tables of errors: messages in backticks."""
    text = (DOCS / "weights.md").read_text(encoding="utf-8").partition("## What it can say")[2]
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]


def test_explained_messages_are_those_of_the_code() -> None:
    texts = list(texts_in_code())
    messages = quoted_messages()
    assert len(messages) > 30
    for message in messages:
        parts = [part.strip() for part in message.split("…") if len(part.strip()) > 3]
        assert parts, message
        # all in one text: a message is not put together from pieces of others
        assert any(all(part in text for part in parts) for text in texts), message


def test_the_message_on_index_rows_is_what_such_a_row_gives() -> None:
    (shown,) = re.findall(r"^my\.yaml, (row 1 .+)$", (DOCS / "taps.md").read_text(encoding="utf-8"), re.MULTILINE)
    config = {"backbone": [[-1, 1, "EdgeViT", ["xxs"]], [0, 1, "Index", [64, 1]]], "head": []}
    with pytest.raises(ConfigError) as error:
        rows.translate(config, 3, registry.families())
    assert str(error.value) == shown


def test_the_way_of_a_row_is_what_happens_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    way = (DOCS / "design.md").read_text(encoding="utf-8").partition("## The way of a row")[2].partition("\n## ")[0]
    (written,) = re.findall(r"`- (\[.+\])` as row 0", way)
    (code,) = re.findall(r"```python\n(.+?)```", way, re.DOTALL)
    bundled = (REPOSITORY / "cfg" / "yolo11_edgevit.yaml").read_text(encoding="utf-8")
    (shipped,) = re.findall(r"\[-1, 1, EdgeViT, .+\]", bundled)
    model = tmp_path / "yolo11_edgevit.yaml"
    model.write_text(bundled.replace(shipped, written), encoding="utf-8")
    exec(code.replace("yolo11n_edgevit.yaml", model.with_name("yolo11n_edgevit.yaml").as_posix()), {})
    printed = capsys.readouterr().out.splitlines()[-1]  # Ultralytics may have said something before
    row, tap = ast.literal_eval(re.sub(r"Options\(.+?\)\)", "'Options'", printed))
    (options,) = re.findall(r"`(Options\(n.+\))`", way)
    assert options in printed
    assert str(row).replace("'Options'", "Options(...)") in way
    assert str(tap) in way
    assert str(yaml.safe_load(written)) in way


# --- the site ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; any warning fails the build."""
    for module in ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers"):
        if find_spec(module) is None:
            pytest.skip(f'{module} is not installed: pip install mkdocs-material "mkdocstrings[python]"')
    target = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", REPOSITORY / "mkdocs.yml", "-d", target],
        cwd=target.parent,  # nothing depends on the folder it is called from
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "WARNING" not in result.stderr, result.stderr
    return target


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def test_the_site_has_every_page_and_asks_google_for_nothing(site: Path) -> None:
    for page in DOCS.glob("*.md"):
        built = site / "index.html" if page.stem == "index" else site / page.stem / "index.html"
        assert "fonts.google" not in built.read_text(encoding="utf-8"), page.name
    assert (site / "taps" / "index.html").read_text(encoding="utf-8").count('class="mermaid"') == 1


def test_the_api_page_has_every_public_name(site: Path) -> None:
    page = (site / "api" / "index.html").read_text(encoding="utf-8")
    ids = {identifier.rpartition(".")[2] for identifier in re.findall(r'id="(yolo_lightbackbones\.[\w.]+)"', page)}
    assert {name for name in yolo_lightbackbones.__all__ if not name.startswith("__")} <= ids
    assert "input_norm: InputNormMode" in text_of(site / "api" / "index.html"), "signatures have their types"


def test_the_page_on_families_shows_the_example_itself(site: Path) -> None:
    shown = text_of(site / "add-a-backbone" / "index.html")
    example = (REPOSITORY / "examples" / "custom_backbone.py").read_text(encoding="utf-8")
    family = example.partition("[start:family]\n")[2].partition("\n# --8<-- [end:family]")[0].strip()
    assert "class PlainNet(StagedBackbone)" in family
    assert family in shown


# --- the citation -----------------------------------------------------------------------------------------------------

PAPERS = {"2205.03436": "Pan", "2203.03952": "Zhang", "2307.09283": "Wang", "2211.11943": "Hou"}
"""arXiv number -> family name of the first author, as on arxiv.org."""


def test_the_citation_file() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    required = {"cff-version", "message", "title", "authors"}
    assert required <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["license"] == "AGPL-3.0-or-later"
    assert str(citation["version"]) == yolo_lightbackbones.__version__
    cited = {paper["url"].removeprefix("https://arxiv.org/abs/"): paper for paper in citation["references"]}
    assert cited.keys() == {cls.card.paper for cls in LISTED}
    assert {number: cited[number]["authors"][0]["family-names"] for number in PAPERS} == PAPERS
    for number, paper in cited.items():
        assert {"type", "title", "authors"} <= paper.keys(), number
        assert {"type": "other", "value": f"arXiv:{number}"} in paper["identifiers"]

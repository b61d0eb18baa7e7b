"""A release has one version: tag, package, citation and changelog agree (RELEASING.md)."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

import yolo_lightbackbones

HEADING = re.compile(r"^## (.+?)\s*$", re.MULTILINE)
RELEASED = re.compile(r"(\d+\.\d+\.\d+) - \d{4}-\d{2}-\d{2}")


def disagreements(tags: Iterable[str], package: str, citation: str, changelog: str) -> list[str]:
    """Where versions differ; a commit without a tag need not have a section in the changelog."""
    versions = [tag.removeprefix("v") for tag in tags if tag.startswith("v")]
    headings = HEADING.findall(changelog)
    released = next((match[1] for heading in headings if (match := RELEASED.fullmatch(heading))), None)
    found = []
    if citation != package:
        found.append(f"CITATION.cff has {citation}, __version__ is {package}")
    found += [f"the tag is v{version}, __version__ is {package}" for version in versions if version != package]
    if released not in ({package} if versions else {package, None}):
        found.append(f"the top release in CHANGELOG.md is {released}, __version__ is {package}")
    if versions and "Unreleased" in headings:
        found.append("CHANGELOG.md of a tagged commit has a section Unreleased")
    found += [
        f"CHANGELOG.md has the section {heading!r}; write Unreleased or X.Y.Z - YYYY-MM-DD"
        for heading in headings
        if heading != "Unreleased" and not RELEASED.fullmatch(heading)
    ]
    return found


def tags_of_head(repository: Path) -> list[str]:
    """Tags of the commit that is checked out; none outside a checkout, such as in an unpacked archive."""
    if not (repository / ".git").exists() or not shutil.which("git"):
        return []
    command = ["git", "tag", "--points-at", "HEAD"]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_the_versions_agree(repository: Path) -> None:
    citation = yaml.safe_load((repository / "CITATION.cff").read_text(encoding="utf-8"))["version"]
    changelog = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    edge = (repository / "edge" / "src" / "lightbackbones_edge" / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{yolo_lightbackbones.__version__}"' in edge, "lightbackbones-edge has another version"
    assert disagreements(tags_of_head(repository), yolo_lightbackbones.__version__, str(citation), changelog) == []


AFTER = "# Changelog\n\n## 0.2.0 - 2026-11-30\n\n### Added\n\n## 0.1.0 - 2026-10-01\n"
BEFORE = "# Changelog\n\n## Unreleased\n\n## 0.1.0 - 2026-10-01\n"


@pytest.mark.parametrize(
    ("tags", "package", "citation", "changelog", "complaint"),
    [
        (["v0.2.0", "latest"], "0.2.0", "0.2.0", AFTER, None),
        ([], "0.1.0", "0.1.0", BEFORE, None),
        ([], "0.1.0", "0.1.0", "## Unreleased\n", None),
        (["v0.2.0"], "0.1.0", "0.1.0", BEFORE.replace("## Unreleased", ""), "the tag is v0.2.0"),
        ([], "0.2.0", "0.1.0", AFTER, "CITATION.cff has 0.1.0"),
        ([], "0.2.0", "0.2.0", BEFORE, "top release in CHANGELOG.md is 0.1.0"),
        (["v0.1.0"], "0.1.0", "0.1.0", "## Unreleased\n", "top release in CHANGELOG.md is None"),
        (["v0.1.0"], "0.1.0", "0.1.0", BEFORE, "has a section Unreleased"),
        ([], "0.2.0", "0.2.0", AFTER.replace("0.2.0 -", "0.2.0, "), "section '0.2.0, "),
    ],
)
def test_each_disagreement_is_found(
    tags: list[str], package: str, citation: str, changelog: str, complaint: str | None
) -> None:
    found = "; ".join(disagreements(tags, package, citation, changelog))
    assert complaint in found if complaint else found == ""

"""Files that only tools and sites read: the hooks before a commit, and the forms of issues."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

FORMS = ("bug_report", "feature_request")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def form(repository: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = read(repository / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml")
    return found


def test_the_hooks_have_the_linters_of_make_check(repository: Path) -> None:
    sources = {source["repo"]: source for source in read(repository / ".pre-commit-config.yaml")["repos"]}
    hooks = {hook["id"]: hook for source in sources.values() for hook in source["hooks"]}
    assert {"ruff-check", "ruff-format", "mypy", "end-of-file-fixer"} <= hooks.keys()
    assert hooks["mypy"]["entry"] == ".venv/bin/mypy"
    assert hooks["mypy"]["pass_filenames"] is False, "mypy then reads pyproject.toml's own list"
    oldest = re.search(r'"ruff>=([\d.]+)"', (repository / "pyproject.toml").read_text(encoding="utf-8"))
    assert oldest
    revision = sources["https://github.com/astral-sh/ruff-pre-commit"]["rev"]
    assert revision == f"v{oldest[1]}.0", "the oldest ruff that pyproject.toml takes"


@pytest.mark.parametrize("name", FORMS)
def test_the_forms_are_what_github_takes(name: str, repository: Path) -> None:
    """docs.github.com: Syntax for issue forms."""
    content = form(repository, name)
    assert content.keys() == {"name", "description", "labels", "body"}
    fields = content["body"]
    assert len({field["id"] for field in fields}) == len(fields)
    for field in fields:
        assert field["type"] in {"input", "textarea"}
        assert field.keys() <= {"type", "id", "attributes", "validations"}
        assert field["attributes"].keys() <= {"label", "description", "render"}
        assert field["attributes"]["label"]
        assert field.get("validations", {"required": True}) == {"required": True}


def test_a_bug_report_has_what_is_needed_to_repeat_it(repository: Path) -> None:
    required = [field for field in form(repository, "bug_report")["body"] if "validations" in field]
    labels = {field["id"]: field["attributes"]["label"] for field in required}
    assert {"doctor", "command", "model"} <= labels.keys()
    assert "lightbackbones doctor" in labels["doctor"]


def test_every_file_of_the_folder_is_a_form_or_its_configuration(repository: Path) -> None:
    files = {path.name for path in (repository / ".github" / "ISSUE_TEMPLATE").iterdir()}
    assert files == {*(f"{name}.yml" for name in FORMS), "config.yml"}
    assert read(repository / ".github" / "ISSUE_TEMPLATE" / "config.yml") == {"blank_issues_enabled": False}

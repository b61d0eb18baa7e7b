"""The source archive holds everything that is tracked, and its tests run where it was unpacked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from installing import build_sdist

READERS = ("test_benchmarks.py", "test_docs.py", "test_project_files.py", "test_readme.py", "test_release.py")
"""Quick test files that read benchmarks, pages, scripts and settings of the checkout."""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build_sdist(folder)) as archive:
        archive.extractall(folder, filter="data") if hasattr(tarfile, "data_filter") else archive.extractall(folder)
    (root,) = (path for path in folder.iterdir() if path.is_dir())
    return root


def listed(repository: Path, *options: str) -> set[str]:
    """Files that git lists and that are there."""
    command = ["git", "ls-files", *options]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return {name for name in result.stdout.splitlines() if (repository / name).exists()}


def test_the_archive_holds_every_tracked_file_and_none_that_is_ignored(unpacked: Path, repository: Path) -> None:
    if not (repository / ".git").exists() or not shutil.which("git"):
        pytest.skip("git knows which files are tracked, and this is no checkout of it")
    packed = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert listed(repository) - packed == set(), "add them to the sdist's include in pyproject.toml"
    mine = listed(repository, "--cached", "--others", "--exclude-standard")
    assert packed - mine == {"PKG-INFO"}, "git ignores these"


@pytest.mark.slow
def test_its_tests_run(unpacked: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in READERS)]
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(command, cwd=unpacked, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout

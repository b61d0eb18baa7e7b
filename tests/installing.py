"""A wheel and a source archive of this checkout, and new environments to install it into, without network."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from places import REPOSITORY


def pip(*arguments: str, cwd: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def build_wheel(folder: Path, project: Path = REPOSITORY) -> Path:
    """The wheel of this checkout, or of its `edge`, built without network and without an isolated environment."""
    folder.mkdir(exist_ok=True)
    pip("wheel", str(project), "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def build_sdist(folder: Path) -> Path:
    """The source archive of this checkout, which its build backend makes without network."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(folder)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = folder.glob("*.tar.gz")
    return built


def new_environment(folder: Path) -> Path:
    """Python of a new environment that sees this one's packages, but none of its autoload or editable files."""
    venv.create(folder, with_pip=False)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / Path(sys.executable).name
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    Path(site, "_existing.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python

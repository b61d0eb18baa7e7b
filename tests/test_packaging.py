"""What a `pip install` puts on the disk: the wheel, and the autoload after `pip install .` and `-e .` alike."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

CODE = """
import ultralytics.nn.tasks as tasks
from ultralytics import YOLO
model = YOLO("yolov5n_edgevit.yaml").model
print(type(model.model[0]).__name__, tasks.EdgeViT.__module__)
import yolo_lightbackbones
print(yolo_lightbackbones.__file__)
"""


def pip(*arguments: str, cwd: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without network and without an isolated environment."""
    repository = Path(__file__).resolve().parent.parent
    target = tmp_path_factory.mktemp("wheel")
    pip("wheel", str(repository), "--no-deps", "--no-build-isolation", "--no-index", "-w", str(target), cwd=target)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """Python of a new environment that sees this one's packages, but none of its autoload or editable files."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / Path(sys.executable).name
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    Path(site, "_existing.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def run(python: Path, cwd: Path) -> list[str]:
    result = subprocess.run([python, "-c", CODE], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()[-2:]


def test_the_wheel_holds_the_package_the_yamls_and_the_autoload(wheel: Path, repository: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    yamls = {f"yolo_lightbackbones/{p.relative_to(repository)}" for p in (repository / "cfg").rglob("*.yaml")}
    assert len(yamls) > 1
    assert yamls <= names
    assert {"yolo_lightbackbones_autoload.pth", "yolo_lightbackbones/py.typed"} <= names
    top = {name.split("/")[0] for name in names}
    assert {t for t in top if not t.endswith(".dist-info")} == {
        "yolo_lightbackbones",
        "yolo_lightbackbones_autoload.pth",
    }


@pytest.mark.slow
def test_an_installed_wheel_loads_itself(wheel: Path, environment: Path, tmp_path: Path) -> None:
    pip("--python", str(environment), "install", "--no-deps", "--no-index", str(wheel), cwd=tmp_path)
    names, file = run(environment, tmp_path)
    assert names == "EdgeViT yolo_lightbackbones.backbones.edgevit"
    assert Path(file).is_relative_to(environment.parent.parent), "the installed copy, not the checkout"


@pytest.mark.slow
def test_an_editable_install_loads_itself(environment: Path, tmp_path: Path, repository: Path) -> None:
    arguments = ["install", "--no-deps", "--no-index", "--no-build-isolation", "-e", str(repository)]
    pip("--python", str(environment), *arguments, cwd=tmp_path)
    names, file = run(environment, tmp_path)
    assert names == "EdgeViT yolo_lightbackbones.backbones.edgevit"
    assert Path(file).is_relative_to(repository)

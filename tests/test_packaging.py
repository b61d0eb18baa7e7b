"""What a `pip install` puts on the disk: the wheel, and the autoload after `pip install .` and `-e .` alike."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest
from installing import build_wheel, new_environment, pip

CODE = """
import ultralytics.nn.tasks as tasks
from ultralytics import YOLO
model = YOLO("yolov5n_edgevit.yaml").model
print(type(model.model[0]).__name__, tasks.EdgeViT.__module__)
import yolo_lightbackbones
print(yolo_lightbackbones.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    return new_environment(tmp_path / "environment")


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

"""`lightbackbones doctor`: what it sees when all is well, and each of the things that can be wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
import ultralytics
from typer.testing import CliRunner, Result
from ultralytics.nn import tasks

import yolo_lightbackbones
from yolo_lightbackbones import plugin, registry
from yolo_lightbackbones.cli import app, diagnosis
from yolo_lightbackbones.plugin import fit

PACKAGE = Path(yolo_lightbackbones.__file__).resolve().parent

RUN = "import sys; from yolo_lightbackbones.cli import app; app(['doctor', *sys.argv[1:]])"


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plugin is installed, and only the copy of the package that is tested can be found."""
    others = [
        entry
        for entry in sys.path
        if (Path(entry) / "yolo_lightbackbones").is_dir() and (Path(entry) / "yolo_lightbackbones").resolve() != PACKAGE
    ]
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in others])
    monkeypatch.delenv("YOLO_LIGHTBACKBONES_AUTOLOAD", raising=False)
    plugin.register()
    yield
    plugin.register()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments])


def checks(exit_code: int) -> dict[str, dict[str, Any]]:
    """What was found, by name."""
    result = run("--json")
    document = json.loads(result.stdout)
    assert result.exit_code == exit_code, document
    assert document["ok"] is (exit_code == 0)
    return {check["name"]: check for check in document["checks"]}


def wrong(found: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, check in found.items() if check["status"] == "wrong"}


def elsewhere(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# --- all is well ------------------------------------------------------------------------------------------------------


def test_nothing_is_wrong_here() -> None:
    found = checks(exit_code=0)
    assert wrong(found) == set()
    assert str(PACKAGE) in found["package"]["text"]
    assert found["autoload"]["text"] == "active in a new interpreter"
    assert ultralytics.__version__ in found["Ultralytics version"]["text"]
    assert found["ultralytics.nn.tasks.parse_model"]["text"] == "fits, installed"
    assert found["callback on_export_start"]["text"] == "fits, installed"
    assert found["module EdgeViT"]["text"] == "fits, installed"
    assert found["trial"]["status"] == "ok"


def test_versions() -> None:
    versions = json.loads(run("--json").stdout)["versions"]
    assert versions["yolo_lightbackbones"] == yolo_lightbackbones.__version__
    assert versions["Python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert versions["torch"].startswith(torch.__version__.split("+")[0])
    assert ("CUDA" in versions["torch"]) == torch.cuda.is_available()
    assert versions["ultralytics"] == ultralytics.__version__
    assert {"torchvision", "OpenCV", "onnx", "openvino", "ncnn", "MNN", "tensorrt"} <= versions.keys()


def test_it_is_markdown() -> None:
    result = run()
    assert result.exit_code == 0
    rows = [line.strip() for line in result.stdout.splitlines() if line.lstrip().startswith("|")]
    tables = {row.count("|") for row in rows}
    assert tables == {3, 4}, "two columns, and three"
    assert sum(bool(re.fullmatch(r"[|-]+", row)) for row in rows) == 2
    assert any(re.fullmatch(r"\| ultralytics +\| 8[\d.]+ +\|", row) for row in rows)
    assert result.stdout.rstrip().endswith("Nothing is wrong.")
    assert "\x1b" not in result.stdout


# --- the package ------------------------------------------------------------------------------------------------------


def test_another_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "yolo_lightbackbones"
    other.mkdir()
    (other / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    found = checks(exit_code=1)
    assert wrong(found) == {"package"}
    assert f"imported from {PACKAGE}, which hides another copy: {other.resolve()}" in found["package"]["text"]
    assert "pip uninstall" in found["package"]["advice"]
    assert "- package: two copies may differ" in run().stdout


@pytest.mark.parametrize(
    ("version", "text"), [(None, "is not installed"), ("0.0.1", "installed as 0.0.1, but the code")]
)
def test_an_installation_that_is_not_there_or_stale(
    version: str | None, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Distribution:
        def __init__(self, name: str) -> None:
            if version is None:
                raise PackageNotFoundError(name)
            self.version = version

    monkeypatch.setattr(diagnosis, "distribution", Distribution)
    found = checks(exit_code=1)
    assert wrong(found) == {"installation"}
    assert text in found["installation"]["text"]
    assert "pip install" in found["installation"]["advice"]


# --- the autoload -----------------------------------------------------------------------------------------------------


def test_the_autoload_file_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis.site, "getsitepackages", lambda: [str(tmp_path)])
    monkeypatch.setattr(diagnosis.site, "ENABLE_USER_SITE", False)
    assert wrong(found := checks(exit_code=1)) == {"autoload file"}
    assert "there is no yolo_lightbackbones_autoload.pth" in found["autoload file"]["text"]
    assert "register()" in found["autoload file"]["advice"]


def test_the_autoload_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "yolo_lightbackbones"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('half an installation')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert wrong(found := checks(exit_code=1)) == {"autoload"}
    assert "half an installation" in found["autoload"]["text"]


def test_the_autoload_is_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_LIGHTBACKBONES_AUTOLOAD", "0")
    plugin.unregister()
    found = checks(exit_code=0)
    assert found["autoload"]["status"] == "note"
    assert found["autoload"]["text"] == "turned off by YOLO_LIGHTBACKBONES_AUTOLOAD=0"
    assert found["plugin"]["status"] == "note"
    assert found["BaseModel.fuse"]["text"] == "fits, not installed"
    assert not plugin.is_registered(), "it changes nothing"


def test_the_autoload_is_active_and_the_plugin_is_not_there() -> None:
    plugin.unregister()
    assert wrong(found := checks(exit_code=1)) == {"plugin"}
    assert "not installed on Ultralytics" in found["plugin"]["text"]


# --- ultralytics ------------------------------------------------------------------------------------------------------


def test_ultralytics_is_missing() -> None:
    result = elsewhere(f"import sys; sys.modules['ultralytics'] = None; {RUN}", "--json")
    assert result.returncode == 1
    found = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert found["ultralytics"]["status"] == "wrong"
    assert "cannot be imported: ModuleNotFoundError" in found["ultralytics"]["text"]
    assert "pip install" in found["ultralytics"]["advice"]
    assert found["torch"]["status"] == "ok"
    assert "trial" not in found
    assert "Traceback" not in result.stderr


def test_ultralytics_is_broken_and_says_so_in_words(tmp_path: Path) -> None:
    package = tmp_path / "ultralytics"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('libGL.so.1: cannot | be opened')\n")
    path = os.pathsep.join([str(tmp_path), str(PACKAGE.parent)])
    result = elsewhere(RUN, PYTHONPATH=path)
    assert result.returncode == 1
    assert "cannot be imported: RuntimeError: libGL.so.1: cannot \\| be opened" in result.stdout
    assert "- ultralytics: pip install --force-reinstall ultralytics" in result.stdout
    assert "Nothing is wrong" not in result.stdout
    assert "Traceback" not in result.stderr


def test_the_settings_of_ultralytics_are_left_alone(tmp_path: Path) -> None:
    code = f"""
import atexit, os
atexit.register(lambda: print(os.environ.get("YOLO_CONFIG_DIR"), file=sys.stderr))
{RUN}
"""
    result = elsewhere(code, "--json", YOLO_CONFIG_DIR=str(tmp_path))
    assert json.loads(result.stdout)["versions"]
    assert result.stderr.splitlines()[-1] == str(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "Settings" not in result.stderr


def test_a_seam_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin.unregister()

    def other_parser(config: Any) -> None:
        """Another signature."""

    monkeypatch.setattr(tasks, "parse_model", other_parser)
    with pytest.warns(UserWarning, match="does not fit"):
        plugin.register()
    found = checks(exit_code=1)
    assert wrong(found) == {"ultralytics.nn.tasks.parse_model", "plugin"}
    assert "does not start with (d, ch)" in found["ultralytics.nn.tasks.parse_model"]["text"]
    assert found["BaseModel.fuse"]["status"] == "note"
    assert "install a tested release" in found["plugin"]["advice"]
    monkeypatch.undo()  # before the plugin is put back


def test_somebody_else_on_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    original = tasks.BaseModel.fuse

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **kwargs)

    monkeypatch.setattr(tasks.BaseModel, "fuse", wrapper)
    assert wrong(found := checks(exit_code=1)) == {"BaseModel.fuse"}
    assert "something else has been put in its place" in found["BaseModel.fuse"]["text"]
    wrapper.__wrapped__ = original  # type: ignore[attr-defined] # as functools.wraps does: ours is still in there
    checks(exit_code=0)


def test_a_model_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tasks, "Index")
    found = checks(exit_code=1)
    assert wrong(found) == {"ultralytics.nn.tasks.Index", "trial"}
    assert "cannot be built" in found["trial"]["text"]


def test_a_version_that_was_not_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ultralytics, "__version__", "8.9.0")
    found = checks(exit_code=0)
    assert found["Ultralytics version"]["status"] == "note"
    assert "8.9.0 is outside the tested range" in found["Ultralytics version"]["text"]
    assert 'pip install "ultralytics>=8.4.150,<=8.4.190"' in found["Ultralytics version"]["advice"]


@pytest.mark.parametrize(
    ("version", "tested"),
    [
        ("8.4.150", True),
        ("8.4.175", True),
        ("8.4.190", True),
        ("8.4.99", False),
        ("8.4.149", False),
        ("8.4.191", False),
        ("8.5.0", False),
        ("8.10.160", False),
        ("9.0.0", False),
    ],
)
def test_tested_versions(version: str, tested: bool) -> None:
    assert plugin.TESTED_VERSIONS == "8.4.150 to 8.4.190"
    assert plugin.is_tested(version) is tested


def test_seams_tell_what_is_installed() -> None:
    installed = {seam.name: seam.installed for seam in plugin.seams()}
    rows = {f"module {name}" for name in ("Tap", *registry.block_rows())}
    needed = {need.name for need in fit.OPTIONAL}
    assert {name for name, there in installed.items() if there is None} == {
        "ultralytics.nn.tasks.Index",
        *rows,
        *needed,
    }
    assert all(there for there in installed.values() if there is not None)
    plugin.unregister()
    assert not any(seam.installed for seam in plugin.seams())
    assert not any(seam.problem for seam in plugin.seams())

"""DESIGN's import table: data flows one way, and one module knows Ultralytics."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "yolo_lightbackbones"
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

MAY_IMPORT_ULTRALYTICS = {"plugin", "cli"}
"""Folders."""

BACKBONES_MAY_IMPORT = {
    "backbone",
    "blocks",
    "fusion",
    "input_norm",
    "layers",
    "moved",
    "options",
    "recording",
    "stages",
}


def imports(module: Path) -> Iterator[str]:
    """Full names of everything a module imports, at its top or inside a function."""
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_only_plugin_and_cli_know_ultralytics(module: Path) -> None:
    knows = any(name.split(".")[0] == "ultralytics" for name in imports(module))
    assert not knows or module.parts[0] in MAY_IMPORT_ULTRALYTICS


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] == "backbones"], ids=str)
def test_backbones_need_torch_the_contract_layers_and_folding_alone(module: Path) -> None:
    for name in imports(module):
        if name.startswith("yolo_lightbackbones."):
            assert name.split(".")[1] in BACKBONES_MAY_IMPORT, f"{module} imports {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] not in ("backbones", "stages.py")], ids=str)
def test_only_the_skeleton_and_the_families_know_its_parts(module: Path) -> None:
    """Everything else asks the contract, which a backbone without stem and stages fulfils as well."""
    attributes = {
        node.attr for node in ast.walk(ast.parse((PACKAGE / module).read_text())) if isinstance(node, ast.Attribute)
    }
    assert not attributes & {"stages", "tap_norms", "input_norm", "build_stem", "build_stages"}


def test_the_library_works_with_ultralytics_blocked() -> None:
    code = """
import sys
sys.modules["ultralytics"] = None
import torch, yolo_lightbackbones as y
assert "torch" in sys.modules and not any(m.startswith("yolo_lightbackbones.backbones.") for m in sys.modules)
for name in y.list_backbones()[:1]:
    backbone = y.fuse(y.create_backbone(name).eval())
    assert len(backbone(torch.zeros(1, 3, 64, 32))) == 4
try:
    y.register()
except ModuleNotFoundError as error:
    assert "ultralytics" in str(error)
else:
    raise SystemExit("register() should say that Ultralytics is missing")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_imports_neither_torch_nor_a_family() -> None:
    code = "import sys, yolo_lightbackbones; assert not {'torch', 'ultralytics', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})


def test_every_public_name_is_there() -> None:
    import yolo_lightbackbones

    for name in yolo_lightbackbones.__all__:
        assert getattr(yolo_lightbackbones, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'create_backbones'"):
        yolo_lightbackbones.create_backbones  # noqa: B018

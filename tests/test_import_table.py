"""The import table of docs/design.md: data flows one way, and only the wing knows Ultralytics."""

from __future__ import annotations

import ast
import graphlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "yolo_lightbackbones"
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

MAY_IMPORT_ULTRALYTICS = {"plugin", "cli"}
"""Folders."""

MAY_IMPORT_THE_WING = {"plugin", "cli", "__init__.py", "autoload.py"}
"""Folders, and the two modules of the package that bring it in when it is wanted."""

BACKBONES_MAY_IMPORT = {
    "backbone",
    "blocks",
    "card",
    "fusion",
    "input_norm",
    "inspection",
    "layers",
    "messages",
    "moved",
    "observing",
    "options",
    "recording",
    "stages",
    "tap_norms",
    "timm_models",
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


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] not in MAY_IMPORT_THE_WING], ids=str)
def test_nothing_below_the_wing_imports_it(module: Path) -> None:
    assert not [name for name in imports(module) if name.startswith("yolo_lightbackbones.plugin")]


def imports_at_once(body: list[ast.stmt]) -> Iterator[str]:
    """Like `imports`, without what is imported in functions, or for type checkers."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not isinstance(node, ast.FunctionDef) and not (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ):
            for part in ("body", "orelse", "handlers", "finalbody"):
                yield from imports_at_once(getattr(node, part, []))


def graph() -> dict[str, set[str]]:
    """Module of the package -> modules of the package that it imports as soon as it is imported."""
    names = {".".join(("yolo_lightbackbones", *m.with_suffix("").parts)).removesuffix(".__init__"): m for m in MODULES}
    found = {}
    for name, module in names.items():
        wanted = imports_at_once(ast.parse((PACKAGE / module).read_text()).body)
        homes = {target if target in names else target.rpartition(".")[0] for target in wanted}
        found[name] = (homes & names.keys()) - {name}
    return found


def test_no_import_goes_round_in_a_circle() -> None:
    tuple(graphlib.TopologicalSorter(found := graph()).static_order())
    below, above = "yolo_lightbackbones.plugin.row", "yolo_lightbackbones.plugin.install"
    assert "yolo_lightbackbones.messages" in found[below]
    found[below].add(above)
    with pytest.raises(graphlib.CycleError) as error:
        graphlib.TopologicalSorter(found).prepare()
    assert {below, above} <= set(error.value.args[1]), "what is a circle is seen as one"


def levels() -> dict[str, int]:
    """Module or folder -> its line in the picture of docs/design.md, 0 for the highest."""
    page = (PACKAGE.parent / "docs" / "design.md").read_text(encoding="utf-8")
    picture = re.search(r"## What lies above what\n\n.+\n\n((?: {4}.+\n)+)", page)
    assert picture
    names = [re.findall(r"\b(\w+)(?:/|\.py\b)", line) for line in picture[1].splitlines()]
    return {name: number for number, line in enumerate(names) for name in line}


def test_imports_go_down_the_picture() -> None:
    level = levels()
    own = {module.parts[0].removesuffix(".py") for module in MODULES}
    assert level.keys() == own - {"__init__", "autoload"}
    for module in MODULES:
        for name in imports(module):
            home, wanted = module.parts[0].removesuffix(".py"), name.removeprefix("yolo_lightbackbones.").split(".")[0]
            if name.startswith("yolo_lightbackbones.") and {home, wanted} <= level.keys():
                assert level[home] <= level[wanted], f"{module} imports {name}, which is above it in docs/design.md"


def test_imports_that_happen_at_once() -> None:
    code = """
import a
if TYPE_CHECKING:
    import for_types
try:
    from b import c
except ImportError:
    import d
class C:
    import e
def f():
    import later
"""
    assert list(imports_at_once(ast.parse(code).body)) == ["a", "b.c", "d", "e"]


def vocabulary() -> set[str]:
    """Ultralytics' names of export formats and of optimizer groups, without names of parameters in torch."""
    from yolo_lightbackbones.plugin import formats, training

    names = {name for row in formats.FORMATS.values() for name in (row.name, *row.aliases)}
    return names | {training.MUON, training.MUON_SGD_BUFFER, "param_group", "use_muon"}


def texts(tree: ast.AST) -> Iterator[str]:
    """Every string of a module but docstrings."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] not in MAY_IMPORT_ULTRALYTICS], ids=str)
def test_words_of_ultralytics_stay_in_the_wing(module: Path) -> None:
    words = {word for text in texts(ast.parse((PACKAGE / module).read_text())) for word in re.findall(r"[\w.]+", text)}
    assert not words & vocabulary()


def test_words_of_ultralytics_are_seen() -> None:
    found = set(texts(ast.parse('"""onnx"""\ndef f(format):\n    "onnx"\n    return format == "mnn"\n')))
    assert found & vocabulary() == {"mnn"}


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] == "backbones"], ids=str)
def test_backbones_need_torch_the_contract_layers_and_folding_alone(module: Path) -> None:
    for name in imports(module):
        if name.startswith("yolo_lightbackbones."):
            assert name.split(".")[1] in BACKBONES_MAY_IMPORT, f"{module} imports {name}"


def test_a_card_is_plain_data() -> None:
    ours = {name for name in imports(Path("card.py")) if name.split(".")[0] == "yolo_lightbackbones"}
    assert {name.split(".")[1] for name in ours} == {"messages"}
    code = "import sys, yolo_lightbackbones.card; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


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

"""The autoload: every process that imports Ultralytics knows our modules, and none pays or breaks for it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def python(code: str, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, as a user's script, notebook or worker would."""
    return subprocess.run(
        [sys.executable, *arguments, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_tests_run_where_the_package_is_installed() -> None:
    result = python("import sys; assert any(type(f).__name__ == 'AfterImport' for f in sys.meta_path)")
    assert result.returncode == 0, "install the package first (make test does): the autoload is not active here"


def test_an_interpreter_start_imports_two_small_modules_and_nothing_else() -> None:
    listing = "import sys; print(*sorted(sys.modules))"
    with_autoload = set(python(listing).stdout.split())
    without = set(python(listing, YOLO_LIGHTBACKBONES_AUTOLOAD="0").stdout.split())
    assert with_autoload - without == {"yolo_lightbackbones", "yolo_lightbackbones.autoload"}


def test_ultralytics_alone_brings_the_modules(tmp_path: Path) -> None:
    result = python("from ultralytics.nn import tasks; print(tasks.EdgeViT.__module__)", cwd=tmp_path)
    assert result.stdout.split()[-1] == "yolo_lightbackbones.backbones.edgevit"
    assert "Warning" not in result.stderr


def test_it_can_be_turned_off() -> None:
    code = """
        from ultralytics.nn import tasks
        import sys
        assert not hasattr(tasks, "EdgeViT") and "yolo_lightbackbones" not in sys.modules
        import yolo_lightbackbones
        yolo_lightbackbones.register()
        assert tasks.EdgeViT
    """
    result = python(code, YOLO_LIGHTBACKBONES_AUTOLOAD="0")
    assert result.returncode == 0, result.stderr


def test_registering_by_hand_as_well_does_no_harm() -> None:
    result = python("import yolo_lightbackbones; yolo_lightbackbones.register()")
    assert result.returncode == 0
    assert "Warning" not in result.stderr


def test_a_broken_package_is_one_line_and_not_a_broken_interpreter(tmp_path: Path) -> None:
    package = tmp_path / "yolo_lightbackbones"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('half an installation')\n")
    result = python("print('alive')", PYTHONPATH=str(tmp_path))
    assert result.stdout == "alive\n"
    assert result.returncode == 0
    assert result.stderr.count("UserWarning") == 1, "site runs the files of a virtual environment twice"
    assert "Traceback" not in result.stderr
    assert "yolo_lightbackbones: the autoload failed" in result.stderr
    assert "half an installation" in result.stderr


def test_a_broken_plugin_is_one_warning_and_not_a_broken_ultralytics() -> None:
    code = """
        import yolo_lightbackbones.plugin as plugin
        def broken(): raise RuntimeError("boom")
        plugin.register = broken
        from ultralytics.nn import tasks
        print(tasks.DetectionModel.__name__)
    """
    result = python(code)
    assert result.stdout.endswith("DetectionModel\n")
    assert result.stderr.count("UserWarning") == 1
    assert "yolo_lightbackbones could not install itself" in result.stderr
    assert "boom" in result.stderr


def test_an_import_that_fails_at_first_gets_the_plugin_at_last() -> None:
    code = """
        import sys
        sys.modules["ultralytics.nn.modules"] = None  # as with a dependency that is not installed yet
        try:
            import ultralytics.nn.tasks
        except ImportError:
            del sys.modules["ultralytics.nn.modules"]
        from ultralytics.nn import tasks
        print(tasks.EdgeViT.__name__)
    """
    result = python(code)
    assert result.stdout.endswith("EdgeViT\n"), result.stderr


EARLY = """
import sys
from ultralytics.utils import checks
from ultralytics.utils.checks import check_file
heavy = {f"yolo_lightbackbones.{name}" for name in ("plugin.install", "registry", "backbone", "layers", "plugin.rows")}
assert not heavy & set(sys.modules)
from ultralytics.cfg import entrypoint
for recipe in sys.argv[1:]:
    assert checks.check_file(recipe) == check_file(recipe) == checks.check_yaml(recipe, hard=False)
    try:
        entrypoint(f"yolo train cfg={recipe} nonsense=1")
    except SyntaxError as error:  # the next thing that is wrong
        assert "nonsense" in str(error)
assert "ultralytics.nn.tasks" not in sys.modules
"""


def test_every_recipe_is_found_by_name_before_any_model_is_imported(tmp_path: Path, repository: Path) -> None:
    recipes = sorted(path.name for path in (repository / "cfg" / "recipes").iterdir() if path.suffix == ".yaml")
    assert len(recipes) >= 18
    command = [sys.executable, "-c", EARLY, *recipes]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Overriding ") + result.stderr.count("Overriding ") == len(recipes)


def test_the_look_up_comes_and_goes_with_the_plugin(tmp_path: Path) -> None:
    code = """
        from ultralytics.utils import checks
        import yolo_lightbackbones
        def is_found():
            return bool(checks.check_yaml("yolov5_edgevit.yaml", hard=False))
        for _ in range(2):
            yolo_lightbackbones.register()
            assert is_found()
        for _ in range(2):
            yolo_lightbackbones.unregister()
            assert not is_found()
        yolo_lightbackbones.register()
        assert is_found()
    """
    for switch in ("0", "1"):
        result = python(code, cwd=tmp_path, YOLO_LIGHTBACKBONES_AUTOLOAD=switch)
        assert result.returncode == 0, result.stderr


def test_unregistered_before_any_model_is_imported_it_stays_away(tmp_path: Path) -> None:
    code = """
        from ultralytics.utils import checks
        import yolo_lightbackbones
        yolo_lightbackbones.unregister()
        assert not checks.check_yaml("yolov5_edgevit.yaml", hard=False)
        from ultralytics.nn import tasks
        assert not hasattr(tasks, "EdgeViT")
    """
    result = python(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_threads_import_and_register_at_the_same_time() -> None:
    code = """
        import sys, threading, warnings
        warnings.simplefilter("error", UserWarning)
        def imports():
            import ultralytics.nn.tasks
        def registers():
            import yolo_lightbackbones
            yolo_lightbackbones.register()
        threads = [threading.Thread(target=target, daemon=True) for target in (imports, registers, registers, imports)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in threads)
        from yolo_lightbackbones import plugin
        assert all(seam.installed in {True, None} for seam in plugin.seams())
    """
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert not result.stderr


@pytest.mark.slow
def test_distributed_workers_build_and_train_it(tmp_path: Path) -> None:
    """Ultralytics starts a fresh interpreter per GPU; here, two on the CPU, without any unused parameter."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        textwrap.dedent("""
        import torch
        from torch import distributed
        from torch.nn.parallel import DistributedDataParallel
        from ultralytics import YOLO

        distributed.init_process_group("gloo")
        model = DistributedDataParallel(YOLO("yolov5n_edgevit.yaml").model.train())
        for _ in range(2):
            outputs = model(torch.rand(1, 3, 64, 64))
            (outputs["boxes"].mean() + outputs["scores"].mean()).backward()
        gradient = next(model.parameters()).grad
        seen = [torch.empty_like(gradient) for _ in range(2)]
        distributed.all_gather(seen, gradient)
        assert torch.equal(*seen) and gradient.abs().sum() > 0
        distributed.destroy_process_group()
    """)
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(worker)]
    result = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]

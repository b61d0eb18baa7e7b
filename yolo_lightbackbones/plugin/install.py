"""Installs the backbones on Ultralytics, and removes them again.

The plugin attaches to ten places (seams). Each is as small as possible, and is checked before it is touched
(`fit.py`):

1. `ultralytics.nn.tasks.parse_model`: our rows are translated, then Ultralytics' own parser runs. For rows of blocks,
   our classes are added to those that the parser knows (`parse_model.py`, `parser.py`).
2. `BaseModel.fuse` and `is_fused`: our modules are folded, too, before Ultralytics folds its own (`models.py`).
3. `BaseModel.load`: pretrained weights go only into rows that are the same in both models (`transfer.py`).
4. `ultralytics.utils.checks.check_file`: a YAML that is found nowhere else is looked up among ours (`lookup.py`; the
   autoload installs it as soon as `checks` is imported).
5. Two callbacks. `on_pretrain_routine_end` moves our parameters to the optimizer groups where they belong
   (`training.py`). `on_export_start` tells our modules the format and whether any image size must work, keeps
   operations that INT8 would spoil in float, and moves the exported files to their places after success
   (`exporting.py`).
6. `ultralytics.utils.torch_utils.get_flops`: the operations of a model with our modules are counted at its image size
   (`models.py`).
7. The constructors of models: a YAML with rows of ours is built for its `channels` if nothing else is asked for
   (`models.py`).
8. `BaseBackend.apply_metadata` (`ultralytics.nn.backends.base`): outputs of exported files with raw heads are decoded
   (`raw_files.py`). If it is gone, everything else works.
9. `ultralytics.utils.checks.check_requirements`: while a model of ours is exported, it looks and does not install
   (`environment.py`).
10. `ultralytics.utils.torch_utils.prepare_qat` and `restore_qat`: our rows are folded before quantisers come in
    (`quantising.py`). Two more callbacks, `on_train_batch_end` and `on_train_epoch_end`, stop such a training when
    weights are no longer finite.

Either everything is installed or nothing. If a seam does not fit the installed version, one warning says so, and
Ultralytics stays exactly as it was.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import threading
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from yolo_lightbackbones import autoload, registry
from yolo_lightbackbones.plugin import (
    classes,
    command,
    environment,
    fit,
    lookup,
    models,
    parse_model,
    quantising,
    raw_files,
    releases,
)
from yolo_lightbackbones.plugin.fit import Ultralytics
from yolo_lightbackbones.plugin.patching import Patches

_patches = Patches("ultralytics")

_lock = threading.RLock()


def register() -> None:
    """Install the backbones on Ultralytics: YAML modules, folding, bundled YAMLs. A second call changes nothing.

    Modules of Ultralytics that are reloaded later (`importlib.reload`) are patched again. If the seams of this
    Ultralytics do not fit, it stays as it was, and one warning says so.

    Raises:
        ModuleNotFoundError: if Ultralytics is not installed.
        Exception: any error of a step. Nothing is installed then, and the next call tries again.
    """
    package = fit.ultralytics()
    registry.families()  # imports the families before the lock is taken, because an import may wait for other threads
    with _lock:
        problems = [seam.problem for seam in fit.essential(package) if seam.problem]
        if problems and not _patches.active:
            unregister()
            warnings.warn(
                f"yolo_lightbackbones does not fit Ultralytics {releases.version()} and stays away from it: "
                f"{'; '.join(problems)}. Tested with {releases.TESTED_VERSIONS}; install that, or a newer "
                f"yolo_lightbackbones.",
                stacklevel=2,
            )
            return
        try:
            for step in _STEPS:
                step.install(package)
        except BaseException:
            unregister()
            raise
        _patches.active = True


def unregister() -> None:
    """Remove everything that `register` and the autoload put on Ultralytics, until `register` is called again.

    Patches that others have put on top since then stay. References that others hold to our functions stay, too, but
    call the originals from now on. Torch still treats our classes as safe to load.

    Raises:
        Exception: the error of a removal, after everything else is removed.
    """
    with _lock, contextlib.ExitStack() as undone:
        for step in reversed(_STEPS):  # the stack runs backwards: it stops waiting for reloads first
            undone.callback(step.remove)


def is_registered() -> bool:
    """Whether the plugin is installed on Ultralytics in this process."""
    return _patches.active


# --- steps of `register` ----------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """One step of `register`.

    Args:
        install: attaches something to Ultralytics; changes nothing if it is attached already.
        remove: removes it again; changes nothing if it is gone. All patches are removed by one `remove`.
    """

    install: Callable[[Ultralytics], None]
    remove: Callable[[], None] = _patches.remove


def _wait_for_reloads(package: Ultralytics) -> None:
    autoload.activate()


def _put_names(package: Ultralytics) -> None:
    _publish(package.tasks)


def _put_parser(package: Ultralytics) -> None:
    tasks = package.tasks
    seam = functools.partial(parse_model.parse_model, tasks=tasks, publish=functools.partial(_publish, tasks))
    _patches.replace(tasks, "parse_model", seam)


def _put_lookup(package: Ultralytics) -> None:
    lookup.install(package.checks)


def _put_flops(package: Ultralytics) -> None:
    _patches.replace(package.torch_utils, "get_flops", models.get_flops)


def _put_requirements(package: Ultralytics) -> None:
    if environment.misfit_of_requirements(getattr(package.checks, "check_requirements", None)) is None:
        _patches.replace(package.checks, "check_requirements", environment.check_requirements)


def _put_quantising(package: Ultralytics) -> None:
    for seam in (quantising.prepare_qat, quantising.restore_qat):
        if hasattr(package.torch_utils, seam.__name__):  # older releases have no quantisation-aware training
            _patches.replace(package.torch_utils, seam.__name__, seam)


def _put_methods(package: Ultralytics) -> None:
    for seam in (models.fuse, models.is_fused, models.load):
        _patches.set(package.tasks.BaseModel, seam.__name__, seam, package.tasks)


def _put_constructors(package: Ultralytics) -> None:
    tasks = package.tasks
    for cls in list(vars(tasks).values()):
        if isinstance(cls, type) and issubclass(cls, tasks.BaseModel) and models.misfit_of_channels(cls) is None:
            _patches.set(cls, "__init__", models.with_channels, tasks)


def _put_callbacks(package: Ultralytics) -> None:
    for event, callback in fit.CALLBACKS.items():
        _patches.enlist(package.callbacks.default_callbacks[event], callback)


def _put_backends(package: Ultralytics) -> None:
    if raw_files.misfit() is None:
        base = importlib.import_module(raw_files.HOME)
        _patches.set(base.BaseBackend, "apply_metadata", raw_files.apply_metadata, base)


def _put_excepthook(package: Ultralytics) -> None:
    if command.runs_here():
        _patches.set(sys, "excepthook", command.excepthook, sys)


_STEPS = (
    Step(_wait_for_reloads, autoload.deactivate),
    Step(_put_names),
    Step(_put_parser),
    Step(_put_lookup, lookup.remove),
    Step(_put_flops),
    Step(_put_requirements),
    Step(_put_quantising),
    Step(_put_methods),
    Step(_put_constructors),
    Step(_put_callbacks),
    Step(_put_backends),
    Step(_put_excepthook),
)
"""The steps in the order in which they are installed, and removed."""


def _publish(tasks: ModuleType) -> None:
    with _lock:
        classes.publish(_patches, tasks)

"""Installs the backbones on Ultralytics, and takes them off again.

Six seams, each the smallest there is, each checked for before it is touched (`fit.py`):

1. `ultralytics.nn.tasks.parse_model`: rows of ours are translated, then Ultralytics' own parser runs; for rows of
   blocks with our classes among those that it knows (`parse_model.py`, `parser.py`).
2. `BaseModel.fuse` and `is_fused`: our modules fold themselves as well, before Ultralytics' own (`models.py`).
3. `BaseModel.load`: pretrained weights go only into rows that are the same in both models (`transfer.py`).
4. `ultralytics.utils.checks.check_file`: a YAML that is found nowhere else is looked for among ours (`lookup.py`, which
   the autoload installs as soon as that module is imported).
5. Its callbacks. `on_pretrain_routine_end`: the optimizer treats our parameters as what they are (`training.py`).
   `on_export_start`: our modules learn the format and whether it has to hold for any size, what INT8 would spoil
   is kept out of it, and the files of the export take their places once it has succeeded (`exporting.py`).
6. `ultralytics.utils.torch_utils.get_flops`: the operations of a model with modules of ours are counted at its image
   size (`models.py`).

All of it is installed, or nothing. Where a seam does not fit the installed version, one warning says so and Ultralytics
is left exactly as it was.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from yolo_lightbackbones import autoload, registry
from yolo_lightbackbones.plugin import classes, command, fit, lookup, models, parse_model, releases
from yolo_lightbackbones.plugin.fit import Ultralytics
from yolo_lightbackbones.plugin.patching import Patches

_patches = Patches("ultralytics")

_lock = threading.RLock()


def register() -> None:
    """Install the backbones on Ultralytics: YAML modules, folding, bundled YAMLs. Doing it again changes nothing.

    Modules of Ultralytics that are executed anew later (`importlib.reload`) get what belongs on them again. An
    Ultralytics whose seams do not fit is left as it was, with one warning.

    Raises:
        ModuleNotFoundError: if Ultralytics is not installed.
        Exception: whatever goes wrong on the way. Nothing is installed then, and the next call tries again.
    """
    package = fit.ultralytics()
    registry.families()  # what has to be imported is, before the lock: imports wait for other threads, too
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
    """Take everything off Ultralytics that `register` and the autoload put there, until `register` is called again.

    What others have put on top since stays, and so does what they hold of ours; it does nothing any more. Torch goes on
    to know our classes as safe to load.

    Raises:
        Exception: what taking something off raises, after everything else is off.
    """
    with _lock, contextlib.ExitStack() as undone:
        for step in reversed(_STEPS):  # the stack goes backwards: first of all, nobody waits for a reload any more
            undone.callback(step.remove)


def is_registered() -> bool:
    """Whether the plugin is installed on Ultralytics in this process."""
    return _patches.active


# --- steps of `register` ----------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """A part of `register`.

    Args:
        install: puts something on Ultralytics; changes nothing where it is there already.
        remove: takes it off again; changes nothing where it is gone. Patches come off together, all in one `remove`.
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


def _put_methods(package: Ultralytics) -> None:
    for seam in (models.fuse, models.is_fused, models.load):
        _patches.set(package.tasks.BaseModel, seam.__name__, seam, package.tasks)


def _put_callbacks(package: Ultralytics) -> None:
    for event, callback in fit.CALLBACKS.items():
        _patches.enlist(package.callbacks.default_callbacks[event], callback)


def _put_excepthook(package: Ultralytics) -> None:
    if command.runs_here():
        _patches.set(sys, "excepthook", command.excepthook, sys)


_STEPS = (
    Step(_wait_for_reloads, autoload.deactivate),
    Step(_put_names),
    Step(_put_parser),
    Step(_put_lookup, lookup.remove),
    Step(_put_flops),
    Step(_put_methods),
    Step(_put_callbacks),
    Step(_put_excepthook),
)
"""In this order they are installed, and removed."""


def _publish(tasks: ModuleType) -> None:
    with _lock:
        classes.publish(_patches, tasks)

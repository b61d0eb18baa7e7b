"""Checks whether the installed Ultralytics has all places that the plugin needs (seams); changes nothing.

The essential seams are checked before anything is installed. If one does not fit, the plugin stays away from
Ultralytics. Each of the other seams is needed by one feature only. The feature checks it at its first use, and is off
if it does not fit. `seams` checks all of them, which may take a moment.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, NamedTuple

from yolo_lightbackbones import registry
from yolo_lightbackbones.plugin import (
    classes,
    environment,
    exporting,
    models,
    parse_model,
    quantising,
    raw_files,
    training,
)
from yolo_lightbackbones.plugin.patching import is_ours
from yolo_lightbackbones.plugin.row import TAP

CALLBACKS = {
    "on_export_start": exporting.on_export_start,
    "on_pretrain_routine_end": training.on_pretrain_routine_end,
    "on_train_batch_end": quantising.on_train_batch_end,
    "on_train_epoch_end": quantising.on_train_epoch_end,
}
"""Event of Ultralytics -> our callback."""


@dataclass(frozen=True)
class Seam:
    """A place in Ultralytics that the plugin attaches to, or needs.

    Args:
        name: for example `ultralytics.nn.tasks.parse_model`, `callback on_export_start`, `module EdgeViT`.
        problem: what does not fit; None if the place fits.
        installed: whether the plugin is attached to it in this process; None if the plugin attaches nothing there.
        feature: what is missing if it does not fit, as in `"no folding"`; None for an essential seam, without which
            the plugin stays away.
    """

    name: str
    problem: str | None
    installed: bool | None
    feature: str | None = None


class Ultralytics(NamedTuple):
    """The modules of Ultralytics that hold essential seams."""

    tasks: ModuleType
    checks: ModuleType
    callbacks: ModuleType
    torch_utils: ModuleType


class Need(NamedTuple):
    """A place in Ultralytics that one feature needs.

    Args:
        name: name of the seam.
        module: dotted name of the module of Ultralytics.
        attribute: path of the place in the module; empty for the module itself.
        misfit: takes the place, and returns what does not fit, or None.
        feature: as in `Seam`.
    """

    name: str
    module: str
    attribute: str
    misfit: Callable[[Any], str | None]
    feature: str


OPTIONAL = (
    Need("marks on layers", "ultralytics.nn.tasks", "parse_model", models.misfit_of_marks, models.UNFOLDED),
    Need("channels of models", "ultralytics.nn.tasks", "DetectionModel", models.misfit_of_channels, models.RGB_FIRST),
    Need("rows of blocks", "ultralytics.nn.tasks", "parse_model", parse_model.misfit_of_blocks, parse_model.NO_BLOCKS),
    Need(
        "optimizer groups",
        "ultralytics.engine.trainer",
        "BaseTrainer.build_optimizer",
        training.misfit_of_groups,
        training.UNSORTED,
    ),
    Need(
        "arguments of exports",
        "ultralytics.utils",
        "DEFAULT_CFG_DICT",
        exporting.misfit_of_arguments,
        exporting.UNPREPARED,
    ),
    Need(
        "argument quantize",
        "ultralytics.utils",
        "DEFAULT_CFG_DICT",
        exporting.misfit_of_precision,
        exporting.UNSEEN_INT8,
    ),
    Need(
        "requirements of exports",
        "ultralytics.utils.checks",
        "check_requirements",
        environment.misfit_of_requirements,
        environment.UNCHECKED,
    ),
    Need("steps of exports", "ultralytics.engine.exporter", "", exporting.misfit_of_exporter, exporting.UNSTAGED),
    Need(
        "expectation of DFL",
        "ultralytics.nn.modules.block",
        "DFL",
        exporting.misfit_of_expectation,
        exporting.ROUNDED,
    ),
    Need(
        "metadata of exported files",
        raw_files.HOME,
        "BaseBackend.apply_metadata",
        raw_files.misfit_of_backends,
        raw_files.UNREADABLE,
    ),
    Need(
        "preparation of QAT",
        "ultralytics.utils.torch_utils",
        "prepare_qat",
        quantising.misfit_of_preparation,
        quantising.UNMERGED,
    ),
)


def ultralytics() -> Ultralytics:
    """Import the modules of Ultralytics that hold essential seams.

    If the autoload is active, importing the first of them registers the plugin.

    Raises:
        ImportError: if Ultralytics cannot be imported.
    """
    return Ultralytics(
        importlib.import_module("ultralytics.nn.tasks"),
        importlib.import_module("ultralytics.utils.checks"),
        importlib.import_module("ultralytics.utils.callbacks.base"),
        importlib.import_module("ultralytics.utils.torch_utils"),
    )


def seams() -> list[Seam]:
    """Check every seam: whether it fits the installed Ultralytics, and whether the plugin is attached. Change nothing.

    Seams that only one feature needs are included if all essential seams fit; otherwise the plugin stays away.

    Raises:
        ImportError: if Ultralytics cannot be imported.
    """
    found = essential(package := ultralytics())
    return found if any(seam.problem for seam in found) else [*found, *_other_names(package), *map(_look_at, OPTIONAL)]


def essential(package: Ultralytics) -> list[Seam]:
    """Check the essential seams, without which the plugin stays away."""
    return [*_functions(package), *_callbacks(package), *_names(package)]


def _functions(package: Ultralytics) -> list[Seam]:
    tasks, checks, _, torch_utils = package
    model = getattr(tasks, "BaseModel", None)
    needs = [
        (tasks, "parse_model", ["d", "ch"]),
        (tasks, "Index", []),
        (model, "fuse", ["self"]),
        (model, "is_fused", ["self"]),
        (model, "load", ["self", "weights"]),
        (checks, "check_file", ["file"]),
        (torch_utils, "get_flops", ["model", "imgsz"]),
    ]
    found = []
    for owner, name, arguments in needs:
        value = getattr(owner, name, None)
        label = f"{getattr(owner, '__name__', 'ultralytics.nn.tasks.BaseModel')}.{name}"
        problem = None
        if not callable(value):
            problem = f"{label} is gone"
        elif list(inspect.signature(value).parameters)[: len(arguments)] != arguments:
            problem = f"{label}{inspect.signature(value)} does not start with ({', '.join(arguments)})"
        found.append(Seam(label, problem, is_ours(value) if arguments else None))
    return found


def _callbacks(package: Ultralytics) -> list[Seam]:
    found = []
    for event, callback in CALLBACKS.items():
        listed: Any = getattr(package.callbacks, "default_callbacks", {}).get(event)
        gone = f"ultralytics.utils.callbacks.base.default_callbacks has no {event!r}"
        fits = isinstance(listed, list)
        found.append(Seam(f"callback {event}", None if fits else gone, fits and callback in listed))
    return found


def _names(package: Ultralytics) -> list[Seam]:
    """Check the names of our own families, their blocks and taps."""
    own = registry.built_in()
    blocks = dict.fromkeys(name for cls in own for name in cls.block_rows)
    return [
        _name(package, name, cls) for name, cls in {**{cls.__name__: cls for cls in own}, TAP: None, **blocks}.items()
    ]


def _other_names(package: Ultralytics) -> list[Seam]:
    """Check the names of families of other packages, and of their blocks; one that clashes is left out."""
    own = {seam.name for seam in _names(package)}
    seams = [
        _name(package, name, cls)
        for name, cls in {**registry.families(), **dict.fromkeys(registry.block_rows())}.items()
    ]
    return [
        replace(seam, feature=f"no rows of {seam.name.removeprefix('module ')}")
        for seam in seams
        if seam.name not in own
    ]


def _name(package: Ultralytics, name: str, cls: type | None) -> Seam:
    attached = None if cls is None else getattr(package.tasks, name, None) is cls
    return Seam(f"module {name}", classes.clash(package.tasks, name, cls), attached)


def _look_at(need: Need) -> Seam:
    place = ".".join(filter(None, (need.module, need.attribute)))
    try:
        found: Any = importlib.import_module(need.module)
    except ImportError as error:
        return Seam(need.name, f"{need.module} cannot be imported: {error}", None, need.feature)
    for part in filter(None, need.attribute.split(".")):
        found = getattr(found, part, None)
    problem = f"{place} is gone" if found is None else need.misfit(found)
    return Seam(need.name, problem, None, need.feature)

"""Additions to Ultralytics' exporter for models with our modules.

Our modules are told the format and whether the export must accept any image size. Operations that INT8 would spoil stay
in float. The exported files are moved to their final places only after success (`staging.py`). The packages that are
installed, and the network, are left alone (`environment.py`).
"""

from __future__ import annotations

import functools
import importlib
import logging
import types
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from yolo_lightbackbones import recording
from yolo_lightbackbones.plugin import environment, formats, raw_heads, releases
from yolo_lightbackbones.plugin.decoding import expected_distances
from yolo_lightbackbones.plugin.models import has_ours
from yolo_lightbackbones.plugin.staging import Staging

INT8 = (8, "w8a16", "w8a32")
"""Values of Ultralytics' `quantize=` that turn weights, activations or both into integers."""

UNPREPARED = "no preparation of our layers for exports"
UNSEEN_INT8 = "no difference between INT8 and other exports of our layers"
ROUNDED = "no box distances kept in float in INT8 exports"
UNSTAGED = "no protection of older files and installed packages while a model is exported"


def on_export_start(exporter: Any) -> None:
    """Prepare an export; Ultralytics' callback. The model is a fused copy, and no file is written yet.

    Raises:
        ValueError: if the export would succeed but give a wrong model, or if it cannot have the raw head that is asked
            for.
    """
    model, options = exporter.model, exporter.args
    if raw_heads.is_asked():  # of any model
        raw_heads.prepare(exporter)
    if not has_ours(model):
        return
    if problem := misfit_of_arguments(vars(options)):
        releases.warn_without(UNPREPARED, problem)
        return
    refuse_misfits(model, options.format, dynamic=bool(options.dynamic))
    if problem := misfit_of_precision(vars(options)):
        releases.warn_without(UNSEEN_INT8, problem)
    int8 = _is_int8(options)
    format = formats.find(options.format)
    recording.record_for(
        model,
        any_size=bool(options.dynamic),
        matrix_from=format.matrices_from(int8=int8),
        elementwise_norms=format.norms_elementwise(int8=int8),
    )
    if int8 and format.float_expectation:
        _expect_in_float(model)
    _stage(exporter)


def refuse_misfits(model: nn.Module, format: str, *, dynamic: bool) -> None:
    """Refuse an export that would succeed but give a wrong model.

    Raises:
        ValueError: for `dynamic=True` in a format in which our modules were not tested with it.
    """
    if dynamic and not formats.find(format).any_size and recording.is_size_bound(model):
        raise ValueError(
            f"dynamic=True is given for format={format}, but layers of this model can be exported for any size "
            f"only as {', '.join(formats.any_size())}. Leave dynamic out, and give the size you need: "
            "imgsz=height,width."
        )


# --- INT8 -------------------------------------------------------------------------------------------------------------


def _is_int8(options: Any) -> bool:
    """Whether an INT8 export is asked for; older releases have the argument `int8` instead of `quantize`."""
    if hasattr(options, "quantize"):
        return options.quantize in INT8
    return bool(getattr(options, "int8", False))


def _expect_in_float(model: nn.Module) -> None:
    """Keep the expected box distances out of quantisation, in every head that computes them."""
    expectation: Any = getattr(importlib.import_module("ultralytics.nn.modules.block"), "DFL", None)
    if problem := misfit_of_expectation(expectation):
        releases.warn_without(ROUNDED, problem)
        return

    def forward(self: Any, x: Tensor) -> Tensor:
        return expected_distances(x, self.conv.weight.flatten())

    for module in model.modules():
        if isinstance(module, expectation):
            module.forward = types.MethodType(forward, module)


# --- files ------------------------------------------------------------------------------------------------------------


def _stage(exporter: Any) -> None:
    """Let the export write to a hidden folder; its files move to their final places after it has succeeded."""
    methods = formats.find(exporter.args.format).methods
    if problem := _missing_methods(exporter, methods):
        releases.warn_without(UNSTAGED, problem)
        return
    if exporter.file.name:  # a model without a name is refused by the exporter itself
        staging = Staging(exporter.file, exporter.args.format)
        for name in methods:
            step = getattr(exporter, name)
            setattr(exporter, name, _all_or_nothing(step, name, exporter, staging, last=name == methods[-1]))


def _all_or_nothing(
    step: Callable[..., Any], name: str, exporter: Any, staging: Staging, *, last: bool
) -> Callable[..., Any]:
    log = importlib.import_module("ultralytics.utils").LOGGER

    def name_final_places(record: logging.LogRecord) -> bool:
        record.msg = staging.in_place(str(record.msg))
        return True

    @functools.wraps(step)
    def run(*args: Any, **kwargs: Any) -> Any:
        checkpoint, exporter.file = exporter.file, staging.file
        log.addFilter(name_final_places)
        try:
            with staging.step(last=last), environment.left_alone(exporter.args.format, staging.file.parent):
                result = step(*args, **kwargs)
        finally:
            log.removeFilter(name_final_places)
            exporter.file = checkpoint
            setattr(exporter, name, step)  # the exporter may be used again
        return _in_place(result, staging) if last else result

    return run


def _in_place(result: Any, staging: Staging) -> Any:
    """Replace the hidden folder in the result of a step of the exporter: a path, or a tuple that begins with one."""
    if isinstance(result, tuple):
        return (_in_place(result[0], staging), *result[1:])
    return type(result)(staging.in_place(str(result))) if isinstance(result, str | Path) else result


# --- checks of the places in Ultralytics that this module relies on ---------------------------------------------------


def misfit_of_arguments(names: Collection[str]) -> str | None:
    """Name the arguments of an export that are missing among `names`; None if all are there."""
    missing = [name for name in ("format", "dynamic") if name not in names]
    return f"exports have no argument {' and no '.join(map(repr, missing))}" if missing else None


def misfit_of_precision(names: Collection[str]) -> str | None:
    """Explain why arguments of these names do not tell whether an export is INT8; None if they do."""
    return None if {"quantize", "int8"} & set(names) else "exports have neither an argument 'quantize' nor 'int8'"


def misfit_of_expectation(cls: Any) -> str | None:
    """Explain why `expected_distances` cannot replace this class of Ultralytics, after a try; None if it can."""
    name = "ultralytics.nn.modules.block.DFL"
    if cls is None:
        return f"{name} is gone"
    logits = torch.linspace(-2, 2, 4 * 4 * 3).view(1, 4 * 4, 3)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            head = cls(4)
            seen, expected = head(logits), expected_distances(logits, head.conv.weight.flatten())
            fits = bool(torch.allclose(seen, expected, atol=1e-5))
    except Exception as error:  # any error means that this is not the head that we know
        return f"{name} is built differently: {error!r}"
    return None if fits else f"{name} does not compute the expected bin numbers"


def misfit_of_exporter(module: ModuleType) -> str | None:
    """Name the steps of an export that are missing in `ultralytics.engine.exporter`; None if all are there."""
    exporter, table = getattr(module, "Exporter", None), getattr(module, "export_formats", None)
    if exporter is None:
        return "ultralytics.engine.exporter.Exporter is gone"
    names = table()["Argument"] if callable(table) else formats.FORMATS
    offered = [name for name in names if name.isidentifier()]  # PyTorch's own format has no method
    return _missing_methods(exporter, [method for name in offered for method in formats.find(name).methods])


def _missing_methods(exporter: Any, names: Collection[str]) -> str | None:
    missing = [name for name in dict.fromkeys(names) if not callable(getattr(exporter, name, None))]
    return f"ultralytics.engine.exporter.Exporter has no {', '.join(missing)}" if missing else None

"""Installs the backbones on Ultralytics. The only module of the library that knows it.

Five seams, each the smallest there is, each checked for before it is touched:

1. `ultralytics.nn.tasks.parse_model`: rows of ours are translated, then Ultralytics' own parser runs; for rows of
   blocks with our classes among those that it knows (`parser.py`).
2. `BaseModel.fuse` and `is_fused`: our modules fold themselves as well, before Ultralytics' own.
3. `ultralytics.utils.checks.check_file`: a YAML that is found nowhere else is looked for among ours.
4. Its callbacks. `on_pretrain_routine_end`: the optimizer treats our parameters as what they are (`training.py`).
   `on_export_start`: our modules learn the format and whether it has to hold for any size, what INT8 would spoil
   is kept out of it, and the files of the export take their places once it has succeeded.
5. `ultralytics.utils.torch_utils.get_flops`: the operations of a model with modules of ours are counted at its image
   size. Ultralytics counts them on a few pixels and extrapolates, which circular convolutions do not follow.

Where a seam does not fit the installed version, one warning says so and Ultralytics is left exactly as it was.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import logging
import re
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from yolo_lightbackbones import (
    backbone,
    blocks,
    configs,
    cost,
    exporting,
    fusion,
    layers,
    parser,
    registry,
    rows,
    training,
)

TESTED_VERSIONS = "8.4.150 to 8.4.190"
"""Ultralytics releases that `tests/test_plugin.py` has run against, the whole suite against the last of them."""


@dataclass(frozen=True)
class Seam:
    """A place of Ultralytics that the plugin attaches to, or needs.

    Args:
        name: `ultralytics.nn.tasks.parse_model`, `callback on_export_start`, `module EdgeViT`.
        problem: what does not fit; None if it fits.
        installed: whether the plugin is on it in this process; None where it puts nothing.
    """

    name: str
    problem: str | None
    installed: bool | None


_undo: list[Callable[[], None]] = []
"""How to take each patch off again, in the order they were put on."""

_seat: type | None = None
"""Ultralytics' `BaseModel` that they are on."""

_lock = threading.RLock()


def register() -> None:
    """Install the backbones on Ultralytics: YAML modules, folding, bundled YAMLs. Doing it again changes nothing.

    An Ultralytics whose seams do not fit is left as it was, with one warning.

    Raises:
        ModuleNotFoundError: if Ultralytics is not installed.
    """
    tasks, checks, callbacks, torch_utils = _ultralytics()
    registry.families()  # what has to be imported is, before the lock: imports wait for other threads, too
    with _lock:
        if _undo and _seat is not tasks.BaseModel:  # Ultralytics was imported anew
            unregister()
        if not _undo:
            _register(tasks, checks, callbacks, torch_utils)


def _register(tasks: ModuleType, checks: ModuleType, callbacks: ModuleType, torch_utils: ModuleType) -> None:
    global _seat
    if missing := [seam.problem for seam in _seams(tasks, checks, callbacks, torch_utils) if seam.problem]:
        warnings.warn(
            f"yolo_lightbackbones does not fit Ultralytics {_version()} and stays away from it: {'; '.join(missing)}. "
            f"Tested with {TESTED_VERSIONS}; install that, or a newer yolo_lightbackbones.",
            stacklevel=2,
        )
        return
    _seat = tasks.BaseModel
    _publish(tasks)
    _replace_function(tasks.parse_model, _parse_model(tasks.parse_model, tasks))
    _replace_function(checks.check_file, _check_file(checks.check_file))
    _replace_function(torch_utils.get_flops, _get_flops(torch_utils.get_flops))
    _set(tasks.BaseModel, "fuse", _fuse(tasks.BaseModel.fuse))
    _set(tasks.BaseModel, "is_fused", _is_fused(tasks.BaseModel.is_fused))
    for event, callback in _CALLBACKS.items():
        listed = callbacks.default_callbacks[event]
        listed.append(callback)
        _undo.append(functools.partial(_remove, listed, callback))


def unregister() -> None:
    """Take everything off Ultralytics that `register` put there.

    What others have put on top since stays, and so does what they hold of ours; it does nothing any more.
    """
    with _lock:
        while _undo:
            _undo.pop()()


def is_registered() -> bool:
    """Whether the plugin is installed on Ultralytics in this process."""
    return bool(_undo)


def seams() -> list[Seam]:
    """Every seam: whether it fits the installed Ultralytics, and whether the plugin is on it. Changes nothing.

    Raises:
        ImportError: if Ultralytics cannot be imported.
    """
    return _seams(*_ultralytics())


def is_tested(version: str) -> bool:
    """Whether this release of Ultralytics is within `TESTED_VERSIONS`."""
    first, last, given = (
        tuple(map(int, re.findall(r"\d+", text)[:3])) for text in (*TESTED_VERSIONS.split(" to "), version)
    )
    return first <= given <= last


# --- seams ------------------------------------------------------------------------------------------------------------


def _parse_model(original: Callable[..., Any], tasks: ModuleType) -> Callable[..., Any]:
    def parse_model(d: dict[str, Any], ch: int, *args: Any, **kwargs: Any) -> Any:
        families = registry.families()
        if rows.names_backbone(d, families):
            d = rows.translate(d, ch, families)
            _publish(tasks)  # a family may have been registered since
        parse = _parser_of_blocks(original, d) if rows.names_block(d, blocks.BLOCKS) else original
        try:
            return parse(d, ch, *args, **kwargs)
        except KeyError as error:  # how the parser takes a module that it does not know
            rows.explain_unknown(d, str(error.args[0]), [*families, rows.TAP, *blocks.BLOCKS])
            raise

    return parse_model


def _parser_of_blocks(original: Callable[..., Any], config: dict[str, Any]) -> Callable[..., Any]:
    """Ultralytics' parser for a model with rows of blocks.

    Raises:
        ConfigError: for a mistake in such a row, and where the parser does not fit.
    """
    first = rows.check_blocks(config, blocks.BLOCKS)
    try:
        return parser.with_rows(original, blocks.BLOCKS)
    except parser.MisfitError as error:
        raise first.error(
            f"rows of {', '.join(blocks.BLOCKS)} are not available with Ultralytics {_version()}: its parse_model "
            f"{error}. Tested with {TESTED_VERSIONS}; install that, or take another module for this row. Everything "
            f"else of yolo_lightbackbones works."
        ) from error


def _fuse(original: Callable[..., Any]) -> Callable[..., Any]:
    def fuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        for i, module in enumerate(self.model):
            if not fusion.is_fused(module):
                fused = fusion.fuse(module).train(module.training)
                for attribute in ("i", "f", "type", "np"):  # what Ultralytics' parser wrote on the layer
                    setattr(fused, attribute, getattr(module, attribute))
                self.model[i] = fused
        return original(self, *args, **kwargs)

    return fuse


def _is_fused(original: Callable[..., bool]) -> Callable[..., bool]:
    def is_fused(self: Any, *args: Any, **kwargs: Any) -> bool:
        return fusion.is_fused(self) and original(self, *args, **kwargs)

    return is_fused


def _check_file(original: Callable[..., Any]) -> Callable[..., Any]:
    def check_file(file: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            found = original(file, *args, **kwargs)
        except FileNotFoundError:
            if (bundled := configs.find_config(file)) is None:
                raise
            return str(bundled)
        if found or (bundled := configs.find_config(file)) is None:
            return found
        return str(bundled)

    return check_file


def _get_flops(original: Callable[..., float]) -> Callable[..., float]:
    def get_flops(model: Any, imgsz: Any = 640, *args: Any, **kwargs: Any) -> float:
        if not _has_ours(model):
            return original(model, imgsz, *args, **kwargs)
        try:
            height, width = imgsz if isinstance(imgsz, list | tuple) else (imgsz, imgsz)
            shape = (1, next(model.parameters()).shape[1], height, width)
            return cost.count(cost.on_meta(model).eval(), shape).total.flops / 1e9
        except Exception:  # as in Ultralytics' own: a line of the summary must not end a training
            return original(model, imgsz, *args, **kwargs)

    return get_flops


def _on_export_start(exporter: Any) -> None:
    """Runs when the model is a fused copy and nothing is written yet.

    Raises:
        ValueError: for what would be written, but not be right.
    """
    model, options = exporter.model, exporter.args
    if not _has_ours(model):
        return
    exporting.refuse_misfits(model, options.format, dynamic=bool(options.dynamic))
    int8 = getattr(options, "quantize", None) in exporting.INT8
    fusion.record_for(model, options.format + "-int8" * int8, any_size=bool(options.dynamic))
    if int8 and options.format in exporting.FLOAT_EXPECTATION_FORMATS:
        _expect_in_float(model)
    _stage(exporter)


def _expect_in_float(model: nn.Module) -> None:
    """Keep the expectation over a box's distances out of quantisation, in every head that computes it."""
    block = importlib.import_module("ultralytics.nn.modules.block")

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return exporting.expected_distances(x, self.conv.weight.flatten())

    for module in model.modules():
        if isinstance(module, block.DFL):
            module.forward = types.MethodType(forward, module)


def _stage(exporter: Any) -> None:
    """Let the export write to a folder of its own, from where its files take their places when it has succeeded."""
    format = exporter.args.format
    last = "export_coreml" if format == "mlmodel" else f"export_{format}"
    names = ("export_saved_model", last) if format in ("pb", "edgetpu") else (last,)
    steps = [(name, step) for name in names if (step := getattr(exporter, name, None)) is not None]
    if steps and exporter.file.name:  # a model without a name is refused by the exporter itself
        staging = exporting.Staging(exporter.file, format)
        for name, step in steps:
            setattr(exporter, name, _all_or_nothing(step, name, exporter, staging, last=name == last))


def _all_or_nothing(
    step: Callable[..., Any], name: str, exporter: Any, staging: exporting.Staging, *, last: bool
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
            with staging.step(last=last), exporting.no_hidden_installs():
                result = step(*args, **kwargs)
        finally:
            log.removeFilter(name_final_places)
            exporter.file = checkpoint
            setattr(exporter, name, step)  # the exporter may be used again
        return _in_place(result, staging) if last else result

    return run


def _in_place(result: Any, staging: exporting.Staging) -> Any:
    """What a step of the exporter returns: a path, or a tuple that begins with one."""
    if isinstance(result, tuple):
        return (_in_place(result[0], staging), *result[1:])
    return type(result)(staging.in_place(str(result))) if isinstance(result, str | Path) else result


def _on_pretrain_routine_end(trainer: Any) -> None:
    """Runs on every worker when the optimizer is built, and on resuming filled, and nothing is trained yet."""
    try:
        training.regroup(trainer.optimizer, trainer.model)
    except ValueError as error:
        warnings.warn(f"{error} Ultralytics {_version()} trains it as it trains its own layers.", stacklevel=2)


_CALLBACKS = {"on_export_start": _on_export_start, "on_pretrain_routine_end": _on_pretrain_routine_end}


# --- helpers ----------------------------------------------------------------------------------------------------------


def _has_ours(model: nn.Module) -> bool:
    return any(isinstance(module, backbone.Backbone | blocks.BlockRow) for module in model.modules())


def _ultralytics() -> tuple[ModuleType, ModuleType, ModuleType, ModuleType]:
    """Its modules that hold seams; with the autoload active, importing the first of them registers the plugin."""
    return (
        importlib.import_module("ultralytics.nn.tasks"),
        importlib.import_module("ultralytics.utils.checks"),
        importlib.import_module("ultralytics.utils.callbacks.base"),
        importlib.import_module("ultralytics.utils.torch_utils"),
    )


def _seams(tasks: ModuleType, checks: ModuleType, callbacks: ModuleType, torch_utils: ModuleType) -> list[Seam]:
    """What the plugin needs of Ultralytics, and what is there."""
    model = getattr(tasks, "BaseModel", None)
    needs = [
        (tasks, "parse_model", ["d", "ch"]),
        (tasks, "Index", []),
        (model, "fuse", ["self"]),
        (model, "is_fused", ["self"]),
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
        found.append(Seam(label, problem, _is_ours(value) if arguments else None))
    for event, callback in _CALLBACKS.items():
        listed: Any = getattr(callbacks, "default_callbacks", {}).get(event)
        gone = f"ultralytics.utils.callbacks.base.default_callbacks has no {event!r}"
        fits = isinstance(listed, list)
        found.append(Seam(f"callback {event}", None if fits else gone, fits and callback in listed))
    names = {**registry.families(), **dict.fromkeys((rows.TAP, *blocks.BLOCKS))}  # of the latter, none is put there
    for name, cls in names.items():
        held = getattr(tasks, name, None)
        clash = hasattr(tasks, name) and held is not cls
        problem = f"ultralytics.nn.tasks has a {name} of its own" if clash else None
        found.append(Seam(f"module {name}", problem, None if cls is None else held is cls))
    return found


def _is_ours(function: Any) -> bool:
    """Whether the function is one of this module, whatever others have wrapped around it since."""
    while function is not None:
        if getattr(function, "__globals__", None) is globals():
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def _publish(tasks: ModuleType) -> None:
    """Make the families known where Ultralytics' parser looks up names, and to its restricted checkpoint loading."""
    new = {name: cls for name, cls in registry.families().items() if not hasattr(tasks, name)}
    for name, cls in new.items():
        setattr(tasks, name, cls)
        _undo.append(functools.partial(delattr, tasks, name))
    torch.serialization.add_safe_globals(list(_module_classes(new.values())))


def _remove(listed: list[Any], value: Any) -> None:
    with contextlib.suppress(ValueError):  # somebody has cleared the list
        listed.remove(value)


def _while_registered(original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """Ours as long as the plugin is on; others may hold it for longer."""

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (ours if _undo else original)(*args, **kwargs)

    return call


def _set(owner: type, name: str, ours: Callable[..., Any]) -> None:
    original = getattr(owner, name)
    value = _while_registered(original, ours)

    def undo() -> None:
        if getattr(owner, name) is value:
            setattr(owner, name, original)

    _undo.append(undo)
    setattr(owner, name, value)


def _replace_function(original: Callable[..., Any], ours: Callable[..., Any]) -> None:
    """Replace a function in every loaded module of Ultralytics that holds it; later imports get the replacement."""
    replacement = _while_registered(original, ours)

    def replace(old: Callable[..., Any], new: Callable[..., Any]) -> None:
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] == "ultralytics":
                for attribute in [key for key, held in vars(module).items() if held is old]:
                    setattr(module, attribute, new)

    _undo.append(functools.partial(replace, replacement, original))
    replace(original, replacement)


def _module_classes(families: Iterable[type[backbone.Backbone]]) -> Iterator[type[nn.Module]]:
    """Every layer that a checkpoint with these families or with blocks may pickle."""
    modules = [backbone, blocks, layers, *(sys.modules[cls.__module__] for cls in families)]
    for module in modules:
        for cls in vars(module).values():
            if isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ == module.__name__:
                yield cls


def _version() -> str:
    return str(getattr(sys.modules.get("ultralytics"), "__version__", "(unknown version)"))

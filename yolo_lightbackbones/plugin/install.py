"""Installs the backbones on Ultralytics. The only module of the library that knows it.

Six seams, each the smallest there is, each checked for before it is touched:

1. `ultralytics.nn.tasks.parse_model`: rows of ours are translated, then Ultralytics' own parser runs; for rows of
   blocks with our classes among those that it knows (`parser.py`).
2. `BaseModel.fuse` and `is_fused`: our modules fold themselves as well, before Ultralytics' own.
3. `BaseModel.load`: pretrained weights go only into rows that are the same in both models (`transfer.py`).
4. `ultralytics.utils.checks.check_file`: a YAML that is found nowhere else is looked for among ours (`lookup.py`, which
   the autoload installs as soon as that module is imported).
5. Its callbacks. `on_pretrain_routine_end`: the optimizer treats our parameters as what they are (`training.py`).
   `on_export_start`: our modules learn the format and whether it has to hold for any size, what INT8 would spoil
   is kept out of it, and the files of the export take their places once it has succeeded.
6. `ultralytics.utils.torch_utils.get_flops`: the operations of a model with modules of ours are counted at its image
   size. Ultralytics counts them on a few pixels and extrapolates, which circular convolutions do not follow.

All of it is installed, or nothing. Where a seam does not fit the installed version, one warning says so and Ultralytics
is left exactly as it was.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

from yolo_lightbackbones import autoload, backbone, blocks, fusion, moved, recording, registry
from yolo_lightbackbones.measure import cost
from yolo_lightbackbones.plugin import exporting, formats, lookup, parser, rows, training, transfer
from yolo_lightbackbones.plugin.patching import Patches, is_ours

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


class Ultralytics(NamedTuple):
    """Its modules that hold seams."""

    tasks: ModuleType
    checks: ModuleType
    callbacks: ModuleType
    torch_utils: ModuleType


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
    package = _ultralytics()
    registry.families()  # what has to be imported is, before the lock: imports wait for other threads, too
    with _lock:
        problems = [seam.problem for seam in _seams(package) if seam.problem]
        if problems and not _patches.active:
            unregister()
            warnings.warn(
                f"yolo_lightbackbones does not fit Ultralytics {_version()} and stays away from it: "
                f"{'; '.join(problems)}. Tested with {TESTED_VERSIONS}; install that, or a newer yolo_lightbackbones.",
                stacklevel=2,
            )
            return
        try:
            for step in _STEPS:
                step(package)
        except BaseException:
            unregister()
            raise
        _patches.active = True


def unregister() -> None:
    """Take everything off Ultralytics that `register` and the autoload put there, until `register` is called again.

    What others have put on top since stays, and so does what they hold of ours; it does nothing any more. Torch goes on
    to know our classes as safe to load.
    """
    with _lock:
        autoload.deactivate()
        _patches.remove()
        lookup.remove()


def is_registered() -> bool:
    """Whether the plugin is installed on Ultralytics in this process."""
    return _patches.active


def seams() -> list[Seam]:
    """Every seam: whether it fits the installed Ultralytics, and whether the plugin is on it. Changes nothing.

    Raises:
        ImportError: if Ultralytics cannot be imported.
    """
    return _seams(_ultralytics())


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
        if has_backbone := rows.names_backbone(d, families):
            d = rows.translate(d, ch, families)
            with _lock:
                _publish(tasks)  # a family may have been registered since
        has_block = rows.names_block(d, block_rows := registry.block_rows())
        parse = _parser_of_blocks(original, d) if has_block else original
        with _activation_restored(tasks) if has_backbone or has_block else contextlib.nullcontext():
            try:
                return parse(d, ch, *args, **kwargs)
            except KeyError as error:  # how the parser takes a module that it does not know
                rows.explain_unknown(d, str(error.args[0]), [*families, rows.TAP, *block_rows])
                raise

    return parse_model


@contextlib.contextmanager
def _activation_restored(tasks: ModuleType) -> Iterator[None]:
    """Keep the activation that a YAML asks for (`activation:`) to its model.

    The parser sets it for the process, and where a build fails, or in releases that never set it back, the next model
    would get it without a word.
    """
    conv: Any = getattr(tasks, "Conv", None)
    before = getattr(conv, "default_act", None)
    try:
        yield
    finally:
        if before is not None:
            conv.default_act = before


def _parser_of_blocks(original: Callable[..., Any], config: dict[str, Any]) -> Callable[..., Any]:
    """Ultralytics' parser for a model with rows of blocks.

    Raises:
        ConfigError: for a mistake in such a row, and where the parser does not fit.
    """
    block_rows = registry.block_rows()
    first = rows.check_blocks(config, block_rows)
    try:
        return parser.with_rows(original, block_rows)
    except parser.MisfitError as error:
        raise first.error(
            f"rows of {', '.join(block_rows)} are not available with Ultralytics {_version()}: its parse_model "
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


def _excepthook(original: Callable[..., Any]) -> Callable[..., Any]:
    def excepthook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if isinstance(error, rows.ConfigError):
            print(f"yolo_lightbackbones: {error}", file=sys.stderr)
        else:
            original(kind, error, trace)

    return excepthook


def _load(original: Callable[..., Any]) -> Callable[..., Any]:
    def load(self: Any, weights: Any, *args: Any, **kwargs: Any) -> Any:
        source = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
        if not isinstance(source, nn.Module) or not (_has_ours(self) or _has_ours(source)):
            return original(self, weights, *args, **kwargs)
        chosen = transfer.choose(self, source.float())
        for note in chosen.notes:
            warnings.warn(note, stacklevel=3)
        if not chosen.tensors:
            return None
        result = original(self, chosen, *args, **kwargs)
        transfer.take_over_taps(self, source)
        return result

    return load


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
    format = formats.find(options.format)
    recording.record_for(model, any_size=bool(options.dynamic), matrix_from=format.matrices_from(int8=int8))
    if int8 and format.float_expectation:
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
    """The result of a step of the exporter: a path, or a tuple that begins with one."""
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


# --- steps of `register`, each of which changes nothing where it is done already --------------------------------------


def _wait_for_reloads(package: Ultralytics) -> None:
    autoload.activate()


def _put_names(package: Ultralytics) -> None:
    _publish(package.tasks)


def _put_parser(package: Ultralytics) -> None:
    _patches.replace(package.tasks, "parse_model", functools.partial(_parse_model, tasks=package.tasks))


def _put_lookup(package: Ultralytics) -> None:
    lookup.install(package.checks)


def _put_flops(package: Ultralytics) -> None:
    _patches.replace(package.torch_utils, "get_flops", _get_flops)


def _put_methods(package: Ultralytics) -> None:
    for name, wrap in (("fuse", _fuse), ("is_fused", _is_fused), ("load", _load)):
        _patches.set(package.tasks.BaseModel, name, wrap, package.tasks)


def _put_callbacks(package: Ultralytics) -> None:
    for event, callback in _CALLBACKS.items():
        _patches.enlist(package.callbacks.default_callbacks[event], callback)


def _put_excepthook(package: Ultralytics) -> None:
    """In the process of the `yolo` command, a mistake in a YAML is one sentence, not a traceback of Ultralytics."""
    command = getattr(sys.modules.get("__main__"), "entrypoint", None)
    if getattr(command, "__module__", None) == "ultralytics.cfg":
        _patches.set(sys, "excepthook", _excepthook, sys)


_STEPS = (
    _wait_for_reloads,
    _put_names,
    _put_parser,
    _put_lookup,
    _put_flops,
    _put_methods,
    _put_callbacks,
    _put_excepthook,
)


# --- helpers ----------------------------------------------------------------------------------------------------------


def _has_ours(model: nn.Module) -> bool:
    return any(isinstance(module, backbone.Backbone | blocks.BlockRow) for module in model.modules())


def _ultralytics() -> Ultralytics:
    """Its modules that hold seams; with the autoload active, importing the first of them registers the plugin."""
    return Ultralytics(
        importlib.import_module("ultralytics.nn.tasks"),
        importlib.import_module("ultralytics.utils.checks"),
        importlib.import_module("ultralytics.utils.callbacks.base"),
        importlib.import_module("ultralytics.utils.torch_utils"),
    )


def _seams(package: Ultralytics) -> list[Seam]:
    """What the plugin needs of Ultralytics, and what is there."""
    tasks, checks, callbacks, torch_utils = package
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
    for event, callback in _CALLBACKS.items():
        listed: Any = getattr(callbacks, "default_callbacks", {}).get(event)
        gone = f"ultralytics.utils.callbacks.base.default_callbacks has no {event!r}"
        fits = isinstance(listed, list)
        found.append(Seam(f"callback {event}", None if fits else gone, fits and callback in listed))
    not_put_there = (rows.TAP, *registry.block_rows())
    names = {**registry.families(), **dict.fromkeys(not_put_there)}
    for name, cls in names.items():
        held = getattr(tasks, name, None)
        clash = hasattr(tasks, name) and held is not cls
        problem = f"ultralytics.nn.tasks has a {name} of its own" if clash else None
        found.append(Seam(f"module {name}", problem, None if cls is None else held is cls))
    return found


def _publish(tasks: ModuleType) -> None:
    """Make the families known where Ultralytics' parser looks up names, and to its restricted checkpoint loading."""
    new = {name: cls for name, cls in registry.families().items() if not hasattr(tasks, name)}
    for name, cls in new.items():
        _patches.publish(tasks, name, cls)
    torch.serialization.add_safe_globals(moved.safe_globals(new.values()))


def _version() -> str:
    return str(getattr(sys.modules.get("ultralytics"), "__version__", "(unknown version)"))

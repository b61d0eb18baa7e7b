"""Builds models of Ultralytics for the commands, from a YAML or a checkpoint, and explains the user's mistakes."""

from __future__ import annotations

import contextlib
import difflib
import logging
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from yolo_lightbackbones.cli import untrusted
from yolo_lightbackbones.cli.common import UserError
from yolo_lightbackbones.messages import flow, listed, printable, quoted

MODELS = {
    "detect": "DetectionModel",
    "segment": "SegmentationModel",
    "classify": "ClassificationModel",
    "pose": "PoseModel",
    "obb": "OBBModel",
}
"""Task -> class in `ultralytics.nn.tasks` that builds its models."""

MODELS_OF_HEADS = {
    "SemanticSegment": ("semantic", "SemanticSegmentationModel"),
    "Depth": ("depth", "DepthModel"),
    "RTDETRDecoder": ("detect", "RTDETRDetectionModel"),
    "WorldDetect": ("detect", "WorldModel"),
    "YOLOEDetect": ("detect", "YOLOEModel"),
    "YOLOESegment": ("segment", "YOLOESegModel"),
    "YOLOESegment26": ("segment", "YOLOESegModel"),
}
"""Head -> task and class, where the task does not say the class. Not every Ultralytics has all of them."""


@contextlib.contextmanager
def quiet_ultralytics() -> Iterator[None]:
    """Silence Ultralytics; what it prints all the same goes to stderr.

    Raises:
        UserError: if Ultralytics cannot be imported.
    """
    with contextlib.redirect_stdout(sys.stderr):  # its very first import prints that it made its settings
        try:
            from ultralytics.utils import LOGGER
        except ImportError as error:
            raise UserError(
                f"This needs Ultralytics, which cannot be imported: {error}. See: lightbackbones doctor"
            ) from error
        level = LOGGER.level
        LOGGER.setLevel(logging.ERROR)
        try:
            yield
        finally:
            LOGGER.setLevel(level)


def read_yaml(model: str, scale: str | None, *, assume_first: bool = False) -> dict[str, Any]:
    """Read a model's configuration with Ultralytics' own loader, and choose its scale.

    If neither the name nor `scale` gives a letter, the only scale is taken. If there are several, `assume_first` takes
    the first, as Ultralytics does when it builds a model; otherwise it is an error.

    Raises:
        UserError: if there is no such model YAML, or it has no such scale.
    """
    from ultralytics.nn.tasks import guess_model_scale

    from yolo_lightbackbones import plugin
    from yolo_lightbackbones.configs import finding

    if Path(model).suffix not in {".yaml", ".yml"}:
        raise UserError(
            finding.explain_missing(model)
            or f"The model is {model}; give a model YAML, one of ours ({our_yamls(model)}) or a file of yours."
        )
    if "://" in model or model.startswith("ul:"):
        raise UserError(f"{model} is an address, and nothing is downloaded here. Give a file.")
    plugin.register()  # where autoload is off
    # `yolov5n_repvit.yaml` names the file `yolov5_repvit.yaml` at scale n; Ultralytics' loader knows that.
    path = Path(model)
    found = path if path.is_file() else finding.find_config(model)
    try:
        config = _load(str(found or model))
    except FileNotFoundError as error:
        raise UserError(
            finding.explain_missing(model)
            or f"There is no YAML {model}. Give a path, or one of ours, {our_yamls(model)}."
        ) from error
    except (TypeError, AttributeError) as error:  # raised by Ultralytics for a list or a single value
        raise UserError(f"{model} is not a model YAML: it is no mapping.") from error
    if "backbone" not in config:
        raise UserError(f"{model} is not a model YAML: it has no backbone.")
    untrusted.check_model(config, model)
    scales = config.get("scales")
    if scale is not None:
        if not isinstance(scales, Mapping) or scale not in scales:
            allowed = listed(scales) if isinstance(scales, Mapping) else "none"
            raise UserError(f"{model} has no scale {quoted(scale)}. Allowed: {allowed}.")
        config["scale"] = scale
    elif isinstance(scales, Mapping) and config.get("scale") not in scales:
        letter = guess_model_scale(model)
        if not letter and (assume_first or len(scales) == 1):
            config["scale"] = next(iter(scales))
            return config
        seen = f"{model} asks for scale {letter!r}, but it has" if letter else f"{model} has"
        raise UserError(f"{seen} the scales {listed(scales)}. Choose one with --scale.")
    return config


def _load(path: str) -> dict[str, Any]:
    """Load a model YAML with Ultralytics' own loader, which knows what file a name means; the file is checked first.

    A copy of the loader is called, whose global name `YAML` is a class that checks a file before it reads it.
    """
    from ultralytics.nn.tasks import yaml_model_load
    from ultralytics.utils import YAML

    class Checked:
        @staticmethod
        def load(file: Any, *args: Any, **kwargs: Any) -> Any:
            untrusted.check_file(Path(file))
            return YAML.load(file, *args, **kwargs)

    if not isinstance(yaml_model_load, types.FunctionType) or "YAML" not in yaml_model_load.__code__.co_names:
        raise UserError(
            "Model YAMLs cannot be read safely with this Ultralytics: its yaml_model_load is not the one that this "
            "plugin knows, or another package has replaced it. See: lightbackbones doctor"
        )
    names = {**yaml_model_load.__globals__, "YAML": Checked}
    own = types.FunctionType(yaml_model_load.__code__, names, "yaml_model_load", yaml_model_load.__defaults__)
    config: dict[str, Any] = own(path)
    return config


def our_yamls(wanted: str = "") -> str:
    """A text for errors: our model YAMLs with names most like the wanted one, and the folder of all of them."""
    from yolo_lightbackbones.configs import finding

    names = sorted(path.name for path in finding.model_yamls())
    close = difflib.get_close_matches(Path(wanted).name, names, n=4) or [n for n in names if n.startswith("yolo11_")]
    folders = ", ".join(map(str, finding.config_dirs()))
    return f"such as {', '.join(close)}; all {len(names)} are in {folders}"


def build(config: dict[str, Any], model: str, channels: int) -> Any:
    """Build a model with random weights, of the class that belongs to its head."""
    from ultralytics.nn import tasks

    from yolo_lightbackbones.plugin import pretrained, releases, row

    head = _head(config)
    config = pretrained.without(config)  # nothing is downloaded here
    task = tasks.guess_model_task(config)
    task, name = MODELS_OF_HEADS.get(str(head), (task, MODELS.get(task)))
    if name is None or head is None:
        raise UserError(
            f"The last row of {model} is no head for any of {', '.join(MODELS)}, semantic, depth. End it with Detect, "
            "Segment, Classify, Pose or OBB."
        )
    if not hasattr(tasks, name):
        raise UserError(f"{model} cannot be built: {releases.lacks(str(head))}")
    untrusted.check_cost(config, channels, model)
    try:
        net = getattr(tasks, name)(config, ch=channels, verbose=False)
    except row.ConfigError:
        raise
    except KeyError as error:  # raised by Ultralytics' parser for an unknown module
        unknown = error.args[0] if error.args else ""
        if unknown in row.modules(config):
            said = f"{model} names a module that neither Ultralytics nor this plugin has: {flow(unknown, 80)}"
        else:
            said = f"Ultralytics cannot build {model}: it lacks {quoted(unknown)}"
        raise UserError(said) from error
    except (
        TypeError,
        ValueError,
        IndexError,
        AttributeError,
        SyntaxError,
        AssertionError,
        ArithmeticError,
        RuntimeError,
        MemoryError,
    ) as error:
        raise UserError(f"Ultralytics cannot build {model}: {untrusted.shortened(error)}") from error
    net.task = task
    return net


def _head(config: dict[str, Any]) -> Any:
    """The module of the last row; None if there is no such row."""
    rows = config.get("head") or [[]]
    last = rows[-1] if isinstance(rows, list) else []
    return last[2] if isinstance(last, list) and len(last) > 2 and isinstance(last[2], str) else None


def backbones_of(net: Any, what: str) -> dict[int, Any]:
    """Find our backbones in a model of Ultralytics, which messages call `what`: row -> backbone, at least one.

    Raises:
        UserError: if there is none.
    """
    from yolo_lightbackbones import registry
    from yolo_lightbackbones.backbone import Backbone

    rows = getattr(net, "model", None) or ()
    found = {number: row for number, row in enumerate(rows) if isinstance(row, Backbone)}
    if not found:
        raise UserError(f"{what} has no backbone of ours, none of {', '.join(registry.families())}.")
    return found


def listed_backbones(backbones: Mapping[int, Any]) -> str:
    """A text for errors: rows and families of several backbones."""
    return listed(f"row {number} ({type(backbone).__name__})" for number, backbone in backbones.items())


def read_checkpoint(path: Path) -> Any:
    """Read the model of an Ultralytics checkpoint in float32, with its restricted loader: its classes, and ours.

    The loader gets a checked copy, see `checkpoints.modules`: no constructor is called, so nothing from the model's
    YAML is evaluated.
    """
    import torch
    from ultralytics.nn.tasks import torch_safe_load

    from yolo_lightbackbones.checkpoints import modules
    from yolo_lightbackbones.checkpoints.archives import UnreadableError

    shown = printable(str(path))
    with tempfile.TemporaryDirectory() as folder:
        # The copy has a neutral name: Ultralytics downloads files named like its own checkpoints, removes such files if
        # they are damaged, and rewrites names.
        place = Path(folder, "checkpoint.pt")
        try:
            modules.copy_checked(path, place)
            checkpoint, _ = torch_safe_load(str(place), safe_only=True)
        except UnreadableError as error:
            raise UserError(f"{shown} is an Ultralytics checkpoint that cannot be read safely: it {error}") from error
        except Exception as error:  # of many kinds; the message gives the reason
            reason = f"it holds {listed(classes)}" if (classes := _not_allowed(place)) else _first_line(error)
            reason = reason.replace(str(place), shown)
            raise UserError(f"{shown} is an Ultralytics checkpoint that cannot be read safely: {reason}") from error
    nets = [checkpoint.get(name) for name in ("ema", "model")] if isinstance(checkpoint, Mapping) else []
    net = next((net for net in nets if isinstance(net, torch.nn.Module)), None)
    if net is None:
        raise UserError(f"{shown} is an Ultralytics checkpoint without a model.")
    if not _is_tree(net):
        raise UserError(
            f"{shown} is an Ultralytics checkpoint whose model contains itself, or things that are no layers."
        )
    try:
        return net.float()
    except Exception as error:  # of any kind: Ultralytics' own conversion looks into the rows
        raise UserError(f"{shown} is an Ultralytics checkpoint that is damaged: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return flow(lines[0], 500)


def _is_tree(net: Any, deepest: int = 100, most: int = 100_000) -> bool:
    """Whether a walk through all parts of a module ends soon: torch's own visits a part once for every path to it."""
    import torch

    waiting = [(net, 0)]
    for _ in range(most):
        if not waiting:
            return True
        module, depth = waiting.pop()
        parts = vars(module) if isinstance(module, torch.nn.Module) else {}
        if depth > deepest or not all(isinstance(parts.get(n), dict) for n in ("_modules", "_parameters", "_buffers")):
            return False
        waiting += [(part, depth + 1) for part in parts["_modules"].values() if part is not None]
    return False


def _not_allowed(path: Path) -> list[str]:
    """Names of the pickled classes that the restricted loader, which has just failed, does not allow."""
    import torch

    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # of nearly any kind, if the file is damaged
        return []

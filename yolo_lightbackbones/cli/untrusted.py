"""Checks model YAMLs of unknown origin: refuses what would make Ultralytics run code, use the network or never end.

When Ultralytics builds a model from a YAML, it evaluates `activation` as Python. It calls whatever the module
`ultralytics.nn.tasks` has under the name in a row; that may be a function that installs packages or unpickles a file.
For rows of `TorchVision` it downloads torchvision's weights.
"""

from __future__ import annotations

import ast
import copy
import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from yolo_lightbackbones.cli.common import UserError
from yolo_lightbackbones.messages import flow, printable, quoted

LARGEST_FILE = 1_000_000
"""Largest YAML, in bytes; the bundled ones have under 5,000."""

_MOST_PARAMETERS = 100_000  # of an activation; PReLU has one per channel
_MOST_DECODER_LAYERS = 100  # RT-DETR has 6
_MOST_LAYERS = 50_000  # the largest bundled model has under 3,000
_LARGEST_MODEL = 1_000_000_000  # parameters; the largest bundled model has 253 million
_LARGEST_MAP = 1_000_000_000  # values, for an image of 256 x 256
_PLACES = ("torch.nn.modules.", "torchvision.ops.", "ultralytics.nn.modules.")
"""Modules with the layers that a row may name, besides ours."""


def check_file(path: Path) -> None:
    """Refuse a file that is not a YAML, or that would take memory or time without limit.

    Raises:
        UserError: for anything but a YAML of up to `LARGEST_FILE` bytes with values that are within bounds.
    """
    import yaml

    from yolo_lightbackbones import bounds

    if not path.is_file():
        raise UserError(f"{path} is no file.")
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise UserError(f"{path} has more than {LARGEST_FILE:,} bytes; a model YAML has a few thousand.")
    misread = (yaml.YAMLError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError)
    text = content.decode(errors="ignore")  # as Ultralytics reads it
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # makes plain values only
    try:
        _check_nesting(yaml.parse(text, Loader=loader), bounds.DEEPEST)
        # Checked on nodes, before keys are merged (`<<: *a`): aliases multiply merged keys as well.
        bounds.extent(yaml.compose(text, Loader=loader), {}, inside=_inside)
        yaml.load(text, Loader=loader)  # nosec B506
    except bounds.BoundsError as error:
        raise UserError(f"{path} is refused: {error}") from None
    except misread as error:  # `!!timestamp x` is an AttributeError of PyYAML, `!!bool x` a KeyError
        raise UserError(f"{path} is not a YAML file: {shortened(error)}") from error


def _check_nesting(events: Iterable[Any], deepest: int) -> None:
    """Refuse deep nesting before recursive code reads the file."""
    from yolo_lightbackbones.bounds import BoundsError

    depth = 0
    for event in events:
        kind = type(event).__name__
        depth += kind.endswith("StartEvent")
        depth -= kind.endswith("EndEvent")
        if depth > deepest + 2:  # the stream and the document
            raise BoundsError(f"it is nested deeper than {deepest} levels. Write it flat.")


def _inside(node: Any) -> Iterable[Any] | None:
    """The nodes inside a node of a YAML; None for a single value."""
    if isinstance(getattr(node, "value", None), list):
        return [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
    return None


def check_model(config: Mapping[str, Any], name: str) -> None:
    """Refuse a model config that would run code, use the network or never end when the model is built.

    Raises:
        UserError: for an activation that is more than a layer of torch.nn, and for modules that are not layers.
        ConfigError: for values that are out of bounds.
    """
    from yolo_lightbackbones.plugin import limits

    limits.check_bounds(config)
    check_activation(config.get("activation"), name)
    number = 0
    for part in ("backbone", "head"):
        listed = config.get(part)
        for row in listed if isinstance(listed, list | tuple) else []:
            if isinstance(row, list | tuple) and len(row) > 2 and isinstance(row[2], str):
                _check_module(row[2], f"{name}, row {number} {flow(row)}")
                _check_decoder(row, f"{name}, row {number} {flow(row)}")
            number += 1


def check_activation(activation: Any, name: str) -> None:
    """Refuse an activation that is not a plain call such as `torch.nn.LeakyReLU(0.1)`: Ultralytics runs it as Python.

    Raises:
        UserError: if it is not such a call; the message says what may be written.
    """
    if not activation:
        return
    if not isinstance(activation, str) or not _is_activation(activation):
        raise UserError(
            f"{name}: activation is {quoted(activation)}, which Ultralytics would run as Python. Write an activation "
            "of torch.nn, with plain values if it takes any, such as nn.SiLU() or torch.nn.LeakyReLU(0.1)."
        )


def _is_activation(text: str) -> bool:
    from torch import nn

    if len(text) > 100 or not text.isascii() or not text.isprintable():
        return False
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return False
    if ast.unparse(call.func.value) not in {"nn", "torch.nn"}:
        return False
    cls = getattr(nn, call.func.attr, None)
    if not isinstance(cls, type) or (cls.__module__ != "torch.nn.modules.activation" and cls is not nn.Identity):
        return False
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    return cls is not nn.MultiheadAttention and all(map(_is_plain, values)) and _can_be_made(cls, call)


def _is_plain(value: ast.expr) -> bool:
    """Whether an expression is a number, a truth value, None, or a text such as GELU's `"tanh"`."""
    if isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.USub):
        value = value.operand
    return isinstance(value, ast.Constant) and isinstance(value.value, int | float | str | None)


def _can_be_made(cls: type[Any], call: ast.Call) -> bool:
    """Whether the layer accepts these values; tried on the meta device, since PReLU may be told any size."""
    import torch

    try:
        arguments = [ast.literal_eval(value) for value in call.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        with torch.device("meta"):
            layer = cls(*arguments, **named)
    except (TypeError, ValueError, RuntimeError, AssertionError):
        return False
    return sum(int(parameter.numel()) for parameter in layer.parameters()) < _MOST_PARAMETERS


def _check_module(module: str, where: str) -> None:
    import torch
    from ultralytics.nn import tasks

    from yolo_lightbackbones import registry

    if module in registry.families():
        return
    if module.startswith("nn."):
        found = getattr(torch.nn, module[3:], None)
    elif module.startswith("torchvision.ops."):
        found = getattr(importlib.import_module("torchvision.ops"), module[16:], None)
    else:
        found = vars(tasks).get(module)
    if found is None:  # an error when the model is built
        return
    if module == "TorchVision":
        raise UserError(
            f"{where}: TorchVision downloads weights while the model is built. Train such a model with `yolo`, or give "
            "a YAML without this row."
        )
    place = getattr(found, "__module__", None) or ""
    is_layer = isinstance(found, type) and issubclass(found, torch.nn.Module)
    if not is_layer or not place.startswith(_PLACES):
        raise UserError(
            f"{where}: {flow(module, 80)} is no layer of Ultralytics, torch.nn or this plugin, and a row that names it "
            "would run it. Give a YAML whose rows name layers."
        )


def _check_decoder(row: Sequence[Any], where: str) -> None:
    """Refuse too many decoder layers: Ultralytics copies them one by one, which `check_cost` does not see."""
    if row[2] != "RTDETRDecoder" or len(row) < 4 or not isinstance(row[3], list):
        return
    count = row[3][5] if len(row[3]) > 5 else 6
    if not isinstance(count, int) or count > _MOST_DECODER_LAYERS:
        raise UserError(
            f"{where}: the sixth argument, the number of decoder layers, is {quoted(count)}; it must be a whole "
            f"number, at most {_MOST_DECODER_LAYERS}."
        )


def check_cost(config: Mapping[str, Any], channels: int, name: str) -> None:
    """Refuse a model that needs more memory than any real detector: first build it and run it on the meta device.

    Any other error here is ignored: it comes again, with its own message, when the model is really built.

    Raises:
        UserError: naming what is too large.
    """
    import torch
    from torch.nn.modules import module as hooks
    from ultralytics.nn import tasks

    layers = parameters = 0

    def refuse(what: str) -> None:
        raise UserError(f"{name} describes a model with {what}. Its numbers are mistaken; write smaller ones.")

    def count_layers(*_: Any) -> None:
        nonlocal layers
        layers += 1
        if layers > _MOST_LAYERS:
            refuse(f"more than {_MOST_LAYERS:,} layers")

    def count_parameters(_module: Any, _name: str, parameter: Any) -> None:
        nonlocal parameters
        parameters += parameter.numel() if parameter is not None else 0
        if parameters > _LARGEST_MODEL:
            refuse(f"more than {_LARGEST_MODEL:,} parameters")

    def check_map(module: Any, _inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.numel() > _LARGEST_MAP:
            refuse(f"a feature map of {output.numel():,} values, from {type(module).__name__}")

    handles = [
        hooks.register_module_module_registration_hook(count_layers),
        hooks.register_module_parameter_registration_hook(count_parameters),
        hooks.register_module_forward_hook(check_map),
    ]
    try:
        with torch.device("meta"), torch.no_grad():
            net = tasks.BaseModel()
            net.model, net.save = tasks.parse_model(copy.deepcopy(dict(config)), ch=channels, verbose=False)
            net.eval()
            for layer in net.model:
                layer.training = True  # so heads give feature maps and read no values; norms inside stay in eval mode
            net(torch.zeros(1, channels, 256, 256))  # the size at which Ultralytics computes the strides
    except UserError:
        raise
    except Exception:  # of any kind, from Ultralytics or torch
        return
    finally:
        for handle in handles:
            handle.remove()


def shortened(error: BaseException) -> str:
    """The message of another library's error, as one line of limited length."""
    text = " ".join(str(error)[:2000].split())
    return flow(printable(text), 400)

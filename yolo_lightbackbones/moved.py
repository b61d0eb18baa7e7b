"""What checkpoints rely on: the module paths of the classes that they pickle, and where earlier paths lead.

A checkpoint of Ultralytics (`best.pt`) holds a model as a tree of objects, each with its class by module and name. So a
class that moves needs an entry in `MOVED`, or files made before do not load any more. docs/design.md lists the paths.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from torch import nn

PACKAGE = __name__.rpartition(".")[0]

MOVED: Mapping[str, str] = {
    # layers.py has become a package
    "layers.BatchNorm2d": "layers.norms.BatchNorm2d",
    "layers.ConvNorm": "layers.conv_norm.ConvNorm",
    "layers.DropPath": "layers.drop_path.DropPath",
    "layers.LayerNorm2d": "layers.norms.LayerNorm2d",
    # what backbone.py had besides the contract
    "backbone.InputNorm": "input_norm.InputNorm",
    "backbone.Stage": "stages.Stage",
    "backbone.TapNorm": "tap_norms.TapNorm",
    "backbone.TapNorms": "tap_norms.TapNorms",
    # what ParC-Net shares with other families
    "backbones.parcnet.CircularConv": "layers.circular.CircularConv",
    "backbones.parcnet.FoldedParCBranch": "layers.parc.FoldedParCBranch",
    "backbones.parcnet.InvertedResidual": "layers.inverted_residual.InvertedResidual",
    "backbones.parcnet.ParCBranch": "layers.parc.ParCBranch",
    "backbones.parcnet.PooledBatchNorm2d": "layers.norms.BatchNorm2d",
    "backbones.parcnet.PositionEmbedding": "layers.position.PositionEmbedding",
    # the row of a family's blocks is beside them, and each block is called as in model YAMLs
    "blocks.RepViTBlocks": "backbones.repvit.RepViTBlocks",
    "blocks.LGLBlocks": "backbones.edgevit.LGLBlocks",
    "blocks.ParCBlocks": "backbones.parcnet.ParCBlocks",
    "blocks.ConvModBlocks": "backbones.conv2former.ConvModBlocks",
    "backbones.conv2former.Conv2FormerBlock": "backbones.conv2former.ConvModBlock",
}
"""Earlier path of a class -> its path now, both within the package."""

_PLACES = ("input_norm", "tap_norms", "stages", "blocks", "layers", "backbones")
"""Modules and packages whose layers a checkpoint may pickle."""


def find(module: str, name: str) -> Any:
    """The class that was called `name` in `module`, for the `__getattr__` of a module that classes have left.

    Raises:
        AttributeError: if there was none.
    """
    now = MOVED.get(f"{module.removeprefix(PACKAGE + '.')}.{name}")
    if now is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return _load(now)


def pickled_classes(others: Iterable[type[nn.Module]] = ()) -> dict[str, type[nn.Module]]:
    """Dotted path -> layer, for every layer of ours that a checkpoint may pickle.

    Args:
        others: classes of other packages, whose modules may have more layers.
    """
    modules = [*_modules(), *(sys.modules[cls.__module__] for cls in others)]
    return {
        f"{cls.__module__}.{cls.__qualname__}": cls
        for module in modules
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ == module.__name__
    }


def safe_globals(others: Iterable[type[nn.Module]] = ()) -> list[Any]:
    """The same for `torch.serialization.add_safe_globals`: classes, and pairs of a class and an earlier path of it."""
    return [
        *pickled_classes(others).values(),
        *((_load(now), f"{PACKAGE}.{earlier}") for earlier, now in MOVED.items()),
    ]


def _load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)


def _modules() -> Iterator[ModuleType]:
    for place in _PLACES:
        module = importlib.import_module(f"{PACKAGE}.{place}")
        yield module
        for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
            yield importlib.import_module(f"{module.__name__}.{found.name}")

"""Module paths of the classes in checkpoints: the present paths, and aliases for earlier ones.

A checkpoint of Ultralytics (`best.pt`) pickles a model as a tree of objects, and each object by the module and name of
its class. So a class that moves needs an entry in `MOVED`; without it, older files no longer load. docs/design.md lists
the paths.
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
    # backbone.py keeps only the contract
    "backbone.InputNorm": "input_norm.InputNorm",
    "backbone.Stage": "stages.Stage",
    "backbone.TapNorm": "tap_norms.TapNorm",
    "backbone.TapNorms": "tap_norms.TapNorms",
    # layers that ParC-Net shares with other families
    "backbones.parcnet.CircularConv": "layers.circular.CircularConv",
    "backbones.parcnet.FoldedParCBranch": "layers.parc.FoldedParCBranch",
    "backbones.parcnet.InvertedResidual": "layers.inverted_residual.InvertedResidual",
    "backbones.parcnet.ParCBranch": "layers.parc.ParCBranch",
    "backbones.parcnet.PooledBatchNorm2d": "layers.norms.BatchNorm2d",
    "backbones.parcnet.PositionEmbedding": "layers.position.PositionEmbedding",
    # a layer that Conv2Former shares with ConvNeXt
    "backbones.conv2former.Downsample": "layers.downsample.Downsample",
    # rows of blocks are in the file of their family, and each block has its name of model YAMLs
    "blocks.RepViTBlocks": "backbones.repvit.RepViTBlocks",
    "blocks.LGLBlocks": "backbones.edgevit.LGLBlocks",
    "blocks.ParCBlocks": "backbones.parcnet.ParCBlocks",
    "blocks.ConvModBlocks": "backbones.conv2former.ConvModBlocks",
    "backbones.conv2former.Conv2FormerBlock": "backbones.conv2former.ConvModBlock",
}
"""Earlier path of a class -> its present path, both relative to the package."""

_PLACES = ("input_norm", "tap_norms", "stages", "blocks", "layers", "backbones")
"""Modules and packages whose layers a checkpoint may pickle."""


def find(module: str, name: str) -> Any:
    """Find a class by its earlier module and name, for the `__getattr__` of a module that classes were moved out of.

    Raises:
        AttributeError: if no class had that name there.
    """
    now = MOVED.get(f"{module.removeprefix(PACKAGE + '.')}.{name}")
    if now is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return _load(now)


def pickled_classes(others: Iterable[type[nn.Module]] = ()) -> dict[str, type[nn.Module]]:
    """List every layer of ours that a checkpoint may pickle: dotted path -> class.

    Args:
        others: classes of other packages; all layers in what is loaded of their packages are included.
    """
    packages = {cls.__module__.partition(".")[0] for cls in others} - {PACKAGE}
    loaded = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] in packages]
    modules = [*_modules(), *(module for module in loaded if isinstance(module, ModuleType))]
    return {
        f"{cls.__module__}.{cls.__qualname__}": cls
        for module in modules
        for cls in list(vars(module).values())
        if isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ == module.__name__
    }


def safe_globals(others: Iterable[type[nn.Module]] = ()) -> list[Any]:
    """Arguments for `torch.serialization.add_safe_globals`: the classes, and pairs of a class and its earlier path."""
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

"""Makes our classes known: to Ultralytics' parser by name, and to the restricted loading of checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from types import ModuleType

import torch
from torch import nn

from yolo_lightbackbones import backbone, blocks, layers, registry
from yolo_lightbackbones.plugin.patching import Patches


def publish(patches: Patches, tasks: ModuleType) -> None:
    """Put all families where Ultralytics' parser looks up names, and allow a checkpoint to hold them.

    Torch goes on to know the classes as safe to load when the patches come off.
    """
    new = {name: cls for name, cls in registry.families().items() if not hasattr(tasks, name)}
    for name, cls in new.items():
        patches.publish(tasks, name, cls)
    torch.serialization.add_safe_globals(list(_module_classes(new.values())))


def _module_classes(families: Iterable[type[backbone.Backbone]]) -> Iterator[type[nn.Module]]:
    """Every layer that a checkpoint with these families or with blocks may pickle."""
    modules = [backbone, blocks, layers, *(sys.modules[cls.__module__] for cls in families)]
    for module in modules:
        for cls in vars(module).values():
            if isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ == module.__name__:
                yield cls

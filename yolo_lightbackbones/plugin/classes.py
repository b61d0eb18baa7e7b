"""Makes our classes known to Ultralytics' parser (by name) and to torch's restricted loading of checkpoints."""

from __future__ import annotations

import warnings
from types import ModuleType

import torch

from yolo_lightbackbones import moved, registry
from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.blocks import BlockRow
from yolo_lightbackbones.plugin.patching import Patches
from yolo_lightbackbones.plugin.row import TAP


def families(tasks: ModuleType) -> dict[str, type[Backbone]]:
    """The families that rows of model YAMLs can name: those whose names have no other meaning there."""
    return {name: cls for name, cls in registry.families().items() if clash(tasks, name, cls) is None}


def block_rows(tasks: ModuleType) -> dict[str, type[BlockRow]]:
    """The rows of blocks that model YAMLs can name."""
    return {name: row for name, row in registry.block_rows().items() if clash(tasks, name) is None}


def clash(tasks: ModuleType, name: str, cls: type | None = None) -> str | None:
    """Explain what else a module of model YAMLs means with this name; None if nothing.

    Args:
        tasks: `ultralytics.nn.tasks`.
        name: name of a family's class or of a row of blocks.
        cls: the class that `publish` puts there by this name; rows of blocks are never put there.
    """
    if name == TAP and cls is not None:
        return f"{TAP} rows are taps"
    held = getattr(tasks, name, cls)
    return None if held is cls else f"ultralytics.nn.tasks has a {name} of its own"


def publish(patches: Patches, tasks: ModuleType) -> None:
    """Put all families where Ultralytics' parser looks up names, and let torch load them from checkpoints.

    Torch still treats the classes as safe to load after the patches are removed.
    """
    for name, cls in {**registry.families(), **dict.fromkeys(registry.block_rows())}.items():
        if problem := clash(tasks, name, cls):  # of another package: `fit` refuses clashes of ours
            warnings.warn(f"Rows of model YAMLs cannot name {name}: {problem}. Rename the class.", stacklevel=2)
    new = {name: cls for name, cls in families(tasks).items() if not hasattr(tasks, name)}
    for name, cls in new.items():
        patches.publish(tasks, name, cls)
    torch.serialization.add_safe_globals(moved.safe_globals(new.values()))

"""Makes our classes known to Ultralytics' parser (by name) and to torch's restricted loading of checkpoints."""

from __future__ import annotations

from types import ModuleType

import torch

from yolo_lightbackbones import moved, registry
from yolo_lightbackbones.plugin.patching import Patches


def publish(patches: Patches, tasks: ModuleType) -> None:
    """Put all families where Ultralytics' parser looks up names, and let torch load them from checkpoints.

    Torch still treats the classes as safe to load after the patches are removed.
    """
    new = {name: cls for name, cls in registry.families().items() if not hasattr(tasks, name)}
    for name, cls in new.items():
        patches.publish(tasks, name, cls)
    torch.serialization.add_safe_globals(moved.safe_globals(new.values()))

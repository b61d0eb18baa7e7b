"""Light backbones for Ultralytics YOLO: EdgeViT, ParC-Net, RepViT and Conv2Former as modules of model YAMLs.

Importing this package imports neither torch nor Ultralytics nor a family; each name below is imported when first used.
"""

TYPE_CHECKING = (
    False  # not from typing: this file runs at every interpreter start, and imports would be most of its cost
)
if TYPE_CHECKING:
    from typing import Any

    from yolo_lightbackbones.backbone import Backbone as Backbone
    from yolo_lightbackbones.checkpoints.engine import LoadReport as LoadReport
    from yolo_lightbackbones.checkpoints.engine import load_weights as load_weights
    from yolo_lightbackbones.fusion import fuse as fuse
    from yolo_lightbackbones.options import Options as Options
    from yolo_lightbackbones.plugin import register as register
    from yolo_lightbackbones.plugin import unregister as unregister
    from yolo_lightbackbones.registry import create_backbone as create_backbone
    from yolo_lightbackbones.registry import list_backbones as list_backbones
    from yolo_lightbackbones.registry import register_backbone as register_backbone
    from yolo_lightbackbones.stages import Stage as Stage
    from yolo_lightbackbones.stages import StagedBackbone as StagedBackbone

__version__ = "0.1.0"

_HOME = {
    "Backbone": "backbone",
    "LoadReport": "checkpoints.engine",
    "Options": "options",
    "Stage": "stages",
    "StagedBackbone": "stages",
    "create_backbone": "registry",
    "fuse": "fusion",
    "list_backbones": "registry",
    "load_weights": "checkpoints.engine",
    "register": "plugin",
    "register_backbone": "registry",
    "unregister": "plugin",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604  (every entry is a string)


def __getattr__(name: str) -> "Any":
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

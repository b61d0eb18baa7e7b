"""The plugin for Ultralytics: all code that knows its names, rows, optimizer groups, export formats and files.

Importing this package imports neither torch nor Ultralytics, because the YAML look-up (`lookup.py`) is needed earlier.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolo_lightbackbones.plugin.fit import Seam as Seam
    from yolo_lightbackbones.plugin.fit import seams as seams
    from yolo_lightbackbones.plugin.install import is_registered as is_registered
    from yolo_lightbackbones.plugin.install import register as register
    from yolo_lightbackbones.plugin.install import unregister as unregister
    from yolo_lightbackbones.plugin.releases import TESTED_VERSIONS as TESTED_VERSIONS
    from yolo_lightbackbones.plugin.releases import is_tested as is_tested

_HOME = {
    "TESTED_VERSIONS": "releases",
    "Seam": "fit",
    "is_registered": "install",
    "is_tested": "releases",
    "register": "install",
    "seams": "fit",
    "unregister": "install",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

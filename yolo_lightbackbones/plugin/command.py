"""The `yolo` command: mistakes in YAMLs, and what stops QAT or raw heads, are shown as one sentence each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from yolo_lightbackbones.plugin.quantising import QuantisingError
from yolo_lightbackbones.plugin.raw_files import RawHeadError
from yolo_lightbackbones.plugin.row import ConfigError


def runs_here() -> bool:
    """Whether this process is the `yolo` command."""
    entry_point = getattr(sys.modules.get("__main__"), "entrypoint", None)
    return getattr(entry_point, "__module__", None) == "ultralytics.cfg"


def excepthook(original: Callable[..., Any]) -> Callable[..., Any]:
    """A replacement for `sys.excepthook` that prints our own errors as one line, and passes on all others."""

    def excepthook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if isinstance(error, ConfigError | QuantisingError | RawHeadError):
            print(f"yolo_lightbackbones: {error}", file=sys.stderr)
        else:
            original(kind, error, trace)

    return excepthook

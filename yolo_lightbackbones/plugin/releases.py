"""The releases of Ultralytics that the plugin was tested with, and the release that is imported."""

from __future__ import annotations

import re
import sys
import warnings

TESTED_VERSIONS = "8.4.150 to 8.4.190"
"""Releases of Ultralytics that `tests/test_plugin.py` passes with; the whole suite passes with the last one."""


def is_tested(version: str) -> bool:
    """Whether this release of Ultralytics is within `TESTED_VERSIONS`."""
    first, last, given = (
        tuple(map(int, re.findall(r"\d+", text)[:3])) for text in (*TESTED_VERSIONS.split(" to "), version)
    )
    return first <= given <= last


def version() -> str:
    """The imported release of Ultralytics, for messages."""
    return str(getattr(sys.modules.get("ultralytics"), "__version__", "(unknown version)"))


def lacks(module: str) -> str:
    """A sentence for a module of `configs.necks` that the imported release does not have."""
    return (
        f"Ultralytics {version()} has no {module}. Tested with {TESTED_VERSIONS}; install that, or choose another neck "
        "or head."
    )


def warn_without(feature: str, problem: str) -> None:
    """Warn that one feature is off, because a place in Ultralytics that only this feature needs does not fit."""
    warnings.warn(
        f"yolo_lightbackbones does not fit Ultralytics {version()} in one place: {problem}. Without it there is "
        f"{feature}; everything else works. Tested with {TESTED_VERSIONS}; install that, or a newer "
        f"yolo_lightbackbones.",
        stacklevel=3,
    )

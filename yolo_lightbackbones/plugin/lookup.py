"""Lets Ultralytics find our YAMLs by name; imports neither torch nor a family.

`ultralytics.utils.checks.check_file` finds every file that a user names: models, data sets, recipes (`cfg=`), trackers.
The `yolo` command calls it for `cfg=` before it imports any model, so the look-up is installed as soon as `checks` is
imported.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from yolo_lightbackbones.configs import finding
from yolo_lightbackbones.plugin.patching import Patches

MODULE, FUNCTION = "ultralytics.utils.checks", "check_file"

_patches = Patches("ultralytics")
_lock = threading.RLock()


def install(checks: ModuleType) -> None:
    """Install the look-up on `checks`. A second call changes nothing, and neither does one without `check_file`."""
    with _lock:
        if not callable(getattr(checks, FUNCTION, None)):
            return
        try:
            _patches.replace(checks, FUNCTION, _check_file)
        except BaseException:
            _patches.remove()
            raise
        _patches.active = True


def remove() -> None:
    """Remove the look-up from `checks`."""
    with _lock:
        _patches.remove()


def _check_file(original: Callable[..., Any]) -> Callable[..., Any]:
    def check_file(file: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            found = original(file, *args, **kwargs)
        except FileNotFoundError as error:
            if (bundled := finding.find_config(file)) is not None:
                return str(bundled)
            if (meant := finding.explain_missing(file)) is not None:
                raise FileNotFoundError(meant) from error
            raise
        if found or (bundled := finding.find_config(file)) is None:
            return found
        return str(bundled)

    return check_file

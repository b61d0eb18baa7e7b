"""Finds the model and dataset YAMLs that come with the package."""

from __future__ import annotations

import re
from pathlib import Path, PurePath

_PACKAGE = Path(__file__).resolve().parent


def config_dir() -> Path:
    """The folder of our YAMLs: inside an installed package, or at the top of a checkout for an editable install."""
    installed = _PACKAGE / "cfg"
    return installed if installed.is_dir() else _PACKAGE.parent / "cfg"


def find_config(name: str | PurePath) -> Path | None:
    """The YAML of that name, or None.

    A bare file name is looked for in all of our folders; a name with folders must be ours from `cfg/` on, so that a
    mistyped path of the user's own is never answered with a file of ours.
    """
    path = PurePath(str(name))
    if path.suffix not in {".yaml", ".yml"} or path.is_absolute():
        return None
    root = config_dir()
    if path.parts[0] == "cfg" and len(path.parts) > 1:
        path = PurePath(*path.parts[1:])
        found = root / path
        return found if found.is_file() else None
    if len(path.parts) > 1:
        return None
    return next((found for found in sorted(root.rglob("*")) if found.name == path.name), None)


def scaled_name(name: str, letter: str) -> str:
    """How Ultralytics is asked for a scale, in the name of a YAML: `yolov5_repvit.yaml` and n, `yolov5n_repvit.yaml`.

    A name that does not begin like Ultralytics' own has no place for a letter, and stays as it is.
    """
    return re.sub(r"^(yolov?\d+)", rf"\g<1>{letter}", name)

"""Puts the autoload file into editable installs, too: hatchling's `force-include` serves ordinary wheels alone."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

AUTOLOAD = "yolo_lightbackbones_autoload.pth"


class AutoloadHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            build_data["force_include_editable"][AUTOLOAD] = AUTOLOAD

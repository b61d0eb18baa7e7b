"""Replaces functions of a package by ours, and restores them; uses only the standard library.

It is loaded together with Ultralytics' `checks`, even where torch is not needed, so its import must stay cheap.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class Patches:
    """All patches on one package. Each is applied only once, and all are removed together.

    Args:
        package: name of the package; functions are replaced in all of its modules.
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self.active = False
        """Whether our functions run. While this is false, every call of one of them runs the original."""
        self._undo: list[Callable[[], None]] = []

    def keep(self, undo: Callable[[], None]) -> None:
        """Remember how to remove the next patch. `undo` must not fail if the patch is gone already."""
        self._undo.append(undo)

    def remove(self) -> None:
        """Remove all patches, the last one first. Patches that others have put on top since then stay.

        Raises:
            Exception: the error of a removal, after all other patches are removed.
        """
        self.active = False
        with contextlib.ExitStack() as undone:
            for undo in self._undo:
                undone.callback(undo)
            self._undo.clear()

    def set(
        self, owner: type | ModuleType, name: str, wrap: Callable[[Any], Callable[..., Any]], home: ModuleType
    ) -> None:
        """Replace a function of `owner`, a class in the module `home` or `home` itself, by `wrap(function)`."""
        original = getattr(owner, name)
        if not self._is_wanted(original, home):
            return
        ours = self._while_active(original, wrap(original))

        def undo() -> None:
            if getattr(owner, name, None) is ours:
                setattr(owner, name, original)

        self.keep(undo)
        setattr(owner, name, ours)

    def replace(self, home: ModuleType, name: str, wrap: Callable[[Any], Callable[..., Any]]) -> None:
        """Replace a function of `home` by `wrap(function)` in all loaded modules of the package.

        Later imports get the replacement, too.
        """
        original = getattr(home, name)
        if not self._is_wanted(original, home):
            return
        ours = self._while_active(original, wrap(original))
        self.keep(functools.partial(self._exchange, ours, original))
        self._exchange(original, ours)

    def publish(self, home: ModuleType, name: str, value: Any) -> None:
        """Add a name to the module `home`, if it does not have that name."""
        if hasattr(home, name):
            return

        def undo() -> None:
            if getattr(home, name, None) is value:
                delattr(home, name)

        self.keep(undo)
        setattr(home, name, value)

    def enlist(self, listed: list[Any], value: Any) -> None:
        """Append `value` to a list of the package, once."""
        if value in listed:
            return

        def undo() -> None:
            if value in listed:  # unless somebody has cleared the list
                listed.remove(value)

        self.keep(undo)
        listed.append(value)

    def _is_wanted(self, function: Any, home: ModuleType) -> bool:
        """Whether the patch must be applied: it is not there, and nobody else has replaced the function since.

        A reloaded module has its own functions again.
        """
        return not is_ours(function) and (not self.active or getattr(function, "__globals__", None) is vars(home))

    def _while_active(self, original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            return (ours if self.active else original)(*args, **kwargs)

        return call

    def _exchange(self, old: Any, new: Any) -> None:
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] == self.package:
                held = getattr(module, "__dict__", {})  # an entry of None blocks the import of a module
                for attribute in [key for key, value in list(held.items()) if value is old]:
                    setattr(module, attribute, new)


def is_ours(function: Any) -> bool:
    """Whether a function was put there by `Patches`, even if others have wrapped it since."""
    return unpatched(function) is not function


def unpatched(function: Any) -> Any:
    """Return the original of a function that `Patches` put there; any other function is returned unchanged."""
    below = function
    while below is not None:
        if getattr(below, "__globals__", None) is globals():
            return below.__wrapped__
        below = getattr(below, "__wrapped__", None)
    return function

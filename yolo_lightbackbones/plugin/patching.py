"""Puts functions of ours in the place of a package's own, and takes them off again; the standard library only.

It is loaded together with Ultralytics' `checks`, before torch may be wanted: importing it must stay cheap.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class Patches:
    """All patches on one package. Each goes on only once, and all come off together.

    Args:
        package: name of the package; functions are replaced in all of its modules.
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self.active = False
        """Whether ours run. Until then, and after `remove`, whoever holds a function of ours gets the original."""
        self._undo: list[Callable[[], None]] = []

    def keep(self, undo: Callable[[], None]) -> None:
        """Remember how to take off what is put on next. `undo` must not fail if it is gone already."""
        self._undo.append(undo)

    def remove(self) -> None:
        """Take everything off, the last first. What others have put on top since stays.

        Raises:
            Exception: what taking something off raises, after everything else is off.
        """
        self.active = False
        with contextlib.ExitStack() as undone:
            for undo in self._undo:
                undone.callback(undo)
            self._undo.clear()

    def set(
        self, owner: type | ModuleType, name: str, wrap: Callable[[Any], Callable[..., Any]], home: ModuleType
    ) -> None:
        """Replace a function of `owner`, a class of the module `home` or itself, by what `wrap` makes of it."""
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
        """Replace a function of `home` in every loaded module of the package that holds it; later imports get ours."""
        original = getattr(home, name)
        if not self._is_wanted(original, home):
            return
        ours = self._while_active(original, wrap(original))
        self.keep(functools.partial(self._exchange, ours, original))
        self._exchange(original, ours)

    def publish(self, home: ModuleType, name: str, value: Any) -> None:
        """Give `home` a name that it does not have."""
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
        """Whether ours has to be put on: it is not there, and nobody else has replaced it since.

        A module that was executed anew has functions of its own again.
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
                held = getattr(module, "__dict__", {})  # None is a module that must not be imported
                for attribute in [key for key, value in list(held.items()) if value is old]:
                    setattr(module, attribute, new)


def is_ours(function: Any) -> bool:
    """Whether the function is one that `Patches` put there, whatever others have wrapped around it since."""
    return unpatched(function) is not function


def unpatched(function: Any) -> Any:
    """The original of a function that `Patches` put there; any other function itself."""
    below = function
    while below is not None:
        if getattr(below, "__globals__", None) is globals():
            return below.__wrapped__
        below = getattr(below, "__wrapped__", None)
    return function

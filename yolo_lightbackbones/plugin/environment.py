"""Exports leave the user's environment alone: they install nothing, change no package, and use no network.

Converters, and Ultralytics before it calls them, run `pip install`, download files and report to their makers. While a
step of an export of a model with our modules runs, its thread, and the threads that it starts, may not do that. Python
reports such acts to an audit hook before they happen; ours refuses them. Other threads, other models and everything
else that the process does are left as they are.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import os
import re
import secrets
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from yolo_lightbackbones.messages import printable
from yolo_lightbackbones.plugin import formats, refusals

UNCHECKED = "no list of what an export lacks"
_ALONE = (
    "an export of a model with modules of yolo_lightbackbones installs nothing, changes no package and uses no network"
)


class RefusedError(OSError):
    """An export wanted to install or change a package, or to use the network."""


class _Export:
    """What one export may not do, and what it asked for.

    Args:
        format: Ultralytics' name of the format.
        folder: the folder that the export writes to. If it is among the installed packages, files there may change.
    """

    def __init__(self, format: str, folder: Path) -> None:
        self.format = format
        self.checks = _ACTS if refusals.changed(folder) else _ACTS | _CHANGES
        self.lacks: dict[str, str | None] = {}
        """Requirement of Ultralytics that is not met -> the version that is installed; None if there is none."""

    def note(self, requirement: str) -> None:
        """Remember a requirement that is not met, and warn if the package is there in another version."""
        version = _installed(_distribution(requirement))
        if version and requirement not in self.lacks:
            importlib.import_module("ultralytics.utils").LOGGER.warning(
                f"format={self.format}: Ultralytics asks for {requirement}, and {version} is installed. The export "
                f"goes on with that, because it installs nothing. To change it: pip install {requirement!r}"
            )
        self.lacks[requirement] = version

    def better(self, error: Exception) -> Exception | None:
        """An error that says what to do, if something was missing or refused; None for other errors."""
        chain = [*_chain(error)]
        missing = next((cause for cause in chain if isinstance(cause, ModuleNotFoundError)), None)
        if missing is not None and isinstance(error, ImportError):
            lacking = next((name for name, version in self.lacks.items() if version is None), None)
            package = missing.name or (_distribution(lacking) if lacking else None)
            return ModuleNotFoundError(self._how_to_install(package or printable(str(missing))), name=package)
        if isinstance(error, ImportError) and (wrong := [key for key, version in self.lacks.items() if version]):
            asked = ", ".join(f"{key} ({self.lacks[key]} is installed)" for key in wrong)
            return ImportError(f"format={self.format} failed with {printable(str(error))!r}; it asks for {asked}.")
        refused = next((cause for cause in chain if isinstance(cause, RefusedError)), None)
        if refused is None:
            return None
        return RuntimeError(
            f"format={self.format} stopped, because {refused}; what it needs, such as the data set of data=, must be "
            "on this disk beforehand."
        )

    def _how_to_install(self, package: str) -> str:
        extra = formats.find(self.format).extra
        asked = " ".join(f'"{requirement}"' for requirement in self.lacks)
        own = "" if extra in (None, "export") else ", best in an environment of its own"
        if extra:
            how = f'install what it needs, in a clone of yolo_lightbackbones, with: pip install ".[{extra}]"{own}'
        elif asked:
            how = f"install what Ultralytics asks for, in an environment of its own: pip install {asked}"
        else:
            how = "docs/exports.md says which packages it was tested with"
        return f"format={self.format} needs the package {package}, which is not installed; {how}."


@contextlib.contextmanager
def left_alone(format: str, folder: Path) -> Iterator[None]:
    """Refuse, inside this block, what would change the environment or use the network.

    Args:
        format: Ultralytics' name of the format that is exported.
        folder: the folder that the export writes to.

    Raises:
        ModuleNotFoundError: if a package is missing; the message says how to install it.
        ImportError: if a package cannot be imported, and Ultralytics asks for another version of it.
        RuntimeError: if the block failed because something was refused; the message says what.
        Exception: any other error of the block.
    """
    export = _Export(format, folder)
    try:
        with _watched(export), silenced(), _own_files(format):
            yield
    except Exception as error:
        if (better := export.better(error)) is not None:
            raise better from error
        raise


# --- refusing ---------------------------------------------------------------------------------------------------------

_exports: weakref.WeakKeyDictionary[threading.Thread, _Export] = weakref.WeakKeyDictionary()
"""Thread -> its export. Threads that an export has started stay in it: they may call home after the export's end.
Workers of pools leave it at its end, because a pool gives them other work then."""


_start = threading.Thread.start
_lock = threading.Lock()
_running: list[_Export] = []
"""The exports that are inside `left_alone`."""


@functools.wraps(_start)
def _start_and_follow(self: threading.Thread) -> None:
    """Make a thread that an export starts part of that export. Python 3.11 has no audit event for it."""
    if (export := _exports.get(threading.current_thread())) is not None:
        with _lock:
            _exports[self] = export
    _start(self)


_POOLS = {"concurrent.futures.thread", "multiprocessing.pool"}


def _is_of_pool(thread: threading.Thread) -> bool:
    return getattr(getattr(thread, "_target", None), "__module__", None) in _POOLS


@contextlib.contextmanager
def _watched(export: _Export) -> Iterator[None]:
    """Watch this thread, and those that it starts, for an export. Afterwards, it is part of what it was before."""
    thread = threading.current_thread()
    before = _exports.get(thread)
    with _lock:
        _hook()
        _running.append(export)
        if threading.Thread.start is _start:
            threading.Thread.start = _start_and_follow  # type: ignore[method-assign]
        _exports[thread] = export
    try:
        yield
    finally:
        with _lock:
            del _exports[thread]
            for worker in [other for other, its in _exports.items() if its is export and _is_of_pool(other)]:
                del _exports[worker]
            if before is not None:
                _exports[thread] = before
            _running.remove(export)
            if not _running and threading.Thread.start is _start_and_follow:
                threading.Thread.start = _start  # type: ignore[method-assign]


_Check = Callable[[Sequence[Any]], str | None]

_ACTS: dict[str, _Check] = {
    **dict.fromkeys(("subprocess.Popen", "os.posix_spawn", "os.exec", "os.spawn"), refusals.program),
    "os.system": refusals.shell_command,
    **dict.fromkeys(("socket.connect", "socket.sendto", "socket.sendmsg"), refusals.connection),
    **dict.fromkeys(("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"), refusals.host),
    "socket.getnameinfo": refusals.name_server,
}
"""Audit event -> what recognises a harmful one."""

_CHANGES: dict[str, _Check] = {
    "open": refusals.opened,
    **dict.fromkeys(("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"), refusals.places(0)),
    **dict.fromkeys(("os.link", "os.symlink"), refusals.places(1)),
    "os.rename": refusals.places(0, 1),
}
"""The same for events that change files."""


@functools.cache
def _hook() -> None:
    """Add the audit hook, once per process. Python cannot remove it; without an export it does nothing."""

    def watch(
        event: str,
        arguments: tuple[Any, ...],
        # As defaults, because the names of a module are gone when the interpreter ends.
        events: frozenset[str] = frozenset({*_ACTS, *_CHANGES}),
        exports: weakref.WeakKeyDictionary[threading.Thread, _Export] = _exports,
        current: Callable[[], threading.Thread] = threading.current_thread,
    ) -> None:
        if event not in events or not exports or (export := exports.get(current())) is None:
            return
        check = export.checks.get(event)
        if check is not None and (what := check(arguments)) is not None:
            raise RefusedError(f"{what} is refused: {_ALONE}")

    sys.addaudithook(watch)


# --- what Ultralytics asks for ----------------------------------------------------------------------------------------


def check_requirements(original: Callable[..., bool]) -> Callable[..., bool]:
    """Make Ultralytics' `check_requirements` look, without installing, while a model of ours is exported."""

    def look(*arguments: Any, **options: Any) -> bool:
        export = _exports.get(threading.current_thread())
        if export is None:
            return original(*arguments, **options)
        given = inspect.signature(original).bind(*arguments, **options)
        given.arguments["install"] = False
        if met := original(*given.args, **given.kwargs):
            return met
        asked = given.arguments.get("requirements", ())
        for requirement in [asked] if isinstance(asked, str) else asked if isinstance(asked, list | tuple) else ():
            if not original([requirement], install=False):
                export.note(requirement if isinstance(requirement, str) else requirement[0])
        return met

    return look


def misfit_of_requirements(function: Any) -> str | None:
    """Explain why `check_requirements` cannot be told to look only; None if it can."""
    wanted = {"requirements", "install"}
    missing = wanted - set(inspect.signature(function).parameters) if callable(function) else wanted
    name = "ultralytics.utils.checks.check_requirements"
    return f"{name} has no argument {' and no '.join(map(repr, sorted(missing)))}" if missing else None


def _distribution(requirement: str) -> str:
    """`onnx>=1.12,<2` -> `onnx`."""
    found = re.match(r"[\w.-]+", requirement)
    return found[0] if found else requirement


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and the errors that it came from."""
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in seen:
        yield following
        seen.append(following)
        following = following.__cause__ or following.__context__


# --- converters that need help to do without --------------------------------------------------------------------------


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep converters from importing modules that install or report at once; `Format.silenced` lists those.

    Exports may overlap: the first puts the stand-ins in, and the last that ends takes them out.
    """
    with _lock:
        _silent.append(_silent[0] if _silent else _put_stand_ins())
    try:
        yield
    finally:
        with _lock:
            before = _silent.pop()
            if not _silent:
                for name, module in before.items():
                    sys.modules.pop(name, None)
                    if module is not None:
                        sys.modules[name] = module


_silent: list[dict[str, types.ModuleType | None]] = []
"""For each export that is inside `silenced`, the modules as they were before the first of them."""


def _put_stand_ins() -> dict[str, types.ModuleType | None]:
    before = {name: sys.modules.get(name) for name in formats.silenced_modules()}
    for name, attributes in formats.silenced_modules().items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(dict.fromkeys(attributes))
    return before


@contextlib.contextmanager
def _own_files(format: str) -> Iterator[None]:
    """Give the converter its files in the current folder: `Format.supplied` and, out of the user's way, `scratch`."""
    row, token = formats.find(format), secrets.token_hex(4)
    with contextlib.ExitStack() as after:
        for file in (Path(name).absolute() for name in row.scratch):
            if os.path.lexists(file):
                aside = file.rename(file.with_name(f"{file.name}.kept-{token}"))
                after.callback(aside.replace, file)
        for name, write in row.supplied.items():
            file = Path(name).absolute()
            if not file.exists():
                after.callback(file.unlink, missing_ok=True)
                write(file)
        yield

"""All-or-nothing exports: files are written to a hidden folder, and moved to their final places at the end."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from yolo_lightbackbones import writing
from yolo_lightbackbones.plugin import formats

_STAGING = ".lightbackbones-export-"
"""Prefix of the folders that exports work in."""

_MINUTE, _DAY = 60, 24 * 60 * 60  # seconds


class Staging:
    """A hidden folder beside a checkpoint, to which an export writes; its files are moved once all are complete.

    So an export that fails or is killed leaves every older file as it was. Exports of one checkpoint to several formats
    at the same time do not share files, not even the ONNX file that many of them start with.

    Args:
        checkpoint: the file to export; the results go to its folder.
        format: Ultralytics' name of the format.
    """

    def __init__(self, checkpoint: Path, format: str) -> None:
        self._target = checkpoint.parent
        self._format = format
        self._folder = self._target / f"{_STAGING}{secrets.token_hex(8)}"
        self._new, self._old = self._folder / "new", self._folder / "old"
        self._lock: int | None = None
        # Ultralytics names folders by replacing the suffix wherever the path contains it, so the suffix must be unique.
        self.file = self._new / f"{checkpoint.stem}.{secrets.token_hex(8)}"
        """Stand-in for the checkpoint's path, from which the export derives the names of its files."""

    @contextlib.contextmanager
    def step(self, *, last: bool) -> Iterator[None]:
        """Run one step of the export. The files are moved after the last step, and deleted if a step fails.

        Raises:
            Exception: any error of the step. Its message names files by their final paths.
        """
        try:
            self._open()
            yield
            if last:
                self._publish()
        except BaseException as error:  # an interruption as well
            self._explain(error)
            self._close()
            raise
        if last:
            self._close()

    def in_place(self, text: str) -> str:
        """Replace every path into the hidden folder in `text` by the final path of the file."""
        return re.sub(rf"{re.escape(self._folder.name)}([/\\]+{self._new.name})?([/\\]+|$)", "", text)

    def _open(self) -> None:
        if not self._folder.exists():
            _sweep(self._target)
            self._folder.mkdir()
            self._lock = _lock(self._folder)
            self._new.mkdir()
            self._old.mkdir()

    def _close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _publish(self) -> None:
        self._refuse_truncated()
        names = sorted(path.name for path in self._new.iterdir())
        for folder in [*self._new.rglob("__pycache__")]:  # the byte code of these scripts contains the paths as well
            shutil.rmtree(folder)
        for file in self._new.rglob("*.py"):  # the scripts of NCNN and Paddle contain the paths of their model files
            text = file.read_bytes().decode(errors="surrogateescape")
            file.write_bytes(self.in_place(text).encode(errors="surrogateescape"))
        for name in names:
            if name.endswith("_model") and not name.endswith(formats.emptied_folders()):
                _add_missing(self._target / name, self._new / name)
        begun = []
        with _locked(self._target):
            try:
                for name in names:
                    begun.append(name)
                    self._place(name)
            except BaseException:
                for name in reversed(begun):
                    self._take_back(name)
                raise

    def _refuse_truncated(self) -> None:
        """Read back the written files, for formats whose converters do not notice a full disk.

        Raises:
            OSError: if a file is truncated.
        """
        unreadable = formats.find(self._format).unreadable
        if unreadable is not None and (broken := next(iter(unreadable(self._new)), None)) is not None:
            why = "the format lacks an operation of this model, or the disk is full"
            raise OSError(errno.EIO, f"what was written cannot be read back ({why})", str(broken))

    def _place(self, name: str) -> None:
        new, target, old = self._new / name, self._target / name, self._old / name
        if os.path.lexists(target):
            if new.is_dir() or target.is_dir():
                target.rename(old)
            else:  # a link, so that a file of that name exists at any time
                try:
                    os.link(target, old, follow_symlinks=False)
                except OSError:  # the file system has no hard links
                    target.rename(old)
        new.replace(target)

    def _take_back(self, name: str) -> None:
        new, target, old = self._new / name, self._target / name, self._old / name
        if not os.path.lexists(new):
            target.rename(new)
        if os.path.lexists(old):
            old.replace(target)

    def _explain(self, error: BaseException) -> None:
        """Make the error name the final path of the file, which the user knows."""
        if isinstance(error, OSError) and error.errno is not None:
            if isinstance(error.filename, str):
                error.filename = self.in_place(error.filename) or "."
            elif error.filename is None and error.errno in writing.CANNOT_WRITE:
                files = [path for path in self._new.rglob("*") if path.is_file()]
                latest = max(files, key=lambda path: path.stat().st_mtime_ns, default=self._target)
                error.filename = self.in_place(str(latest))
        error.args = tuple(self.in_place(value) if isinstance(value, str) else value for value in error.args)


def _add_missing(source: Path, folder: Path) -> None:
    """Add to `folder` the files that only `source` has, such as the user's own, or exports for other devices."""
    if not (source.is_dir() and folder.is_dir()):
        return

    def there(within: str, names: list[str]) -> list[str]:
        counterpart = folder / Path(within).relative_to(source)
        both = [name for name in names if os.path.lexists(counterpart / name)]
        return [name for name in both if not ((counterpart / name).is_dir() and _is_folder(Path(within, name)))]

    def link(old: str, new: str) -> None:
        try:
            os.link(old, new)
        except OSError:  # the file system has no hard links
            shutil.copy2(old, new)

    shutil.copytree(source, folder, symlinks=True, ignore=there, copy_function=link, dirs_exist_ok=True)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _lock(folder: Path, *, wait: bool = False) -> int | None:
    """Lock a folder until the returned descriptor is closed or the process ends; None if the system has no such locks.

    Raises:
        BlockingIOError: if another process has locked the folder, and `wait` is false.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, so that exports that end at the same time move their files one after the other."""
    lock = _lock(folder, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _sweep(target: Path) -> None:
    """Remove the files of killed exports from this folder, and put back the files that they had moved away."""
    with _locked(target):
        for folder in target.glob(f"{_STAGING}*"):
            with contextlib.suppress(OSError):
                _clear(folder, target)


def _clear(folder: Path, target: Path) -> None:
    """Remove the hidden folder of a killed export, and put back the files that it had moved away.

    Raises:
        OSError: if an export is still running in it.
    """
    age = time.time() - folder.lstat().st_mtime
    if not _is_folder(folder) or age < _MINUTE:  # its owner may not have locked it yet
        return
    lock = _lock(folder)
    try:
        if lock is not None or age > _DAY:
            for old in folder.glob("old/*"):
                if not os.path.lexists(target / old.name):
                    old.rename(target / old.name)
            shutil.rmtree(folder)
    finally:
        if lock is not None:
            os.close(lock)

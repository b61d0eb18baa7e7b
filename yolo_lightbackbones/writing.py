"""Atomic writing: a file appears complete or not at all. All writers of the package use this module."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from yolo_lightbackbones.messages import printable

ENDING = ".part"
_DAY = 24 * 60 * 60  # seconds; a younger file may belong to a run that is still writing

CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG)
"""Error numbers of a full disk, a read-only folder and the like."""


class WriteError(OSError):
    """A file could not be written; the message names it and the reason."""

    def __str__(self) -> str:
        return str(self.strerror)  # without the number in front


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary file that becomes `path` when the block ends without an error: `path` is never half written.

    It is created in the same folder under a random name, and only if nothing has that name: a link that somebody has
    put there is not followed, and two containers that share a folder do not mix their bytes. Temporary files of `path`
    that killed runs have left are removed a day later.

    Raises:
        WriteError: for a full disk, a read-only folder and the like, naming `path`.
    """
    _sweep(path)
    temporary = path.with_name(f"{_prefix(path)}{secrets.token_hex(8)}{ENDING}")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise _named(error, path) from error
    try:
        yield temporary
        if path.is_file():
            temporary.chmod(path.stat().st_mode & 0o777)
        temporary.replace(path)
    except OSError as error:
        if isinstance(error, WriteError) or (error.errno not in CANNOT_WRITE and str(error.filename) != str(temporary)):
            raise
        raise _named(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn errors such as a full disk or a read-only folder into one that names `path`; for writers of whole folders.

    Python's own error names no file if it occurs in the middle of writing one.

    Raises:
        WriteError: for a full disk, a read-only folder and the like, naming `path`.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, WriteError) or error.errno not in CANNOT_WRITE:
            raise
        raise _named(error, path) from error


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file completely or not at all; see `written_whole`."""
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a text file completely or not at all: in UTF-8, with the line ends of `content` on every system."""
    write_bytes(path, content.encode())


def _prefix(path: Path) -> str:
    """The start of temporary names for `path`; shortened, since names have at most 255 bytes."""
    return f".{path.name.encode(errors='surrogateescape')[:120].decode(errors='ignore')}."


def _sweep(path: Path) -> None:
    start = _prefix(path)
    with contextlib.suppress(OSError):
        for entry in os.scandir(path.parent):
            if entry.name.startswith(start) and entry.name.endswith(ENDING):
                with contextlib.suppress(OSError):  # another run has just removed it
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _DAY:
                        os.unlink(entry)


def _named(error: OSError, path: Path) -> WriteError:
    why = error.strerror or str(error)
    return WriteError(error.errno, f"{printable(str(path))} could not be written: {why}")

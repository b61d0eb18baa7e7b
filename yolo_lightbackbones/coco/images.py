"""Checks that images exist and decode completely. Each is decoded once; good ones are remembered for the next run."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_lightbackbones.coco.files import is_side
from yolo_lightbackbones.writing import write_text

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

RECORD = ".coco-prepare.json"
_SAVE_EVERY = 10_000  # images: an interrupted check of 118,287 loses little
_MANY_PIXELS = 2**24  # larger images are decoded one at a time: eight at once could fill the memory
_ONE_AT_A_TIME = threading.Lock()
_SMALLEST = 10  # pixels; Ultralytics takes nothing smaller
_LARGEST = 178_956_970  # pixels; Pillow's own limit, above which `Image.open` takes a file for an attack
_ORIENTATION = 274  # EXIF tag; with values from 5 on the image is shown turned by 90 degrees
_JPEG_END = b"\xff\xd9"


@dataclass(frozen=True)
class Whole:
    """An image that decodes completely."""

    width: int  # as it is shown, that is, with the orientation in its EXIF data
    height: int
    ended: bool  # False: a JPEG that does not end with its end marker; Ultralytics rewrites it when it reads it


def inspect(path: Path) -> Whole:
    """Decode an image completely.

    Raises:
        ValueError: it is not an image, is cut off, or is too small or large; the message says which.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        kind = _kind(file.read(8))
        file.seek(0)
        try:
            with kind(file) as image:
                width, height = image.size
                if min(width, height) < _SMALLEST:
                    raise ValueError(f"{width} x {height} pixels; Ultralytics takes {_SMALLEST} or more")
                if width * height > _LARGEST:
                    raise ValueError(f"too large: {width} x {height} pixels, more than {_LARGEST}")
                if image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8):
                    width, height = height, width
                # At an eighth of its size a JPEG takes a fraction of the time, and all of its data is still read.
                image.draft("RGB", (image.width // 8, image.height // 8))
                with _ONE_AT_A_TIME if image.width * image.height > _MANY_PIXELS else contextlib.nullcontext():
                    image.load()
        except (OSError, ValueError):
            raise
        except Exception as error:  # of nearly any type, if headers or metadata are nonsense
            raise ValueError(f"not an image: {type(error).__name__}: {error}") from error
    return Whole(width, height, image.format != "JPEG" or _ends_as_jpeg(path))


def _kind(start: bytes) -> type[ImageFile]:
    """Pillow's reader for a file with these first bytes.

    `Image.open` would find it, but Ultralytics replaces `Image.open` by one that installs a package if no reader fits.
    """
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

    if start.startswith(b"\xff\xd8"):
        return JpegImageFile
    if start.startswith(b"\x89PNG"):
        return PngImageFile
    raise ValueError("not an image, neither JPEG nor PNG")


def _reason(error: OSError | ValueError) -> str:
    """The problem of an image in one line, without its path, which is in the report already."""
    return " ".join((getattr(error, "strerror", None) or str(error)).split())


def _ends_as_jpeg(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-len(_JPEG_END), os.SEEK_END)
        return file.read() == _JPEG_END


class Record:
    """Remembers good images of earlier runs, as long as their size in bytes and time of change stay the same."""

    def __init__(self, root: Path) -> None:
        self.path = root / RECORD
        self._known: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(OSError, ValueError, RecursionError):  # the record only saves time
            content = json.loads(self.path.read_bytes()) if self.path.is_file() else None
            if isinstance(content, dict):
                self._known = content

    def get(self, key: str, status: os.stat_result) -> Whole | None:
        try:
            known = self._known[key]
            same = (known["bytes"], known["changed"]) == (status.st_size, status.st_mtime_ns)
            sizes = is_side(known["width"]) and is_side(known["height"])
            return Whole(known["width"], known["height"], bool(known["ended"])) if same and sizes else None
        except (KeyError, TypeError):
            return None

    def put(self, key: str, status: os.stat_result, image: Whole) -> None:
        self._known[key] = {"bytes": status.st_size, "changed": status.st_mtime_ns, **asdict(image)}

    def save(self) -> None:
        write_text(self.path, json.dumps(self._known))


def check_images(
    folder: Path, names: list[str], record: Record, step: Callable[[], None]
) -> Generator[tuple[str, Whole | str | None], None, None]:
    """Yield each file name with its image, a text that says what is wrong with it, or None if the file is missing.

    `step` is called once per image. The record is saved from time to time and at the end, also if it comes early.
    """

    def examine(name: str) -> tuple[os.stat_result | None, Whole | str | None, bool]:
        path, status = folder / name, None
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                return status, "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file", False
            known = record.get(f"{folder.name}/{name}", status)
            return status, known or inspect(path), known is None
        except (FileNotFoundError, NotADirectoryError):  # or it has just been removed
            return status, None, False
        except (OSError, ValueError) as error:  # a loop of links, a forbidden folder, a damaged image
            return status, _reason(error), False

    new = 0
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))  # decoders release the GIL
    try:
        for name, (status, seen, is_new) in zip(names, pool.map(examine, names), strict=True):
            if is_new and status and isinstance(seen, Whole):
                record.put(f"{folder.name}/{name}", status, seen)
                new += 1
                if new % _SAVE_EVERY == 0:
                    record.save()
            step()
            yield name, seen
    finally:
        pool.shutdown(cancel_futures=True)
        if new:
            record.save()

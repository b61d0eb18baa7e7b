"""Compares two folders of YOLO labels, and moves a new one into its place."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

from yolo_lightbackbones.coco.files import Tally

_SAME = 2e-6
"""Largest difference between equal boxes, as a share of the image: of the six digits written, the last may differ."""

Rows = list[tuple[float, ...]]


def differences(there: Path, wanted: Path) -> Tally:
    """Find label files whose boxes differ between the folders `there` and `wanted`.

    The order of rows does not matter. A missing file equals an empty one: both mean an image without objects.
    """
    found = Tally()
    names = {file.relative_to(folder) for folder in (there, wanted) for file in folder.rglob("*.txt")}
    for name in sorted(names):
        if not _equal(there / name, wanted / name):
            found.add(name.as_posix())
    return found


def _equal(first: Path, second: Path) -> bool:
    files = [file for file in (first, second) if os.path.lexists(file)]
    if not all(file.is_file() for file in files):
        return False  # a folder, or a pipe: reading it would block
    contents = [file.read_bytes() if file in files else b"" for file in (first, second)]
    if contents[0] == contents[1]:
        return True
    try:
        rows = [_rows(content) for content in contents]
    except ValueError:
        return False  # not a label file
    return len(rows[0]) == len(rows[1]) and all(
        len(a) == len(b) and all(abs(x - y) <= _SAME for x, y in zip(a, b, strict=True))
        for a, b in zip(*rows, strict=True)
    )


def _rows(content: bytes) -> Rows:
    return sorted(tuple(map(float, line.split())) for line in content.decode().splitlines() if line.strip())


def install(new: Path, target: Path) -> Path | None:
    """Move the finished folder `new` to `target` in one step; return where an older folder has been moved, or None."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Ultralytics' cache of the old labels is removed first: after an interruption it must not be used for the new ones.
    target.with_suffix(".cache").unlink(missing_ok=True)
    kept = None
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()  # on Windows a rename fails if the target exists
    elif target.exists():
        backups = (target.with_suffix(f".old{number if number > 1 else ''}") for number in count(1))
        kept = next(path for path in backups if not os.path.lexists(path))
        target.rename(kept)
    new.rename(target)
    return kept

"""Checks file names of images: image lists, label folders and Ultralytics must be able to use them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath

SUFFIXES = (".jpeg", ".jpg", ".png")
"""Suffixes of the formats that are decoded. Ultralytics skips list entries with any other suffix."""

LONGEST_NAME = 255  # bytes, of a file or folder; the limit of all common file systems
LONGEST_PATH = 1024  # bytes, below the images folder; the rest of a path's 4096 is for the folder itself


def fault(name: object) -> str | None:
    """The kind of problem with an image's file name, a key of `report.NAMES`; None if the name can be used.

    Ultralytics reads a list by `text.strip().splitlines()`, recognises images by their suffix, and finds the label file
    by replacing the last folder `images` with `labels` and the suffix with `.txt`.
    """
    if not isinstance(name, str) or not name:
        return "unnamed_images"
    folders = name.split("/")
    file = folders[-1]
    checks = {
        "names_with_nul": "\0" in name,
        "names_with_line_breaks": len(f"{name}.".splitlines()) > 1,
        "names_not_utf8": any("\ud800" <= character <= "\udfff" for character in name),
        "names_with_blanks": name != name.strip(),
        "names_outside": any(folder in ("", ".", "..") for folder in folders)
        or "\\" in name
        or bool(PureWindowsPath(name).drive),
        "names_in_images": "images" in folders[:-1],
        "names_without_suffix": not file.lower().endswith(SUFFIXES) or not file.rpartition(".")[0].strip("."),
    }
    found = next((kind for kind, seen in checks.items() if seen), None)
    if found is None and (
        len(name.encode()) > LONGEST_PATH or max(len(folder.encode()) for folder in folders) > LONGEST_NAME
    ):
        return "names_too_long"
    return found


def label(name: str) -> str:
    """The label file of an image, below the folder of labels."""
    return str(PurePosixPath(name).with_suffix(".txt"))


def clashes(names: Mapping[int, str]) -> dict[int, str]:
    """Find images whose names clash with each other: id -> kind of problem.

    Args:
        names: file names by the images' ids; none has a `fault` of its own.
    """
    times = Counter(names.values())
    labels = Counter(map(label, times))
    found = {}
    for number, name in names.items():
        if times[name] > 1:
            found[number] = "names_twice"
        elif labels[label(name)] > 1 or any(str(folder) in labels for folder in PurePosixPath(name).parents):
            found[number] = "shared_labels"
    return found

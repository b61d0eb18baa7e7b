"""File names of images: those that an image list, a label folder and Ultralytics' reading of both can hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath

SUFFIXES = (".jpeg", ".jpg", ".png")
"""Suffixes of the formats that are decoded. Ultralytics skips list entries with any other suffix."""

LONGEST_NAME = 255  # bytes, of a file or folder; the limit of all common file systems
LONGEST_PATH = 1024  # bytes, below the images folder; what is left of a path's 4096 is for the folder itself


def fault(name: object) -> str | None:
    """Why an image cannot have this file name, as a kind of problem of the report, or None.

    Ultralytics reads a list by `text.strip().splitlines()`, takes an entry for an image by its suffix, and finds the
    label file by putting `labels` for the last folder `images` and `.txt` for what follows the last dot.
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
    """The ids of images that cannot have their names beside each other -> the kind of problem.

    `names` are the images' by id, each of which has no `fault` in itself.
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

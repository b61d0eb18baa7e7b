"""Reads the list of images to evaluate on, if these are not all images of the annotations."""

from __future__ import annotations

from pathlib import Path

from yolo_lightbackbones.coco.files import as_id, check_file, shortened, stem
from yolo_lightbackbones.coco.ground_truth import GroundTruth


def read_image_list(path: Path, truth: GroundTruth) -> set[int]:
    """Read image ids from a list file like those of Ultralytics (val2017.txt): one path, or one id, per line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not text, names no image, or names some that the annotations do not list.
    """
    check_file(path, "image list")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"The image list {path} is not text: {error}") from error
    by_stem = truth.ids_by_stem()
    chosen: set[int] = set()
    strangers: list[str] = []
    shared: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        named, number = by_stem.get(stem(line), []), as_id(line)
        if len(named) == 1:
            chosen.update(named)
        elif number in truth.images:
            chosen.add(number)
        else:
            (shared if named else strangers).append(line)
    if strangers:
        raise ValueError(
            f"{len(strangers)} lines of {path} name no image of {truth.path}, by file name or by id: "
            f"{shortened(strangers)}"
        )
    if shared:
        raise ValueError(
            f"{len(shared)} lines of {path} name several images of {truth.path}: {shortened(shared)}. Write their ids "
            "instead."
        )
    if not chosen:
        raise ValueError(f"The image list {path} names no image: one path or id per line is needed.")
    return chosen

"""Which images of the annotations are evaluated, where not all of them are."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from yolo_lightbackbones.coco.files import as_id, check_file, shortened
from yolo_lightbackbones.coco.ground_truth import GroundTruth


def read_image_list(path: Path, truth: GroundTruth) -> set[int]:
    """The ids of the images in a list file as Ultralytics reads them (val2017.txt): one path, or one id, per line.

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
    strangers = []
    for line in filter(None, map(str.strip, text.splitlines())):
        number = by_stem.get(PurePosixPath(line.replace("\\", "/")).stem)
        if number is None and as_id(line) in truth.images:
            number = as_id(line)
        if number is None:
            strangers.append(line)
        else:
            chosen.add(number)
    if strangers:
        raise ValueError(
            f"{len(strangers)} lines of {path} name no image of {truth.path}, by file name or by id: "
            f"{shortened(strangers)}"
        )
    if not chosen:
        raise ValueError(f"The image list {path} names no image: one path or id per line is needed.")
    return chosen

"""Where the files of a COCO folder are: as it is downloaded, and as Ultralytics needs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train2017", "val2017")


@dataclass(frozen=True)
class Split:
    """One split of a COCO folder that has both images and annotations."""

    root: Path
    name: str
    images: Path  # where the images are: root/images/<name>, or root/<name> as COCO's archives unpack

    @property
    def annotations(self) -> Path:
        return annotation_file(self.root, self.name)

    @property
    def linked_images(self) -> Path:
        """Where Ultralytics must see the images: it finds labels by replacing `images` with `labels` in a path."""
        return self.root / "images" / self.name

    @property
    def labels(self) -> Path:
        return self.root / "labels" / self.name

    @property
    def list_file(self) -> Path:
        return self.root / f"{self.name}.txt"


def annotation_file(root: Path, name: str) -> Path:
    """The path of a split's annotations in a COCO folder; the file need not exist."""
    return root / "annotations" / f"instances_{name}.json"


def find_splits(root: Path) -> tuple[list[Split], dict[str, str]]:
    """Find the splits that are there, and for each other split what is missing.

    Raises:
        NotADirectoryError: there is no folder `root`.
        FileNotFoundError: no split is there.
        ValueError: the images of a split are in one of its two places, and an empty folder is in the other.
    """
    if not root.is_dir():
        raise NotADirectoryError(f"There is no folder {root}.")
    found, absent = [], {}
    for name in SPLITS:
        folders = [folder for folder in (root / "images" / name, root / name) if folder.is_dir()]
        if len(folders) == 2 and not any(folders[0].iterdir()) and any(folders[1].iterdir()):
            raise ValueError(f"{folders[0]} is empty, and the images are in {folders[1]}. Remove the empty folder.")
        if folders and annotation_file(root, name).is_file():
            found.append(Split(root, name, folders[0]))
        elif folders:
            absent[name] = f"no annotations/{annotation_file(root, name).name}"
        else:
            absent[name] = f"no images/{name} or {name}"
    if not found:
        raise FileNotFoundError(
            f"{root} holds no split of COCO 2017: {'; '.join(f'{name}: {what}' for name, what in absent.items())}. "
            "Unpack annotations_trainval2017.zip into it, and train2017.zip or val2017.zip into it or its images/."
        )
    return found, absent

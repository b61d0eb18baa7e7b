"""`lightbackbones coco-prepare`: names of images that lists and label files can and cannot hold."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from coco_folder import assert_nothing_written, assert_refused, change, prepare, report, snapshot, write_coco


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


BREAKS = ["\n", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
BAD_NAMES = {
    **{f"a{character}b.jpg": "names_with_line_breaks" for character in BREAKS},
    "a.jpg\n": "names_with_line_breaks",
    "a\n/etc/passwd.jpg": "names_with_line_breaks",
    "a\0.jpg": "names_with_nul",
    "\ud800.jpg": "names_not_utf8",
    chr(0xDCFF) + ".jpg": "names_not_utf8",  # how Python reads the byte 0xff in a file's name
    " a.jpg": "names_with_blanks",
    "a.jpg ": "names_with_blanks",
    "\u3000a.jpg": "names_with_blanks",
    "/etc/a.jpg": "names_outside",
    "../a.jpg": "names_outside",
    "a/../../../b.jpg": "names_outside",
    "a//b.jpg": "names_outside",
    "./a.jpg": "names_outside",
    ".": "names_outside",
    "a/": "names_outside",
    "C:a.jpg": "names_outside",
    "C:\\a.jpg": "names_outside",
    "a\\b.jpg": "names_outside",
    "images/a.jpg": "names_in_images",
    "x/images/a.jpg": "names_in_images",
    "a": "names_without_suffix",
    "a.txt": "names_without_suffix",
    "a.jpg/b": "names_without_suffix",
    ".jpg": "names_without_suffix",
    "a/..jpg": "names_without_suffix",
    f"{'a' * 252}.jpg": "names_too_long",
    "\u00e4" * 126 + ".jpg": "names_too_long",
    ("\u00e4" * 120 + "/") * 5 + "a.jpg": "names_too_long",
    "x" * 1_000_000 + ".jpg": "names_too_long",
    "": "unnamed_images",
    None: "unnamed_images",
    7: "unnamed_images",
    "000000000012.jpg": "names_twice",
    "000000000012.png": "shared_labels",
    "000000000012.txt/a.jpg": "shared_labels",
}


def test_a_badly_named_image_is_no_stranger(root: Path) -> None:
    image = root / "images" / "val2017" / "000000000011.jpg"
    image.rename(image.with_name("a\nb.jpg"))
    change(root, "val2017", "images", 0, file_name="a\nb.jpg")
    assert report(root, exit_code=1)["splits"]["val2017"]["notes"].keys() == {"flat_boxes"}


def ultralytics_reading(root: Path, split: str) -> list[str]:
    """The files that Ultralytics finds through a list, by its own code."""
    from ultralytics.data.base import BaseDataset

    reader = BaseDataset.__new__(BaseDataset)
    reader.prefix, reader.fraction = "", 1.0
    return reader.get_img_files(str(root / f"{split}.txt"))


@pytest.mark.parametrize(("name", "kind"), BAD_NAMES.items(), ids=lambda value: ascii(value)[:40])
def test_names_that_no_list_can_hold(name: object, kind: str, root: Path) -> None:
    image = root / "images" / "val2017" / "000000000011.jpg"
    if isinstance(name, str) and not name.startswith("/") and ".." not in name:
        with contextlib.suppress(OSError, ValueError):  # where a file can have this name, only the name is wrong
            (image.parent / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, image.parent / name)
    change(root, "val2017", "images", 0, file_name=name)
    before, there = snapshot(root), sorted(root.rglob("*"))
    seen = report(root, exit_code=1)["splits"]["val2017"]
    several = 2 if name in ("000000000012.jpg", "000000000012.png") else 1
    assert {key: problem["count"] for key, problem in seen["problems"].items()} == {kind: several}
    assert seen["images"] == 3
    refused = prepare(root)
    assert_refused(refused, f"val2017: {several} image", "Rename these images", "--skip-bad")
    assert len(refused.stderr) < 2000
    assert all(character.isprintable() or character == "\n" for character in refused.stderr)
    assert_nothing_written(root)
    assert [path for path in sorted(root.rglob("*")) if path.name != ".coco-prepare.json"] == there

    skipped = report(root, "--skip-bad")
    assert skipped["ok"]
    assert skipped["splits"]["val2017"]["listed"] == 3 - several
    good = [f"{n:012}.jpg" for n in (12, 13)][several - 1 :]
    assert ultralytics_reading(root, "val2017") == [str(root / "images" / "val2017" / name) for name in good]
    written = snapshot(root)
    assert written.items() >= before.items()
    assert report(root, "--skip-bad")["splits"]["val2017"]["labels"] == "kept"
    assert snapshot(root) == written


@pytest.mark.parametrize(
    "name", ["a b.jpg", "\u00e4\u4e2d.JPG", "x/y.jpeg", "..a.jpg", "a..jpg", "~a.png", "a.b/c.jpg", "#.jpg"]
)
def test_names_that_are_fine(name: str, root: Path) -> None:
    from ultralytics.data.utils import img2label_paths

    image = root / "images" / "val2017" / "000000000011.jpg"
    (image.parent / name).parent.mkdir(exist_ok=True)
    image.rename(image.parent / name)
    change(root, "val2017", "images", 0, file_name=name)
    assert report(root)["splits"]["val2017"]["listed"] == 3
    found = ultralytics_reading(root, "val2017")
    assert str(image.parent / name) in found
    assert all(map(os.path.isfile, found))
    assert all(map(os.path.isfile, img2label_paths(found)))
    assert report(root)["splits"]["val2017"] | {"notes": {}} == {
        **report(root)["splits"]["val2017"],
        "labels": "kept",
        "list_file": "kept",
        "notes": {},
    }


def test_suffixes_are_those_that_ultralytics_knows() -> None:
    from ultralytics.data.utils import IMG_FORMATS

    from yolo_lightbackbones.coco.names import SUFFIXES

    assert {suffix[1:] for suffix in SUFFIXES} <= IMG_FORMATS


def test_labels_that_a_file_system_merges_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where upper and lower case are the same, Ultralytics appends both images' boxes to one label file."""
    from ultralytics.data import converter

    change(root, "val2017", "images", 0, file_name="000000000011A.jpg")
    change(root, "val2017", "images", 1, file_name="000000000011a.jpg")
    for old, new in (("11", "11A"), ("12", "11a")):
        (root / "images" / "val2017" / f"0000000000{old}.jpg").rename(
            root / "images" / "val2017" / f"0000000000{new}.jpg"
        )
    convert = converter.convert_coco

    def merging(**options: Any) -> None:
        convert(**options)
        Path(options["save_dir"], "labels", "val2017", "000000000011a.txt").unlink(missing_ok=True)

    monkeypatch.setattr(converter, "convert_coco", merging)
    assert_refused(prepare(root), "made 2 label files of val2017 where 3 were expected.*000000000011a.txt")
    assert_nothing_written(root)

"""`lightbackbones coco-prepare`: images, annotations and folders that are wrong."""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from pathlib import Path

import pytest
from coco_folder import (
    OBJECTS,
    Content,
    assert_nothing_written,
    assert_refused,
    change,
    prepare,
    report,
    write_coco,
    write_image,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


def write_bomb(path: Path) -> None:
    """A PNG that says it has 100,000 x 100,000 pixels, 1.25 GB; the first hundredth of them is there."""
    from PIL import PngImagePlugin

    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        PngImagePlugin.putchunk(file, b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 1, 0, 0, 0, 0))
        packer = zlib.compressobj(1)
        PngImagePlugin.putchunk(file, b"IDAT", packer.compress(bytes(12_501_000)) + packer.flush())
        PngImagePlugin.putchunk(file, b"IEND", b"")


def break_image(root: Path, kind: str) -> None:
    """Do something to an image of val2017."""
    path = root / "images" / "val2017" / "000000000012.jpg"
    content = path.read_bytes()
    path.unlink()
    if kind == "cut off":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("<html>Not found</html>")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "nonsense":  # a PNG whose header claims what no memory holds
        write_image(path.with_suffix(".png"))
        content = path.with_suffix(".png").read_bytes()
        path.with_suffix(".png").unlink()
        path.write_bytes(content[:16] + b"\x7f\xff\xff\xff" * 2 + content[24:])
    elif kind == "bomb":
        write_bomb(path)
    elif kind == "tiny":
        write_image(path, 9, 9)
    elif kind == "resized":
        write_image(path, 48, 64)
    elif kind == "turned":  # shown lying on its side, which the annotations do not know
        from PIL import Image

        exif = Image.Exif()
        exif[274] = 6
        Image.new("RGB", (64, 48)).save(path, exif=exif)
    else:
        assert kind == "missing"


@pytest.mark.parametrize(
    ("kind", "key", "message"),
    [
        ("missing", "missing_images", r"1 annotated images are not there: 000000000012\.jpg"),
        ("cut off", "corrupt_images", r"1 images cannot be used: 000000000012\.jpg: image file is truncated"),
        ("empty", "corrupt_images", r"000000000012\.jpg: not an image"),
        ("text", "corrupt_images", r"000000000012\.jpg: not an image"),
        ("folder", "corrupt_images", r"000000000012\.jpg: a directory"),
        ("loop", "corrupt_images", r"1 images cannot be used: 000000000012\.jpg: .*"),
        ("pipe", "corrupt_images", r"000000000012\.jpg: no regular file"),
        ("nonsense", "corrupt_images", r"000000000012\.jpg: "),
        ("bomb", "corrupt_images", r"000000000012\.jpg: too large: 100000 x 100000 pixels"),
        ("tiny", "corrupt_images", r"000000000012\.jpg: 9 x 9 pixels; Ultralytics takes 10 or more"),
        ("resized", "wrong_sizes", r"1 images are of another size .*000000000012\.jpg: 48 x 64, not 64 x 48"),
        ("turned", "wrong_sizes", r"000000000012\.jpg: 48 x 64, not 64 x 48"),
    ],
)
def test_bad_images(kind: str, key: str, message: str, root: Path) -> None:
    break_image(root, kind)
    assert_refused(prepare(root), message, "nothing was written", "--skip-bad")
    assert_nothing_written(root)
    seen = report(root, exit_code=1)
    assert not seen["ok"]
    assert seen["splits"]["val2017"]["problems"][key]["count"] == 1

    skipped = report(root, "--skip-bad")
    assert skipped["ok"]
    assert skipped["splits"]["val2017"]["problems"][key]["count"] == 1
    assert skipped["splits"]["val2017"]["listed"] == 2
    assert "000000000012" not in (root / "val2017.txt").read_text()
    assert (root / "labels" / "val2017" / "000000000012.txt").exists()  # for when the image is whole


@pytest.mark.parametrize(
    ("error", "key", "example"),
    [
        (FileNotFoundError(2, "No such file", "x"), "missing_images", "000000000012.jpg"),
        (
            PermissionError(13, "Permission denied", "/x/000000000012.jpg"),
            "corrupt_images",
            "0012.jpg: Permission denied",
        ),
        (OSError(5, "Input/output error"), "corrupt_images", "0012.jpg: Input/output error"),
        (ValueError("x" * 10_000), "corrupt_images", "0012.jpg: xxx"),
    ],
)
def test_images_that_vanish_or_cannot_be_read(
    error: Exception, key: str, example: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yolo_lightbackbones.coco import images

    inspect = images.inspect

    def failing(path: Path) -> object:
        if path.name == "000000000012.jpg":
            raise error
        return inspect(path)

    monkeypatch.setattr(images, "inspect", failing)
    problems = report(root, exit_code=1)["splits"]["val2017"]["problems"]
    assert list(problems) == [key]
    assert example in problems[key]["examples"][0]
    assert len(problems[key]["examples"][0]) < 300


def test_large_images_are_decoded_one_at_a_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight at once could need more memory than there is."""
    from PIL.ImageFile import ImageFile

    from yolo_lightbackbones.coco import images

    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(images, "_MANY_PIXELS", 0)
    load, now, most = ImageFile.load, [0], [0]

    def counting(image: ImageFile) -> object:
        now[0] += 1
        most[0] = max(most[0], now[0])
        time.sleep(0.02)
        now[0] -= 1
        return load(image)

    monkeypatch.setattr(ImageFile, "load", counting)
    assert report(root)["ok"]
    assert most == [1]


def test_a_huge_declared_size_is_a_wrong_size(root: Path) -> None:
    change(root, "val2017", "images", 0, width=10**9, height=10**9)
    problem = report(root, exit_code=1)["splits"]["val2017"]["problems"]["wrong_sizes"]
    assert problem["examples"] == ["000000000011.jpg: 64 x 48, not 1000000000 x 1000000000"]


def test_up_to_five_examples(root: Path) -> None:
    for split in OBJECTS:
        for name in list(OBJECTS[split])[:2]:
            (root / "images" / split / name).unlink()
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["images"] += [{"id": n, "file_name": f"{n}.jpg", "width": 64, "height": 48} for n in range(100, 106)]
    path.write_text(json.dumps(content))
    problem = report(root, exit_code=1)["splits"]["val2017"]["problems"]["missing_images"]
    assert (problem["count"], len(problem["examples"])) == (8, 5)
    refused = prepare(root)
    assert_refused(refused, r"train2017: 2 annotated images", r"val2017: 8 annotated images .*102\.jpg, \.\.\.\n")


def test_an_image_with_data_behind_its_end_is_noted(root: Path) -> None:
    """Ultralytics writes such a file anew when it reads it, so it is worth knowing of."""
    path = root / "images" / "val2017" / "000000000012.jpg"
    path.write_bytes(path.read_bytes() + b"trailing")
    for _ in range(2):  # remembered, too
        seen = report(root)
        assert seen["splits"]["val2017"]["notes"]["unfinished_jpegs"]["examples"] == ["000000000012.jpg"]


def test_images_that_are_not_annotated_stay_out_of_the_lists(root: Path) -> None:
    """COCO's evaluation could not count what is predicted on them."""
    write_image(root / "images" / "val2017" / "000000000088.jpg")
    (root / "images" / "val2017" / "Thumbs.db").write_text("odd")
    seen = report(root)["splits"]["val2017"]
    assert seen["notes"]["strangers"]["examples"] == ["000000000088.jpg", "Thumbs.db"]
    assert seen["listed"] == 3


@pytest.mark.parametrize(
    ("values", "key", "message"),
    [
        ({"category_id": 12}, "unknown_categories", "1 annotations are of a category .*: 12 in 000000000011.jpg"),
        ({"category_id": 0}, "unknown_categories", "0 in 000000000011.jpg"),
        ({"category_id": 91}, "unknown_categories", "91 in 000000000011.jpg"),
        ({"bbox": [50, 0, 40, 10]}, "outside_boxes", r"1 boxes leave their image.*: \[50, 0, 40, 10\] in 000000000011"),
        ({"bbox": [-20, 0, 10, 10]}, "outside_boxes", r"\[-20, 0, 10, 10\] in 000000000011.jpg, 64 x 48"),
        ({"image_id": 999}, "unlisted_images", "1 annotations are of images that the file does not list: image_id 999"),
    ],
)
def test_bad_annotations(values: Content, key: str, message: str, root: Path) -> None:
    change(root, "val2017", "annotations", 0, **values)
    assert_refused(prepare(root), message)
    assert_nothing_written(root)
    seen = report(root, "--skip-bad")
    assert seen["splits"]["val2017"]["problems"][key]["count"] == 1
    listed = (root / "val2017.txt").read_text()
    if key == "unlisted_images":
        assert "000000000011" in listed
    else:
        assert "000000000011" not in listed
    assert not (root / "labels" / "val2017" / "000000000011.txt").exists()
    assert (root / "labels" / "val2017" / "000000000013.txt").exists()
    assert report(root, "--skip-bad")["splits"]["val2017"]["labels"] == "kept"


def test_a_box_that_leaves_its_image_a_little_is_fine(root: Path) -> None:
    """Ultralytics takes what keeps its centre and size within the image."""
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    change(root, "val2017", "annotations", 0, bbox=[40, 0, 40, 10])
    assert report(root)["splits"]["val2017"]["problems"] == {}
    data = check_det_dataset(str(root / "coco.yaml"), autodownload=False)
    assert len(YOLODataset(img_path=data["val"], data=data, imgsz=64, augment=False, task="detect")) == 3


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("categories", {"name": "zero"}, "is not COCO's: 1 of its categories .*1 'zero'"),
        ("images", {"width": 0}, "1 images .* 0 x 48"),
        ("images", {"width": True}, "1 images .* True x 48"),
        ("images", {"width": 10**400}, "1 images .* x 48"),
        ("images", {"height": None}, "1 images .* 64 x None"),
        ("images", {"id": 12}, "1 ids are there more than once"),
        ("annotations", {"bbox": [1, 2, 3]}, "1 annotations .* number 0"),
        ("annotations", {"bbox": [1, 2, 3, float("nan")]}, "1 annotations .* number 0"),
        ("annotations", {"category_id": "cat"}, "1 annotations .* number 0"),
        ("annotations", {"iscrowd": "yes"}, "1 annotations .* number 0"),
    ],
)
def test_annotation_files_that_are_wrong(section: str, values: Content, message: str, root: Path) -> None:
    change(root, "val2017", section, 0, **values)
    for options in ([], ["--skip-bad"]):
        result = prepare(root, *options)
        assert_refused(result, message)
        assert result.stdout == ""
        assert_nothing_written(root)


def test_an_empty_folder_hides_the_images(root: Path) -> None:
    (root / "images" / "val2017").rename(root / "val2017")
    (root / "images" / "val2017").mkdir()
    assert_refused(prepare(root), "images/val2017 is empty, and the images are in .*Remove the empty folder")
    assert_nothing_written(root)


def test_folders_that_are_wrong(root: Path, tmp_path: Path) -> None:
    assert_refused(prepare(tmp_path / "nowhere"), "no folder .*nowhere")
    (tmp_path / "empty").mkdir()
    assert_refused(prepare(tmp_path / "empty"), "holds no split of COCO 2017: train2017: no images/train2017 or")
    file = root / "annotations" / "instances_val2017.json"
    for content, message in (
        ("", "is empty"),
        ("{", "is not JSON"),
        ("[]", "no annotation file"),
        ("{}", "no list of"),
    ):
        file.write_text(content)
        assert_refused(prepare(root), message)
    file.unlink()
    assert "no annotations/instances_val2017.json" in report(root)["absent"]["val2017"]
    for image in (root / "images" / "train2017").iterdir():
        image.unlink()
    assert_refused(prepare(root, "--skip-bad"), "No image of train2017 can be used")

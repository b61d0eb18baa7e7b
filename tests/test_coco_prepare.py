"""`lightbackbones coco-prepare`: on a small folder of our own, and on real images of COCO."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from yolo_lightbackbones.cli import app

COCO = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "coco"

Content = dict[str, Any]

OBJECTS: dict[str, dict[str, list[tuple[int, list[float], int]]]] = {
    "train2017": {
        "000000000001.jpg": [(1, [10, 10, 20, 20], 0), (90, [0, 0, 64, 48], 0), (90, [0, 0, 64, 48], 0)],
        "000000000002.jpg": [(13, [5.5, 6.5, 30.25, 20], 0), (1, [0, 0, 60, 40], 1)],
        "000000000003.jpg": [],
    },
    "val2017": {
        "000000000011.jpg": [(2, [1, 2, 3, 4], 0)],
        "000000000012.jpg": [(3, [0, 0, 10, 10], 1)],
        "000000000013.jpg": [(1, [4, 4, 0, 9], 0), (44, [32, 24, 32, 24], 0)],
    },
}
"""Split -> image -> objects as (category of COCO, box, crowd), with a double, a flat box and two crowd regions."""

LABELS = {
    "train2017/000000000001.txt": [[0, 20 / 64, 20 / 48, 20 / 64, 20 / 48], [79, 0.5, 0.5, 1, 1]],
    "train2017/000000000002.txt": [[11, 20.625 / 64, 16.5 / 48, 30.25 / 64, 20 / 48]],
    "val2017/000000000011.txt": [[1, 2.5 / 64, 4 / 48, 3 / 64, 4 / 48]],
    "val2017/000000000012.txt": [],
    "val2017/000000000013.txt": [[39, 0.75, 0.75, 0.5, 0.5]],
}
"""By hand: category 13 (stop sign) is class 11, 44 (bottle) class 39, 90 (toothbrush) class 79."""


def category_entries() -> list[Content]:
    from ultralytics.data.converter import coco80_to_coco91_class

    from yolo_lightbackbones.configs.finding import config_dir

    names = yaml.safe_load((config_dir() / "datasets" / "coco.yaml").read_text())["names"].values()
    return [{"id": n, "name": name} for n, name in zip(coco80_to_coco91_class(), names, strict=True)]


def write_image(path: Path, width: int = 64, height: int = 48, seed: int = 0) -> None:
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), picture)


def write_split(root: Path, split: str, images: Path) -> None:
    entries: list[Content] = []
    annotations: list[Content] = []
    for name, objects in OBJECTS[split].items():
        number = int(Path(name).stem)
        entries.append({"id": number, "file_name": name, "width": 64, "height": 48})
        write_image(images / split / name, seed=number)
        for category, box, crowd in objects:
            values = {"image_id": number, "category_id": category, "bbox": box, "iscrowd": crowd}
            annotations.append({"id": len(annotations) + 1, **values, "area": box[2] * box[3]})
    content = {"images": entries, "annotations": annotations, "categories": category_entries()}
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Both splits, as the archives unpack into images/."""
    folder = tmp_path / "coco"
    folder.mkdir()
    for split in OBJECTS:
        write_split(folder, split, folder / "images")
    return folder


def prepare(root: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["coco-prepare", str(root), *options], env={"COLUMNS": "160"})


def report(root: Path, *options: str, exit_code: int = 0) -> Content:
    """What --json prints, which is all there is on stdout."""
    result = prepare(root, "--json", *options)
    assert result.exit_code == exit_code, result.output
    found: Content = json.loads(result.stdout)
    return found


def assert_refused(result: Result, *messages: str) -> None:
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.stderr
    for message in messages:
        assert re.search(message, result.stderr), result.stderr


def change(root: Path, split: str, section: str, index: int, **values: object) -> None:
    """Change an entry of an annotation file."""
    path = root / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    content[section][index].update(values)
    path.write_text(json.dumps(content))


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of change of every file."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def rows(path: Path) -> np.ndarray:
    return np.array([line.split() for line in path.read_text().splitlines()], np.float64).reshape(-1, 5)


def assert_nothing_written(root: Path) -> None:
    left = {path.name for path in root.iterdir()} - {"annotations", "images", "train2017", "val2017"}
    assert left <= {".coco-prepare.json"}


# --- what is written --------------------------------------------------------------------------------------------------


def test_labels_lists_and_yaml(root: Path) -> None:
    originals = snapshot(root)
    seen = report(root)
    assert seen["ok"]
    assert seen["absent"] == {}
    assert seen["yaml"] == "written"
    counts = {"images": 3, "listed": 3, "labels": "written", "list_file": "written", "problems": {}}
    assert counts.items() <= seen["splits"]["train2017"].items()
    assert {"annotations": 5, "crowds": 1, "images_without_annotations": 1}.items() <= seen["splits"][
        "train2017"
    ].items()
    assert {"annotations": 4, "crowds": 1, "images_without_annotations": 0}.items() <= seen["splits"]["val2017"].items()
    assert seen["splits"]["val2017"]["notes"]["flat_boxes"]["count"] == 1

    written = {path.relative_to(root / "labels").as_posix() for path in (root / "labels").rglob("*.txt")}
    assert written == LABELS.keys()
    for name, expected in LABELS.items():
        np.testing.assert_allclose(rows(root / "labels" / name), np.array(expected).reshape(-1, 5), atol=1e-6)
    for split, images in OBJECTS.items():
        assert (root / f"{split}.txt").read_text() == "".join(f"./images/{split}/{name}\n" for name in images)
    after = snapshot(root)
    assert {name: after[name] for name in originals} == originals, "COCO's own files are never touched"
    assert not list(root.glob(".coco-prepare-*"))


def test_a_table_for_people(root: Path) -> None:
    result = prepare(root)
    assert result.exit_code == 0
    assert re.search(r"train2017 │ +3 │ +1 │ +5 │ +1 │ +3 │ written │ written", result.stdout)
    assert re.search(
        r"val2017: 1 annotations have no width or height.*\[4, 4, 0, 9\] in 000000000013.jpg", result.stdout
    )
    assert f"yolo train model=yolov5n_edgevit.yaml data={root / 'coco.yaml'}" in result.stdout


def test_nothing_but_json_on_stdout_the_first_time(root: Path, tmp_path: Path) -> None:
    """Ultralytics' very first import says on stdout that it made its settings."""
    command = [sys.executable, "-c", "from yolo_lightbackbones.cli import app; app()", "coco-prepare", "--json", root]
    environment = {**os.environ, "YOLO_CONFIG_DIR": str(tmp_path / "new")}
    result = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert json.loads(result.stdout.decode("utf-8"))["ok"]
    assert (tmp_path / "new").is_dir()


def test_ultralytics_reads_it(root: Path) -> None:
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    report(root)
    data = check_det_dataset(str(root / "coco.yaml"), autodownload=False)
    assert data["nc"] == 80
    assert data["names"][79] == "toothbrush"
    assert data["val"].endswith("/val2017.txt")  # with `coco` in the path, this is how `yolo val` knows COCO
    for split, boxes in (("train", 3), ("val", 2)):  # less the double, the flat box and the crowd regions
        dataset = YOLODataset(img_path=data[split], data=data, imgsz=64, augment=False, task="detect")
        assert len(dataset) == 3
        assert sum(len(label["cls"]) for label in dataset.labels) == boxes


def test_the_folder_can_be_moved(root: Path, tmp_path: Path) -> None:
    from ultralytics.data.utils import check_det_dataset

    report(root)
    root.rename(tmp_path / "my coco")
    data = check_det_dataset(str(tmp_path / "my coco" / "coco.yaml"), autodownload=False)
    assert data["val"] == str(tmp_path / "my coco" / "val2017.txt")


@pytest.mark.parametrize("split", list(OBJECTS))
def test_one_split_is_enough(split: str, root: Path) -> None:
    from ultralytics.data.utils import check_det_dataset

    other = next(name for name in OBJECTS if name != split)
    shutil.rmtree(root / "images" / other)
    result = prepare(root)
    assert result.exit_code == 0, result.output
    assert f"{other} is not there: no images/{other} or {other}." in result.stdout
    assert f"there is no {other}" in (root / "coco.yaml").read_text()
    data = check_det_dataset(str(root / "coco.yaml"), autodownload=False)
    assert data["train"] == data["val"] == str(root / f"{split}.txt")

    write_split(root, other, root / "images")  # downloaded later
    later = report(root)
    assert later["splits"][split]["labels"] == "kept"
    assert later["splits"][other]["labels"] == "written"
    assert (later["yaml"], later["remarks"]) == ("rewritten", [])
    assert "there is no" not in (root / "coco.yaml").read_text()
    assert report(root)["yaml"] == "kept"
    data = check_det_dataset(str(root / "coco.yaml"), autodownload=False)
    assert (data["train"], data["val"]) == (str(root / "train2017.txt"), str(root / "val2017.txt"))


def test_images_beside_the_annotations(tmp_path: Path) -> None:
    """As COCO's archives unpack: Ultralytics finds labels for images/ only, so a link is put there."""
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    root = tmp_path / "coco"
    root.mkdir()
    write_split(root, "val2017", root)
    seen = report(root)
    assert any("is a link to" in remark for remark in seen["remarks"])
    assert os.readlink(root / "images" / "val2017") == os.path.join("..", "val2017")
    data = check_det_dataset(str(root / "coco.yaml"), autodownload=False)
    dataset = YOLODataset(img_path=data["val"], data=data, imgsz=64, augment=False, task="detect")
    assert sum(len(label["cls"]) for label in dataset.labels) == 2
    again = report(root)
    assert (again["splits"]["val2017"]["labels"], again["remarks"]) == ("kept", [])


def test_a_folder_that_ultralytics_does_not_take_for_coco(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("elsewhere") / "data"
    shutil.copytree(root, folder)
    if "coco" in str(folder):
        pytest.skip("the temporary folder itself has coco in its path")
    assert any("--category-map coco80-from-1" in remark for remark in report(folder)["remarks"])


def test_the_bundled_yaml_is_like_ultralytics_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ultralytics
    from ultralytics.utils.checks import check_file

    from yolo_lightbackbones import register
    from yolo_lightbackbones.configs.finding import config_dir

    register()
    monkeypatch.chdir(tmp_path)
    own = Path(check_file("coco.yaml"))
    assert own.is_relative_to(Path(ultralytics.__file__).parent)  # a bare name is theirs, not ours
    ours, theirs = (yaml.safe_load(path.read_text()) for path in (config_dir() / "datasets" / "coco.yaml", own))
    assert "download" not in ours
    assert ours == {key: value for key, value in theirs.items() if key != "download"}


# --- again ------------------------------------------------------------------------------------------------------------


def test_a_second_run_verifies_and_writes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from yolo_lightbackbones.coco import images

    report(root)
    before = snapshot(root)
    monkeypatch.setattr(images, "inspect", lambda path: pytest.fail(f"{path} was decoded again"))
    seen = report(root)
    assert seen["ok"]
    assert seen["yaml"] == "kept"
    assert all((s["labels"], s["list_file"]) == ("kept", "kept") for s in seen["splits"].values())
    assert snapshot(root) == before


def test_a_changed_image_is_looked_at_again(root: Path) -> None:
    report(root)
    (root / "images" / "val2017" / "000000000011.jpg").write_bytes(b"no longer")
    assert report(root, exit_code=1)["splits"]["val2017"]["problems"]["corrupt_images"]["count"] == 1


@pytest.mark.parametrize("content", [b"", b"[1]", b"[" * 200000, b'{"val2017/000000000011.jpg": 3}'])
def test_a_broken_record_only_costs_time(content: bytes, root: Path) -> None:
    (root / ".coco-prepare.json").write_bytes(content)
    assert report(root)["ok"]


@pytest.mark.parametrize("moment", ["while checking", "while converting"])
def test_an_interrupted_run_leaves_nothing_half(moment: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.data import converter

    from yolo_lightbackbones.coco import images

    with monkeypatch.context() as patch:
        if moment == "while checking":
            inspect = images.inspect

            def inspect_two(path: Path) -> object:
                if path.name >= "000000000003":
                    raise KeyboardInterrupt
                return inspect(path)

            patch.setattr(images, "inspect", inspect_two)
        else:
            convert = converter.convert_coco

            def convert_half(**options: Any) -> None:
                convert(**options)
                raise KeyboardInterrupt

            patch.setattr(converter, "convert_coco", convert_half)
        assert prepare(root).exit_code != 0
    assert_nothing_written(root)
    record = json.loads((root / ".coco-prepare.json").read_text())
    assert len(record) == (2 if moment == "while checking" else 6)
    assert report(root)["ok"]


def test_a_failure_while_writing_leaves_nothing_behind(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.data import converter

    def full_disk(**options: Any) -> None:
        Path(options["save_dir"]).mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(converter, "convert_coco", full_disk)
    assert_refused(prepare(root), "labels/train2017 could not be written: No space left on device")
    assert_nothing_written(root)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = Path(tempfile.mkdtemp())
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "coco-small-disk", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        folder.rmdir()
        pytest.skip("no file system can be mounted here; the test before this one makes the error itself")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


@pytest.mark.parametrize("left", [0, 4096, 8192, 12288, 16384, 20480])
def test_a_disk_that_is_full(left: int, root: Path, small_disk: Path) -> None:
    """At whatever moment it is met, the error names a file and what is there is whole."""
    shutil.copytree(root / "annotations", small_disk / "annotations")
    (small_disk / "images").symlink_to(root / "images")
    filling = (small_disk / "filling").open("wb", buffering=0)
    with contextlib.suppress(OSError):
        while filling.write(bytes(4096)):
            pass
    filling.truncate(max(0, filling.tell() - left))
    filling.close()
    result = prepare(small_disk)
    assert_refused(result, f"Error: {small_disk}/[^ ]+ could not be written: No space left on device|space left.*: '/")
    assert not list(small_disk.glob(".coco-prepare-*"))
    assert not list(small_disk.rglob("*.part"))
    (small_disk / "filling").unlink()
    assert report(small_disk)["ok"]


def test_a_read_only_folder_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report(root)
    (root / "val2017.txt").unlink()
    opened = os.open

    def read_only(path: object, flags: int, *rest: int, **more: object) -> int:
        if "val2017.txt" in os.fspath(path):  # type: ignore[call-overload]
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *rest, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "open", read_only)
    assert_refused(prepare(root), "val2017.txt could not be written: Read-only file system")


def test_what_killed_runs_left_is_removed_after_a_day(root: Path) -> None:
    old, new = root / ".coco-prepare-old", root / ".coco-prepare-new"
    for folder in (old, new):
        (folder / "labels").mkdir(parents=True)
    os.utime(old, (0, 0))
    report(root)
    assert new.is_dir()
    assert not old.exists()


def test_a_folder_that_cannot_be_written_to_is_told_at_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from yolo_lightbackbones.coco import images

    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    monkeypatch.setattr(images, "inspect", lambda path: pytest.fail("before it was looked at"))
    assert_refused(prepare(root), f"{root} cannot be written to")


@pytest.mark.parametrize("name", ["coco.yaml", "val2017.txt", "labels", "labels/val2017"])
def test_something_else_is_where_files_go(name: str, root: Path) -> None:
    path = root / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix:
        path.mkdir()
    else:
        path.write_text("")
    assert_refused(prepare(root, "--force"), rf"{name} is (a folder|no folder), where .* Move it away")


@pytest.mark.parametrize("name", ["coco.yaml", "val2017.txt", "labels", "labels/val2017", ".coco-prepare.json"])
@pytest.mark.parametrize("leads", ["somewhere", "nowhere"])
def test_nothing_is_written_through_links(name: str, leads: str, root: Path, tmp_path: Path) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    target = elsewhere / "target"
    if leads == "somewhere":
        target.write_text("precious") if Path(name).suffix else target.mkdir()
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).symlink_to(target)
    before, there = snapshot(tmp_path), sorted(tmp_path.rglob("*"))
    for options in ([], ["--force"]):
        assert_refused(prepare(root, *options), f"{name} is a link to '{target}', and nothing is written through links")
    assert snapshot(tmp_path) == before
    assert sorted(tmp_path.rglob("*")) == there


def test_images_may_be_a_link_and_get_none_through_it(root: Path, tmp_path: Path) -> None:
    shutil.move(root / "images", tmp_path / "elsewhere")
    (root / "images").symlink_to(tmp_path / "elsewhere")
    assert report(root)["ok"]
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["train2017", "val2017"]
    shutil.move(tmp_path / "elsewhere" / "val2017", root / "val2017")  # which would need a link in the other folder
    assert_refused(prepare(root), "images is a link to .*, and nothing is written through links")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["train2017"]


def test_hard_links_of_what_is_replaced_keep_their_content(root: Path, tmp_path: Path) -> None:
    report(root)
    name = "000000000011"
    files = [root / "val2017.txt", root / "coco.yaml", root / "labels" / "val2017" / f"{name}.txt"]
    files.append(root / "annotations" / "instances_val2017.json")
    (root / "images" / "val2017" / f"{name}.jpg").unlink()
    files[2].write_text("0 0.5 0.5 0.1 0.1\n")
    contents = [file.read_bytes() for file in files]
    for number, file in enumerate(files):
        os.link(file, tmp_path / str(number))
    assert report(root, "--skip-bad", "--force")["splits"]["val2017"]["labels"] == "rewritten"
    assert [(tmp_path / str(number)).read_bytes() for number in range(4)] == contents
    assert [file.stat().st_nlink for file in files] == [1, 1, 1, 2]  # only COCO's own file is still the same


@pytest.mark.parametrize("name", ["coco.yaml", "val2017.txt", ".coco-prepare.json", "labels/val2017/000000000011.txt"])
def test_pipes_keep_nobody_waiting(name: str, root: Path) -> None:
    report(root)
    (root / name).unlink()
    os.mkfifo(root / name)
    label = name.startswith("labels")
    message = "1 label files differ" if label else f"{name} is no regular file, where one of that name is needed"
    assert_refused(prepare(root), message)


def test_a_backup_never_meets_a_link(root: Path) -> None:
    report(root)
    (root / "labels" / "val2017" / "000000000011.txt").write_text("")
    (root / "labels" / "val2017.old").symlink_to("nowhere")
    assert report(root, "--force")["splits"]["val2017"]["labels"] == "rewritten"
    assert (root / "labels" / "val2017.old2").is_dir()


@pytest.mark.parametrize("name", ["caf\xe9 [b]", "x[/red]"])
def test_folders_of_any_name(name: str, root: Path, tmp_path: Path) -> None:
    folder = tmp_path / f"coco {name}"
    folder.parent.mkdir(exist_ok=True)
    root.rename(folder)
    result = prepare(folder)
    assert result.exit_code == 0, result.output
    assert str(folder) in result.stdout.replace("\n", "")


# --- what is there already --------------------------------------------------------------------------------------------


def test_labels_that_say_the_same_are_kept(root: Path) -> None:
    """Other digits, another order of rows, empty files for images without objects, as other converters write them."""
    for name, boxes in LABELS.items():
        path = root / "labels" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{int(box[0])} " + " ".join(f"{value:.6f}" for value in box[1:]) for box in reversed(boxes)]
        path.write_text("\n".join(lines))
    (root / "labels" / "train2017" / "000000000003.txt").write_text("")
    before = snapshot(root / "labels")
    assert report(root)["splits"]["train2017"]["labels"] == "kept"
    assert snapshot(root / "labels") == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("000000000011.txt", "1 0.5 0.5 0.5 0.5\n"),
        ("000000000011.txt", ""),
        ("000000000011.txt", "not a label"),
        ("000000000099.txt", "1 0.5 0.5 0.5 0.5\n"),
    ],
)
def test_labels_that_differ_are_replaced_only_by_force(name: str, content: str, root: Path) -> None:
    report(root)
    good = (root / "labels" / "val2017" / "000000000011.txt").read_text()
    (root / "labels" / "val2017" / name).write_text(content)
    (root / "labels" / "val2017.cache").write_text("of the old labels")
    before = snapshot(root)
    assert_refused(prepare(root), f"1 label files differ from those .* already: {name}", "Add --force")
    assert snapshot(root) == before

    seen = report(root, "--force")
    assert seen["splits"]["val2017"]["labels"] == "rewritten"
    assert seen["splits"]["train2017"]["labels"] == "kept"
    assert (root / "labels" / "val2017" / "000000000011.txt").read_text() == good
    assert (root / "labels" / "val2017.old" / name).read_text() == content
    assert not (root / "labels" / "val2017.cache").exists()
    assert report(root)["splits"]["val2017"]["labels"] == "kept"


def test_a_list_that_differs_is_replaced_only_by_force(root: Path) -> None:
    report(root)
    path = root / "val2017.txt"
    path.write_text("./images/val2017/000000000012.jpg\n./images/val2017/000000000077.jpg\n")
    before = snapshot(root)
    refused = prepare(root)
    assert_refused(refused, "3 lines differ in the image list", "000000000011.*000000000013.*000000000077")
    assert snapshot(root) == before
    assert report(root, "--force")["splits"]["val2017"]["list_file"] == "rewritten"
    assert path.read_text().count("\n") == 3
    good = path.read_text().splitlines(keepends=True)
    path.write_text("".join(reversed(good)))
    assert report(root)["splits"]["val2017"]["list_file"] == "kept"
    for lines in ([*good, good[0]], [line.removeprefix("./") for line in good]):
        path.write_text("".join(lines))  # an image twice; paths that Ultralytics looks for in the current folder
        assert_refused(prepare(root), "lines differ in the image list")


def test_a_yaml_of_the_users_own_is_never_touched(root: Path) -> None:
    (root / "coco.yaml").write_text("val: elsewhere.txt\n")
    seen = report(root, "--force")
    assert seen["yaml"] == "left alone"
    assert any("does not name train: train2017.txt" in remark for remark in seen["remarks"])
    assert (root / "coco.yaml").read_text() == "val: elsewhere.txt\n"
    assert "Train with it" not in prepare(root).stdout
    own = "train: ./train2017.txt\nval: val2017.txt\nnames: [person]\n"
    (root / "coco.yaml").write_text(own)
    assert (report(root)["yaml"], (root / "coco.yaml").read_text()) == ("kept", own)


def test_our_yaml_has_the_number_of_images_that_the_lists_have(root: Path) -> None:
    report(root)
    assert "val: val2017.txt # 3 images\n" in (root / "coco.yaml").read_text()
    (root / "images" / "val2017" / "000000000012.jpg").unlink()
    assert report(root, "--skip-bad", "--force")["yaml"] == "rewritten"
    assert "val: val2017.txt # 2 images\n" in (root / "coco.yaml").read_text()


@pytest.mark.parametrize(
    "content",
    [
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n" for a, b in pairwise("abcdefghi"))
        + "train: *i\nval: *i\n",
        "a: &a {x: 1}\n"
        + "".join(f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in pairwise("abcdefghi"))
        + "train: val2017.txt\n",
        "train: &t [*t]\nval: val2017.txt\n",
        "train: " + "[" * 3000,
        "train: " + "[" * 300 + "a," * 100_000,
        "train: !!timestamp never\nval: !!int ''\n",
        'train: "\\UFFFFFFFF"\n',
        "[train, val]",
        "",
        "x" * 10_000_000,
    ],
)
def test_a_yaml_of_any_kind_is_left_alone(content: str, root: Path) -> None:
    (root / "coco.yaml").write_text(content)
    started = time.process_time()
    assert report(root)["yaml"] == "left alone"
    assert time.process_time() - started < 5
    assert (root / "coco.yaml").read_text() == content


# --- names of images --------------------------------------------------------------------------------------------------

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


# --- problems ---------------------------------------------------------------------------------------------------------


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


# --- real images ------------------------------------------------------------------------------------------------------


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A copy of 33 images of val2017 with COCO's annotations, less what coco-prepare writes."""
    if not (COCO / "annotations").is_dir():
        pytest.skip("the COCO images are not beside this checkout; the same is tested on a small folder")
    folder = tmp_path / "coco"
    shutil.copytree(COCO / "annotations", folder / "annotations")
    shutil.copytree(COCO / "images", folder / "images")
    return folder


def test_real_images(real: Path) -> None:
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    seen = report(real)
    counts = {"images": 33, "annotations": 323, "crowds": 5, "images_without_annotations": 2, "listed": 33}
    assert counts.items() <= seen["splits"]["val2017"].items()
    assert seen["splits"]["val2017"]["problems"] == seen["splits"]["val2017"]["notes"] == {}
    assert seen["absent"] == {"train2017": "no images/train2017 or train2017"}
    data = check_det_dataset(str(real / "coco.yaml"), autodownload=False)
    dataset = YOLODataset(img_path=data["val"], data=data, imgsz=64, augment=False, task="detect")
    assert len(dataset) == 33
    assert sum(len(label["cls"]) for label in dataset.labels) == 323 - 5


def test_labels_from_elsewhere_are_recognised(real: Path) -> None:
    """They were made by another converter: other digits, and empty files for images without objects."""
    shutil.copytree(COCO / "labels" / "val2017", real / "labels" / "val2017")
    shutil.copy(COCO / "val2017.txt", real)
    seen = report(real)["splits"]["val2017"]
    assert (seen["labels"], seen["list_file"]) == ("kept", "kept")


@pytest.mark.slow
def test_prepared_validated_evaluated(real: Path, tmp_path: Path, one_thread: None) -> None:
    """`yolo val` takes the folder for COCO, and writes COCO's ids, which coco-eval takes as they are."""
    from detectors import awake_detector

    report(real)
    detector = awake_detector("yolov5n_edgevit.yaml")
    options = {"imgsz": 64, "batch": 1, "plots": False, "workers": 0, "device": "cpu", "max_det": 20}
    detector.val(data=str(real / "coco.yaml"), project=str(tmp_path), name="val", save_json=True, **options)
    predictions = tmp_path / "val" / "predictions.json"
    categories = {entry["category_id"] for entry in json.loads(predictions.read_text())}
    assert max(categories) > 80
    truth = real / "annotations" / "instances_val2017.json"
    arguments = ["coco-eval", str(predictions), "-a", str(truth), "--images", str(real / "val2017.txt")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "Evaluated 33 of 33 images: 318 objects, 5 crowd regions" in result.stdout

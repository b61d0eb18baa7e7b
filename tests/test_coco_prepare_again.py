"""`lightbackbones coco-prepare` run again, interrupted, hindered by the disk, and on what others wrote."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from coco_folder import LABELS, assert_nothing_written, assert_refused, prepare, report, snapshot, write_coco


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


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

"""Prepares a COCO folder for Ultralytics: checks it, and writes labels, image lists and a data YAML.

Everything is checked before anything is written. Files appear complete or not at all, and existing files are compared,
not overwritten. So an interrupted run is simply repeated.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from yolo_lightbackbones.coco import labels, names
from yolo_lightbackbones.coco.files import shortened
from yolo_lightbackbones.coco.images import RECORD, Record, Whole, check_images
from yolo_lightbackbones.coco.instances import Instances, for_labels, read_instances
from yolo_lightbackbones.coco.layout import SPLITS, Split, find_splits
from yolo_lightbackbones.coco.report import Report, SplitReport
from yolo_lightbackbones.messages import quoted
from yolo_lightbackbones.writing import naming, write_text

DATA_YAML = "coco.yaml"
SCRATCH = ".coco-prepare-"
_DAY = 24 * 60 * 60  # seconds
_LONGEST_YAML = 50_000  # characters of a data YAML that are read; ours has 3,000

Convert = Callable[[Path, Path], None]
"""Converts the annotation files in one folder to labels/<split>/*.txt in a new one: Ultralytics' `convert_coco`."""

Progress = Callable[[str, int | None], AbstractContextManager[Callable[[], None]]]
"""Shows the progress of a task (description, number of steps); the callable advances it by one step."""


@dataclass(frozen=True)
class Options:
    """What `prepare` may leave out or overwrite."""

    skip_bad: bool = False  # leave images with problems out of the lists
    force: bool = False  # replace labels and lists that differ


@dataclass
class _Work:
    """The state of one split while it is prepared."""

    split: Split
    report: SplitReport
    instances: Instances
    usable: list[str] = field(default_factory=list)  # file names of the images for the list
    new_labels: Path | None = None  # converted, not yet in place
    list_is_there: bool = False


def prepare(
    root: Path,
    *,
    categories: Mapping[int, str],
    convert: Convert,
    progress: Progress,
    options: Options,
) -> Report:
    """Check the COCO folder `root` and write what Ultralytics needs beside COCO's own files.

    `categories` are COCO's, id -> name, in the order of the classes. The report says what was found. Its `ok` is False
    if nothing was written because of problems.

    Raises:
        OSError, ValueError: no COCO folder, or an annotation file that cannot be read.
    """
    splits, absent = find_splits(root)
    _check_targets(root, splits)
    report = Report(str(root), absent=absent)
    record = Record(root)
    works = []
    for split in splits:
        with progress(f"Reading {split.annotations.name}", None):
            instances = read_instances(split.annotations, categories)
        work = _Work(split, report.splits.setdefault(split.name, SplitReport()), instances)
        _report_annotations(work)
        with progress(f"Checking {split.name}", len(instances.images)) as step:
            _check_images(work, record, step)
        works.append(work)
    if any(work.report.problems for work in works) and not options.skip_bad:
        return report
    for work in works:
        if not work.usable:
            raise ValueError(f"No image of {work.split.name} can be used; see that its archive was unpacked whole.")

    _clear_scratch(root)
    with tempfile.TemporaryDirectory(dir=root, prefix=SCRATCH) as scratch:
        for work in works:
            with progress(f"Converting {work.split.name} to labels", None):
                _make_labels(work, Path(scratch), convert)
        conflicts = [_compare(work) for work in works]
        if any(conflicts) and not options.force:
            return report
        for work in works:
            _put_in_place(work, report)
    _write_yaml(root, works, list(categories.values()), report)
    if "coco" not in str(root.resolve() / "val2017.txt"):
        report.remarks.append(
            f"`yolo val` recognises COCO by 'coco' in the path, which {root.resolve()} lacks: it will number the "
            "categories from 1 to 80. Rename the folder, or evaluate with --category-map coco80-from-1."
        )
    report.ok = True
    return report


# --- checks ------------------------------------------------------------------------------------------------------


def _check_targets(root: Path, splits: Sequence[Split]) -> None:
    """Check, as far as possible in advance, that everything can be written.

    A link is refused wherever something may be written, because its target is not in this folder. Only the images may
    be elsewhere: they are read and never written.
    """
    files = (root / DATA_YAML, root / RECORD, *(split.list_file for split in splits))
    files += tuple(split.labels.with_suffix(".cache") for split in splits)
    folders = [root / "labels", *(split.labels for split in splits)]
    if any(not os.path.lexists(split.linked_images) for split in splits):
        folders.append(root / "images")  # a link to the images will be made in it
    for path in (*files, *folders):
        if path.is_symlink():
            raise ValueError(
                f"{path} is a link to {quoted(os.readlink(path))}, and nothing is written through links. Remove the "
                "link, or put what it leads to in its place."
            )
    for path in files:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder, where a file of that name is needed. Move it away.")
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is no regular file, where one of that name is needed. Move it away.")
    for path in (*folders, *(split.linked_images for split in splits)):
        if os.path.lexists(path) and not path.is_dir():
            raise NotADirectoryError(f"{path} is no folder, where one of that name is needed. Move it away.")
    for path in (root, *filter(Path.is_dir, folders)):
        if not os.access(path, os.W_OK):
            raise PermissionError(f"{path} cannot be written to; labels, image lists and {DATA_YAML} have to go there.")


def _report_annotations(work: _Work) -> None:
    instances, report = work.instances, work.report
    report.images = len(instances.images) + len(instances.badly_named)
    report.annotations = instances.annotations
    report.crowds = instances.crowds
    report.images_without_annotations = report.images - len(instances.annotated)
    report.problems |= instances.name_problems
    for kind, tally in (
        ("unknown_categories", instances.unknown_category),
        ("outside_boxes", instances.outside),
        ("unlisted_images", instances.unlisted_image),
    ):
        if tally.count:
            report.problems[kind] = tally
    if instances.flat.count:
        report.notes["flat_boxes"] = instances.flat


def _check_images(work: _Work, record: Record, step: Callable[[], None]) -> None:
    report, folder = work.report, work.split.images
    images = {image.name: (number, image) for number, image in work.instances.images.items()}
    with closing(check_images(folder, list(images), record, step)) as checks:  # so that the record is always saved
        for name, seen in checks:
            number, image = images[name]
            if seen is None:
                report.problem("missing_images", name)
            elif not isinstance(seen, Whole):
                report.problem("corrupt_images", f"{name}: {seen}")
            elif (seen.width, seen.height) != (image.width, image.height):
                sizes = f"{seen.width} x {seen.height}, not {image.width} x {image.height}"
                report.problem("wrong_sizes", f"{name}: {sizes}")
            else:
                if not seen.ended:
                    report.note("unfinished_jpegs", name)
                if number not in work.instances.bad_images:
                    work.usable.append(name)
    annotated = {*images, *(name for name in work.instances.badly_named.values() if isinstance(name, str))}
    for path, _, files in os.walk(folder):
        for name in sorted(Path(path, file).relative_to(folder).as_posix() for file in files):
            if name not in annotated:
                report.note("strangers", name)


# --- labels and lists --------------------------------------------------------------------------------------------


def _clear_scratch(root: Path) -> None:
    """Remove folders that killed runs have left, once they are a day old: another run may be working now."""
    for folder in root.glob(f"{SCRATCH}*"):
        with contextlib.suppress(FileNotFoundError):  # another run has just removed it
            if time.time() - folder.stat().st_mtime > _DAY:
                shutil.rmtree(folder, ignore_errors=True)


def _make_labels(work: _Work, scratch: Path, convert: Convert) -> None:
    """Convert the annotations in `scratch`. Missing and damaged images get labels, too, for when they are replaced."""
    source, target = scratch / f"annotations_{work.split.name}", scratch / f"converted_{work.split.name}"
    source.mkdir()
    content = for_labels(work.split.annotations, work.instances)
    work.new_labels = target / "labels" / work.split.name
    with naming(work.split.labels):
        (source / work.split.annotations.name).write_text(json.dumps(content), encoding="utf-8")
        convert(source, target)
        work.new_labels.mkdir(parents=True, exist_ok=True)  # without annotations there is no folder
    expected = {names.label(work.instances.images[a["image_id"]].name) for a in content["annotations"]}
    made = {path.relative_to(work.new_labels).as_posix() for path in work.new_labels.rglob("*.txt")}
    if made != expected:
        # For example, one file for two names: to a file system, upper and lower case or forms of accents may be equal.
        raise ValueError(
            f"Ultralytics made {len(made)} label files of {work.split.name} where {len(expected)} were expected; they "
            f"differ in {shortened(sorted(made ^ expected))}. Give these images names that this file system keeps."
        )


def _compare(work: _Work) -> bool:
    """Whether existing labels or an existing list differ from what would be written."""
    split, report = work.split, work.report
    conflict = False
    if work.new_labels and split.labels.is_dir() and any(split.labels.iterdir()):
        different = labels.differences(split.labels, work.new_labels)
        if different.count:
            report.problems["labels_differ"] = different
            conflict = True
        else:
            work.new_labels = None
            report.labels = "kept"
    if split.list_file.exists():
        # As Ultralytics reads it: a line without ./ is looked up in the current folder, a repeated line counts twice.
        lines = split.list_file.read_text(encoding="utf-8-sig", errors="backslashreplace").strip().splitlines()
        there, wanted = Counter(filter(None, lines)), Counter(_list_lines(work))
        for line, times in sorted(((there - wanted) + (wanted - there)).items()):
            report.problem("list_differs", line, times)
        work.list_is_there = there == wanted
        conflict = conflict or not work.list_is_there
    return conflict


def _list_lines(work: _Work) -> list[str]:
    return [f"./images/{work.split.name}/{name}" for name in sorted(work.usable)]


def _put_in_place(work: _Work, report: Report) -> None:
    split = work.split
    _link_images(split, report)
    if work.new_labels:
        with naming(split.labels):
            kept = labels.install(work.new_labels, split.labels)
        work.report.labels = "rewritten" if kept else "written"
        if kept:
            report.remarks.append(f"The labels that were in {split.labels} are in {kept} now.")
    if work.list_is_there:
        work.report.list_file = "kept"
    else:
        work.report.list_file = "rewritten" if split.list_file.exists() else "written"
        write_text(split.list_file, "".join(f"{line}\n" for line in _list_lines(work)))
    work.report.listed = len(work.usable)


def _link_images(split: Split, report: Report) -> None:
    """Link images that are where COCO's archives unpack them to images/, where Ultralytics looks for them."""
    if split.linked_images.is_dir():
        return
    split.linked_images.parent.mkdir(exist_ok=True)
    try:
        split.linked_images.symlink_to(Path("..") / split.name, target_is_directory=True)
    except OSError as error:
        raise OSError(
            f"Ultralytics finds labels only for images in {split.linked_images}, and no link to {split.images} could "
            f"be made there ({error}). Move the folder there and run this again."
        ) from error
    report.remarks.append(f"{split.linked_images} is a link to {split.images}: Ultralytics looks for images there.")


# --- the data YAML -----------------------------------------------------------------------------------------------


def _write_yaml(root: Path, works: Sequence[_Work], classes: list[str], report: Report) -> None:
    path = root / DATA_YAML
    lists = {work.split.name: work.split.list_file.name for work in works}
    train, val = (lists.get(name, next(iter(lists.values()))) for name in SPLITS)
    counts = {work.split.list_file.name: len(work.usable) for work in works}
    notes = {name: "" if name in lists else f"; there is no {name}: do not trust numbers on it" for name in SPLITS}
    content = (
        "# COCO 2017 in this folder, written by `lightbackbones coco-prepare`\n"
        f"# Example usage: yolo train model=yolov5n_edgevit.yaml data=path/to/{DATA_YAML}\n"
        "# (no `path:`, so that the lists are looked for beside this file and the folder can be moved)\n\n"
        f"train: {train} # {counts[train]} images{notes['train2017']}\n"
        f"val: {val} # {counts[val]} images{notes['val2017']}\n\n"
        + yaml.safe_dump({"names": dict(enumerate(classes))}, sort_keys=False)
    )
    if not path.exists():
        write_text(path, content)
        report.yaml = "written"
        return
    there = path.read_text(encoding="utf-8", errors="backslashreplace")
    if there == content:
        report.yaml = "kept"
    elif _LISTS.sub("", there) == _LISTS.sub("", content):  # only splits or numbers of images differ
        write_text(path, content)
        report.yaml = "rewritten"
    elif _named_lists(there) == {"train": train, "val": val}:
        report.yaml = "kept"
    else:
        report.yaml = "left alone"
        report.remarks.append(
            f"{path} was left as it is, but it does not name train: {train} and val: {val}. Delete it to have it "
            "written anew."
        )


_LISTS = re.compile(r"^(train|val): (train|val)2017\.txt # \d+ images(; there is no (train|val)2017: [a-z ]+)?$", re.M)
"""The lines of our data YAML that may differ from run to run."""


def _named_lists(content: str) -> dict[str, str]:
    """The train and val entries of a data YAML, if they are single texts.

    Only its nodes are read, and no objects are made: with aliases and merge keys, a few bytes make millions of objects.
    """
    try:
        document = yaml.compose(content[:_LONGEST_YAML], yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):  # nested without end, \U beyond Unicode
        return {}
    if not isinstance(document, yaml.MappingNode):
        return {}
    pairs = ((key, value) for key, value in document.value if isinstance(key, yaml.ScalarNode))
    return {
        key.value: value.value.removeprefix("./")
        for key, value in pairs
        if key.value in ("train", "val") and isinstance(value, yaml.ScalarNode)
    }

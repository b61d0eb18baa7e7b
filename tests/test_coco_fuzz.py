"""Thousands of broken COCO folders, annotation files and predictions: each is refused in a sentence, or handled right.

COCO_FUZZ_CASES sets how many are made; a failure names its seed, and COCO_FUZZ_FIRST is the seed to begin with.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import random
import shutil
import signal
import stat
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

import yolo_lightbackbones
from yolo_lightbackbones.cli import coco_eval, coco_prepare
from yolo_lightbackbones.coco import evaluation, ground_truth, predictions, prepare, selection

PACKAGE = Path(yolo_lightbackbones.__file__).parent
CASES = int(os.environ.get("COCO_FUZZ_CASES", "500"))
FIRST = int(os.environ.get("COCO_FUZZ_FIRST", "0"))
SIDE = 12  # pixels
SLOWEST = 5.0  # seconds
NAMES = ["000000000001.jpg", "sub/2.png", "b c.JPG"]

Content = dict[str, Any]


class Hang(BaseException):
    """Nothing that a handler of errors would take."""


# --- what is broken ---------------------------------------------------------------------------------------------------


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


DEEP = "@deep"
"""Stands for more brackets within brackets than Python can write, or copy, but not more than it can read."""

NUMBERS: list[object] = [
    0,
    -1,
    1,
    2,
    12,
    91,
    1.5,
    -0.0,
    1e9,
    1e10,
    1e17,
    1e200,
    1e308,
    2**31,
    2**32,
    2**63 - 1,
    -(2**63),
]
NUMBERS += [2**64, 10**400, math.inf, -math.inf, math.nan, True, False]
TEXTS: list[object] = [
    "",
    " ",
    "a",
    "a.jpg",
    "1",
    "9" * 30,
    "a\nb.jpg",
    "a\u2028.jpg",
    "a\0.jpg",
    "\ud800.jpg",
    "\udcff",
    ".",
]
TEXTS += [
    "../x.jpg",
    "/x.jpg",
    "./x.jpg",
    "C:\\x.jpg",
    "images/x.jpg",
    "x.txt/x.jpg",
    "x" * 300 + ".jpg",
    "y" * 100_000,
]
TEXTS += [*NAMES, "000000000001.png", "sub/2.jpg", "\x1b[2J.jpg", "b c.JPG ", "[/red]"]
OTHERS: list[object] = [None, [], {}, [[]], [None], {"size": [12, 12]}, nested(40), DEEP]
BOXES: list[object] = [
    [0, 0, 0, 0],
    [1, 1, -1, 5],
    [math.nan] * 4,
    [1e308] * 4,
    [10**400] * 4,
    [-5, -5, 30, 30],
    [1, 2, 3],
]
BOXES += [[11, 11, 5, 5], [1e17, 0, 1, 1], [0, 0, 1e6, 1e6], ["1", 2, 3, 4], [0.1, 0.1, 11.95, 11.95], [True, 0, 3, 3]]
MASKS: list[object] = [
    {"size": [SIDE, SIDE], "counts": counts} for counts in ("", "T4", "abc", "~" * 50, "o" * 9, [144], [1])
]
MASKS += [{"size": [10**9, 10**9], "counts": "0"}, {"size": [12, 12], "counts": nested(5)}, [[1, 1, 5, 1, 5, 5]]]
MASKS += [[[0, 0, 1e5, 1e5] * 50], [[0, 0, 1e18, 3, 4, 5]], [[1, 2, 3]], {"size": [SIDE, SIDE], "counts": "`4" * 9}]


def any_value(rng: random.Random) -> object:
    return copy.deepcopy(rng.choice(rng.choice([NUMBERS, TEXTS, OTHERS, BOXES, MASKS])))


def break_content(content: Any, rng: random.Random) -> Any:
    """The content with a value somewhere in it replaced, removed, added, or there twice."""
    parent, key, value = None, None, content
    while isinstance(value, dict | list) and value and rng.random() < 0.88:
        parent = value
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        value = value[key]
    if parent is None:
        return any_value(rng) if rng.random() < 0.3 else content
    kind = rng.choice(["replace"] * 4 + ["remove", "double", "swap", "add"])
    if kind == "replace":
        parent[key] = any_value(rng)
    elif kind == "remove":
        del parent[key]
    elif kind == "double" and isinstance(parent, list):
        parent.extend(copy.deepcopy([value] * rng.choice([1, 1, 7])))
    elif kind == "swap":
        other = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
        parent[key], parent[other] = parent[other], parent[key]
    elif isinstance(parent, dict):
        parent[rng.choice(["id", "ignore", "file_name", "segmentation", "x\ud800"])] = any_value(rng)
    return content


def broken_json(content: Any, rng: random.Random) -> bytes:
    """The content as JSON, broken in its values and now and then in its bytes."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        content = break_content(content, rng)
    raw = bytearray(json.dumps(content, ensure_ascii=rng.random() < 0.8).encode("utf-8", "surrogatepass"))
    raw = raw.replace(b'"@deep"', b"[" * 900 + b"]" * 900)
    if rng.random() < 0.12:
        raw = bytearray(
            rng.choice(
                [b"", b"{", b"[" * 99_999, b"\xef\xbb\xbf" + raw, raw.decode("utf-8", "replace").encode("utf-16")]
            )
        )
    elif rng.random() < 0.1:
        for _ in range(rng.choice([1, 3])):
            at = rng.randrange(len(raw))
            raw[at : at + rng.choice([0, 1, 9])] = rng.choice([b"\0", b"\xff", b'"', b"[", b"e999", b"9" * 5000, b""])
    return bytes(raw)


def break_folder(root: Path, rng: random.Random) -> None:
    """Something else on the disk than an untouched COCO folder."""
    image = root / "images" / "val2017" / rng.choice(NAMES)
    content = image.read_bytes() if image.is_file() and os.access(image, os.R_OK) else b""
    place = root / rng.choice(
        ["labels", "labels/val2017", "labels/val2017/000000000001.txt", "labels/val2017.cache", "labels/val2017.old"]
        * 2
        + ["val2017.txt", "coco.yaml", ".coco-prepare.json"] * 2
        + ["val2017", "train2017", "images/val2017/stranger\udcff.jpg"]
    )

    def new(make: Callable[[Path], object]) -> Callable[[], None]:
        def put() -> None:
            if not os.path.lexists(place) and place.parent.resolve() == place.parent:
                with contextlib.suppress(OSError):  # below a file
                    place.parent.mkdir(parents=True, exist_ok=True)
                    make(place)

        return put

    lines = [f"./images/val2017/{name}" for name in NAMES]
    texts = [
        "",
        "\n".join(lines),
        "\n".join(lines * 2),
        "\r\n".join(lines),
        "a\x1c./b\n",
        "1 0.5 0.5 0.1 0.1\n",
        "nan " * 5,
    ]
    texts += [
        "train: [1\n",
        "train: val2017.txt\nval: val2017.txt\n",
        "a: &a [*a]\ntrain: *a\n",
        '{"val2017/sub/2.png": 3}',
    ]
    damage = [
        content[: rng.randrange(len(content) + 1)],
        b"",
        b"GIF89a",
        content + b"more",
        b"\xff\xd8\xff\xe1\xff\xff" * 9,
    ]
    flipped = bytearray(content or b" ")
    flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    damage += [bytes(flipped)] * 4
    if content.startswith(b"\x89PNG"):
        damage += [
            content[:16] + b"\x00\x01\x86\xa0" * 2 + content[24:],
            content[:16] + b"\x7f\xff\xff\xff" * 2 + content[24:],
        ]
    of_places = [
        new(lambda path: path.symlink_to(root.parent / "victim")),
        new(lambda path: path.symlink_to("nowhere")),
        new(Path.mkdir),
        new(os.mkfifo),
        *[new(lambda path: path.write_text(rng.choice(texts)))] * 2,
    ]
    of_images: list[Callable[[], object]] = [
        image.unlink,
        *[lambda: image.write_bytes(rng.choice(damage))] * 2,
        lambda: (image.unlink(), os.mkfifo(image)),
        lambda: (image.unlink(), image.symlink_to(image)),
        lambda: (image.unlink(), image.mkdir()),
        lambda: image.chmod(0),
    ]
    rng.choice([*of_images, *of_places] if content else of_places)()


# --- what it is done to -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def categories() -> dict[int, str]:
    return coco_prepare._categories()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def truth(categories: dict[int, str]) -> Content:
    """Objects of four classes, a crowd region, and an image without any."""
    boxes = [
        (1, 1, [1, 1, 5, 5]),
        (1, 3, [0.5, 2, 6, 7.25]),
        (1, 1, [2, 2, 9, 9]),
        (2, 90, [0, 0, 12, 12]),
        (2, 13, [3, 3, 2, 2]),
    ]
    return {
        "info": {},
        "images": [{"id": n, "file_name": name, "height": SIDE, "width": SIDE} for n, name in enumerate(NAMES, 1)],
        "annotations": [
            {
                "id": n,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(category == 13),
                "segmentation": {"size": [SIDE, SIDE], "counts": [140, 4]}
                if category == 13
                else [[box[0], box[1], box[0] + box[2], box[1], box[0] + box[2], box[1] + box[3]]],
            }
            for n, (image, category, box) in enumerate(boxes, 1)
        ],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }


def detections(content: Content, rng: random.Random) -> list[Content]:
    from pycocotools import mask

    canvas = np.zeros((SIDE, SIDE), np.uint8, order="F")
    canvas[2:6, 3:9] = 1
    counts = mask.encode(canvas)["counts"].decode()
    return [
        {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": annotation["bbox"],
            "score": round(rng.random(), 3),
            "segmentation": {"size": [SIDE, SIDE], "counts": counts},
            **({"file_name": NAMES[annotation["image_id"] - 1]} if rng.random() < 0.5 else {}),
        }
        for annotation in content["annotations"]
    ]


def tree(root: Path) -> dict[str, object]:
    """What lies under a folder; links and pipes are not opened."""
    found: dict[str, object] = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            status = path.lstat()
            content: object = status.st_mode
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK):
                content = (path.read_bytes(), status.st_mtime_ns)
            found[str(path.relative_to(root))] = content
    return {name: content for name, content in found.items() if name != ".coco-prepare.json"}


def state() -> dict[str, object]:
    """Of the process, as far as it could be left otherwise."""
    from ultralytics.utils import LOGGER

    files = Path("/proc/self/fd")
    return {
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "streams": (id(sys.stdout), id(sys.stderr)),
        "logger": (LOGGER.level, list(LOGGER.handlers)),
        "warnings": list(warnings.filters),
        "numpy": (np.geterr(), np.random.get_state()[1].tolist()),
        "random": random.getstate(),
        "pillow": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK),
        "recursion": sys.getrecursionlimit(),
        "threads": threading.active_count(),
        "open files": len(list(files.iterdir())) if files.is_dir() else 0,
    }


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang(f"more than {SLOWEST} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SLOWEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def assert_a_sentence(error: Exception) -> None:
    """An error of ours: raised in the package, or the system's about a file; short; printable after our escapes."""
    text = str(error)
    innermost = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    assert isinstance(error, ValueError | OSError)
    assert innermost.is_relative_to(PACKAGE) or (isinstance(error, OSError) and error.filename), innermost
    assert 20 < len(text) < 4000
    coco_prepare.printable_lines(text).encode("utf-8")


def attempt(action: Callable[[], Any]) -> Any:
    """What it gives, or None where it refuses."""
    before, started = state(), time.monotonic()
    try:
        with in_time():
            return action()
    except (ValueError, OSError) as error:
        assert_a_sentence(error)
        return None
    finally:
        after = state()
        assert before == after, [key for key in before if before[key] != after[key]]
        assert time.monotonic() - started < SLOWEST


@contextlib.contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[[], None]]:
    yield lambda: None


def prepared(root: Path, categories: dict[int, str], rng: random.Random) -> bool:
    """One folder through `prepare`; whether it was accepted."""
    from ultralytics.data.base import BaseDataset

    options = prepare.Options(skip_bad=rng.random() < 0.6, force=rng.random() < 0.4)

    def run() -> Any:
        return prepare.prepare(
            root, categories=categories, convert=coco_prepare._convert, progress=progress, options=options
        )

    before = tree(root)
    report = attempt(run)
    if report is None or not report.ok:
        assert tree(root) == before, "refused, and yet something was written"
    if report is None:
        return False
    assert len(json.dumps(report.as_json())) < 30_000
    assert report.ok or coco_prepare._problems(report)
    if not report.ok:
        return False
    after = tree(root)
    kept = {name: content for name, content in before.items() if name.startswith(("annotations", "images", "val2017/"))}
    assert kept.items() <= after.items(), "a file of COCO's was touched"
    again = attempt(run)
    assert again is not None
    assert again.ok
    assert tree(root) == after, "a second run changed something"
    reader = BaseDataset.__new__(BaseDataset)
    reader.prefix, reader.fraction = "", 1.0
    found = reader.get_img_files(str(root / "val2017.txt"))
    entries = json.loads((root / "annotations" / "instances_val2017.json").read_bytes())["images"]
    listed = [entry.get("file_name") for entry in entries]
    assert len(set(found)) == len(found) == report.splits["val2017"].listed > 0
    assert all(map(os.path.isfile, found))
    assert all(os.path.relpath(path, root / "images" / "val2017") in listed for path in found)
    return True


def evaluated(folder: Path, truth_json: bytes, found_json: bytes, rng: random.Random) -> bool:
    """One pair of files through the evaluation; whether it gave numbers."""
    (annotations := folder / "truth.json").write_bytes(truth_json)
    (found := folder / "predictions.json").write_bytes(found_json)
    (chosen := folder / "list.txt").write_bytes(rng.choice([b"000000000001.jpg\n2\n", b"\xff", b"3\n" * 9, b"x\x1c1"]))
    kind = rng.choice(list(predictions.REGIONS))
    listed = rng.random() < 0.2

    def run() -> Any:
        content = ground_truth.read_ground_truth(annotations, masks=kind == "segm")
        entries = predictions.read_predictions(found, kind)
        predictions.check_categories(entries, content, coco_eval._category_maps)
        predictions.may_be_numbered_otherwise(entries, content, coco_eval._category_maps)
        predictions.may_be_numbered_from_1(entries, content)
        matched = predictions.match_images(entries, content)
        images = selection.read_image_list(chosen, content) if listed else None
        return evaluation.evaluate(content, matched.predictions, images=images, iou_type=kind)

    result = attempt(run)
    if result is None:
        return False
    assert all(value == -1 or 0 <= value <= 1 for value in result.metrics.values())
    json.dumps(coco_eval._json(result, True), allow_nan=False).encode("utf-8")
    return True


@pytest.mark.skipif(not hasattr(os, "mkfifo") or not hasattr(signal, "setitimer"), reason="pipes and timers of POSIX")
def test_broken_folders_and_files(categories: dict[int, str], images: Path, tmp_path: Path) -> None:
    few = {number: categories[number] for number in (1, 3, 13, 90)}
    (victim := tmp_path / "victim").mkdir()
    accepted = {"prepare": 0, "evaluate": 0}
    (folder := tmp_path / "coco").mkdir()
    attempt(coco_eval._category_maps)  # what is imported once stays
    for seed in range(FIRST, FIRST + CASES):
        rng = random.Random(seed)
        try:
            if seed % 2:
                content = truth(few)
                found = detections(content, rng)
                parts = [json.dumps(content).encode(), json.dumps(found).encode()]
                if rng.random() < 0.5:
                    parts[0] = broken_json(content, rng)
                if rng.random() < 0.6:
                    parts[1] = broken_json(found, rng)
                accepted["evaluate"] += evaluated(tmp_path, parts[0], parts[1], rng)
                continue
            shutil.rmtree(folder)
            (folder / "annotations").mkdir(parents=True)
            shutil.copytree(images, folder / "images" / "val2017")
            json_file = folder / "annotations" / "instances_val2017.json"
            json_file.write_bytes(
                broken_json(truth(few), rng) if rng.random() < 0.7 else json.dumps(truth(few)).encode()
            )
            for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
                break_folder(folder, rng)
            accepted["prepare"] += prepared(folder, categories, rng)
            assert not any(victim.iterdir()), "written through a link"
        except (Exception, Hang) as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    if CASES >= 100:  # else a few seeds are looked at again
        assert min(accepted.values()) > CASES / 12, f"of too little use: {accepted}"
        assert max(accepted.values()) < CASES / 2.5, f"of too little use: {accepted}"

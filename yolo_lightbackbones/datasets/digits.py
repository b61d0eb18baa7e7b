"""A small detection data set that needs no network, drawn from scikit-learn's bundled handwritten digits.

scikit-learn ships 1,797 real scans of handwritten digits (8 x 8 pixels, 17 grey levels; UCI "Optical Recognition of
Handwritten Digits", Alpaydin and Kaynak, 1998). :func:`build_digits` enlarges them smoothly, rotates them a little and
draws them, light or dark, onto backgrounds with gradients, blotches and noise: 1 to 6 digits per image, YOLO labels,
and a COCO JSON of the val split. ``cfg/datasets/digits.yaml`` calls it on first use.

Every scan belongs to one split, so the val digits come from scans that were never trained on. The set is easy and tiny:
a score on it shows that a model learns, not how good the model is.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolo_lightbackbones.messages import quoted
from yolo_lightbackbones.writing import naming

__all__ = ["CLASS_NAMES", "IMAGE_SIZE", "MAX_DIGIT_SIZE", "MIN_DIGIT_SIZE", "build_digits"]

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IMAGE_SIZE = 320  # pixels, both sides
MIN_DIGIT_SIZE, MAX_DIGIT_SIZE = 40, 160  # pixels, longer side of a digit's box
MAX_DIGITS = 6  # per image
MAX_ROTATION = 15.0  # degrees, either way
MAX_COVERED = 0.1  # share of a box that a neighbour's box may cover
CONTRAST = (45.0, 120.0)  # grey levels of 255 between the ink and the background around it
VAL_SHARE = 0.25  # of the scans of each class

_RECORD = "sources.json"
_RECIPE_VERSION = 1  # raise it with any change to the pictures, so that sets built earlier are not taken for this one
_QUIET_SECONDS = 2.0  # a build faster than this shows no progress

_Image = NDArray[np.float32]


def build_digits(root: str | Path, *, train_images: int = 800, val_images: int = 200, seed: int = 0) -> Path:
    """Build the data set in the folder `root` and return its absolute path; a finished one is left as it is.

    The same arguments give the same files. The set appears whole or not at all: it is drawn in a temporary folder
    beside `root` and then renamed.

    Layout: ``images/{train,val}/*.jpg``, ``labels/{train,val}/*.txt`` (YOLO rows: class, then box centre and size as
    shares of the image), ``annotations/instances_val.json`` (COCO) and ``sources.json``, which lists for every image
    the indices of its scans in ``sklearn.datasets.load_digits()``.

    Raises:
        FileExistsError: `root` exists and is neither empty nor this same data set, complete; or it is a broken link.
        ModuleNotFoundError: scikit-learn is not installed.
        ValueError: an image count below 1 or a negative seed.
        WriteError: the disk is full, or the folder read-only.
    """
    recipe = _Recipe(train_images, val_images, seed)
    root = Path(root).absolute()
    if _is_finished(root, recipe):
        return root
    scans = _load_scans()
    with naming(root):
        _build(root.resolve(), recipe, scans)  # an empty folder may be a link to where there is space
    return root


def _build(root: Path, recipe: _Recipe, scans: _Scans) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name[:40]}-") as scratch:
        # A folder inside the temporary one, because that one is private to the user and is removed by its own name.
        staging = Path(scratch) / root.name
        staging.mkdir()
        _write_dataset(staging, recipe, scans)
        try:
            if root.exists():
                root.rmdir()  # it is empty; on Windows a rename fails if the target exists
            staging.rename(root)
        except OSError:
            # Another process (a rank of a distributed run, say) may have finished the same set first.
            if not _is_finished(root, recipe):
                raise


@dataclass(frozen=True)
class _Recipe:
    """The settings that determine the files of a data set; stored with it."""

    train_images: int
    val_images: int
    seed: int
    version: int = _RECIPE_VERSION

    def __post_init__(self) -> None:
        for name in ("train_images", "val_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 image is needed in each split.")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: expected 0 or more.")


def _is_finished(root: Path, recipe: _Recipe) -> bool:
    """Whether `root` already holds the data set of `recipe`; False means that `root` is free to be written."""
    if not os.path.lexists(root):
        return False
    if root.is_dir() and not any(root.iterdir()):
        return False  # an empty folder may be replaced
    advice = "Delete it, or choose another folder."
    foreign = FileExistsError(f"{root} exists and is not a digits data set. {advice}")
    record = root / _RECORD
    if not record.is_file():  # reading a pipe would block
        raise foreign
    try:
        found = json.loads(record.read_text(encoding="utf-8"))["recipe"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise foreign from None
    if found != asdict(recipe):
        raise FileExistsError(f"{root} holds digits built as {quoted(found)}, not as {asdict(recipe)}. {advice}")
    for split, expected in (("train", recipe.train_images), ("val", recipe.val_images)):
        for kind, pattern in (("images", "*.jpg"), ("labels", "*.txt")):
            count = len(list((root / kind / split).glob(pattern)))
            if count != expected:
                raise FileExistsError(f"{root / kind / split} holds {count} of {expected} files. {advice}")
    return True


# --- the scans ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scans:
    images: _Image  # (1797, 8, 8), ink 0..1
    digits: NDArray[np.int64]  # (1797,), 0..9


def _load_scans() -> _Scans:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The digits data set is drawn from scikit-learn's scans, and scikit-learn is not installed. "
            "Run: pip install scikit-learn",
            name=error.name,
        ) from error
    bundle = load_digits()
    return _Scans(np.asarray(bundle.images / 16.0, np.float32), np.asarray(bundle.target, np.int64))


def _split_scans(scans: _Scans, rng: np.random.Generator) -> dict[str, list[NDArray[np.int64]]]:
    """Scan indices per split, as one array per class: each scan in one split only."""
    splits: dict[str, list[NDArray[np.int64]]] = {"train": [], "val": []}
    for digit in range(len(CLASS_NAMES)):
        indices = rng.permutation(np.flatnonzero(scans.digits == digit))
        n_val = round(VAL_SHARE * len(indices))
        splits["val"].append(indices[:n_val])
        splits["train"].append(indices[n_val:])
    return splits


def _deal(by_class: list[NDArray[np.int64]], rng: np.random.Generator) -> Iterator[int]:
    """Yield scan indices without end. Class counts differ by at most one; a scan repeats after all of its class."""
    decks: list[list[int]] = [[] for _ in by_class]
    while True:
        for digit in rng.permutation(len(by_class)):
            deck = decks[digit]
            if not deck:
                deck.extend(rng.permutation(by_class[digit]).tolist())
            yield deck.pop()


# --- one image ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Box:
    """Pixels x <= column < x + w and y <= row < y + h."""

    x: int
    y: int
    w: int
    h: int

    def moved(self, dx: int, dy: int) -> _Box:
        return _Box(self.x + dx, self.y + dy, self.w, self.h)

    def covered_by(self, other: _Box) -> float:
        """Share of this box's area that `other` covers."""
        width = min(self.x + self.w, other.x + other.w) - max(self.x, other.x)
        height = min(self.y + self.h, other.y + other.h) - max(self.y, other.y)
        return max(width, 0) * max(height, 0) / (self.w * self.h)


@dataclass(frozen=True)
class _Placed:
    scan: int
    digit: int
    box: _Box


def _ink(scan: _Image, longer_side: float, degrees: float) -> tuple[_Image, _Box]:
    """Enlarge and turn one 8 x 8 scan.

    Returns its opacity (h, w) in 0..1, cropped to where there is any, and the box of the pixels at least half opaque,
    whose longer side is about `longer_side` pixels.
    """
    padded = np.pad(scan, 2)  # empty pixels around, so that strokes at the edge end softly, too
    pixels_per_cell = longer_side / len(scan)
    for _ in range(2):  # the second time corrects for how much of its 8 x 8 cells this scan fills when turned
        side = round(len(padded) * pixels_per_cell)
        smooth = cv2.resize(padded, (side, side), interpolation=cv2.INTER_CUBIC)
        turn = cv2.getRotationMatrix2D((side / 2 - 0.5, side / 2 - 0.5), degrees, 1.0)
        smooth = cv2.warpAffine(smooth, turn, (side, side), flags=cv2.INTER_LINEAR)
        opacity: _Image = np.clip((smooth - 0.3) / 0.3, 0.0, 1.0, dtype=np.float32)  # a stroke with a narrow soft edge
        box = _Box(*cv2.boundingRect((opacity >= 0.5).astype(np.uint8)))
        pixels_per_cell *= longer_side / max(box.w, box.h)
    x, y, w, h = cv2.boundingRect((opacity > 0).astype(np.uint8))
    return opacity[y : y + h, x : x + w], box.moved(-x, -y)


def _background(rng: np.random.Generator) -> _Image:
    """(IMAGE_SIZE, IMAGE_SIZE, 3) grey levels: a tint with a gradient, blotches and a grain."""
    finest = 24
    shade = np.zeros((finest, finest), np.float32)
    for cells, strongest in ((2, 35.0), (6, 14.0), (finest, 8.0)):  # coarse: a gradient; finer: blotches, grain
        bumps = rng.uniform(-1.0, 1.0, (cells, cells)) * rng.uniform(0.2, 1.0) * strongest
        shade += cv2.resize(bumps.astype(np.float32), (finest, finest), interpolation=cv2.INTER_CUBIC)
    tint = rng.uniform(50.0, 205.0) + rng.uniform(-25.0, 25.0, 3)
    colours = (tint + shade[..., None] * rng.uniform(0.7, 1.3, 3)).astype(np.float32)
    return np.asarray(cv2.resize(colours, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_CUBIC), np.float32)


def _ink_colour(surroundings: _Image, rng: np.random.Generator) -> NDArray[np.float64]:
    """A colour (3,) that differs by one of the CONTRAST levels from the mean of `surroundings` (h, w, 3)."""
    mean = surroundings.mean(axis=(0, 1), dtype=np.float64)
    contrast = rng.uniform(*CONTRAST)
    room_above, room_below = 255.0 - mean.mean(), mean.mean()
    light = rng.random() < 0.5 if min(room_above, room_below) > contrast else room_above > room_below
    difference = contrast * rng.uniform(0.8, 1.2, 3)
    colour: NDArray[np.float64] = np.clip(mean + difference if light else mean - difference, 0.0, 255.0)
    return colour


def _add_digit(
    image: _Image, neighbours: list[_Placed], index: int, scans: _Scans, rng: np.random.Generator
) -> _Placed | None:
    """Draw scan `index` into `image` where there is room, or return None after enough tries."""
    for _ in range(40):
        # Evenly on a logarithmic scale: as many digits from 40 to 80 px as from 80 to 160 px.
        size = np.exp(rng.uniform(np.log(MIN_DIGIT_SIZE), np.log(MAX_DIGIT_SIZE)))
        opacity, box = _ink(scans.images[index], size, rng.uniform(-MAX_ROTATION, MAX_ROTATION))
        h, w = opacity.shape
        if not MIN_DIGIT_SIZE <= max(box.w, box.h) <= MAX_DIGIT_SIZE or max(h, w) > IMAGE_SIZE:
            continue
        x, y = (int(rng.integers(IMAGE_SIZE - extent + 1)) for extent in (w, h))
        box = box.moved(x, y)
        if any(max(box.covered_by(n.box), n.box.covered_by(box)) > MAX_COVERED for n in neighbours):
            continue
        patch = image[y : y + h, x : x + w]
        patch += opacity[..., None] * (_ink_colour(patch, rng).astype(np.float32) - patch)
        return _Placed(index, int(scans.digits[index]), box)
    return None


def _draw_split(
    count: int, scans: _Scans, by_class: list[NDArray[np.int64]], rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.uint8], list[_Placed]]]:
    """Yield `count` images (IMAGE_SIZE, IMAGE_SIZE, 3), BGR, each with the digits on it."""
    dealt = _deal(by_class, rng)
    upcoming = next(dealt)
    for _ in range(count):
        image = _background(rng)
        placed: list[_Placed] = []
        for _ in range(rng.integers(1, MAX_DIGITS + 1)):
            digit = _add_digit(image, placed, upcoming, scans, rng)
            if digit is None:
                break  # the image is full: the digit goes onto the next one, so that the classes stay balanced
            placed.append(digit)
            upcoming = next(dealt)
        noise = rng.standard_normal(image.shape, np.float32)
        cv2.scaleAdd(noise, rng.uniform(2.0, 9.0), image, image)
        yield np.clip(image, 0, 255).astype(np.uint8), placed


# --- the files ---------------------------------------------------------------------------------------------------


@dataclass
class _Progress:
    """Shows a count on stderr, only on terminals and only if the build takes longer than `_QUIET_SECONDS`."""

    total: int
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    def step(self) -> None:
        self.done += 1
        if sys.stderr.isatty() and time.monotonic() - self.started > _QUIET_SECONDS:
            end = "\n" if self.done == self.total else ""
            print(f"\rDrawing digits: image {self.done} of {self.total}", end=end, file=sys.stderr, flush=True)


def _write_dataset(root: Path, recipe: _Recipe, scans: _Scans) -> None:
    split_scans = _split_scans(scans, np.random.default_rng(recipe.seed))
    progress = _Progress(recipe.train_images + recipe.val_images)
    sources: dict[str, list[int]] = {}
    contents: dict[str, dict[str, list[_Placed]]] = {}
    next_id = 1  # numbers run on through both splits, so that an image id is unique in the whole data set
    for number, (split, count) in enumerate((("train", recipe.train_images), ("val", recipe.val_images))):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        contents[split] = {}
        rng = np.random.default_rng([recipe.seed, number])
        for image, placed in _draw_split(count, scans, split_scans[split], rng):
            stem = f"{next_id:06d}"
            next_id += 1
            _write_image(root / "images" / split / f"{stem}.jpg", image)
            _write_text(root / "labels" / split / f"{stem}.txt", "".join(map(_yolo_row, placed)))
            sources[f"{split}/{stem}.jpg"] = [digit.scan for digit in placed]
            contents[split][f"{stem}.jpg"] = placed
            progress.step()
    (root / "annotations").mkdir()
    _write_text(root / "annotations" / "instances_val.json", json.dumps(_coco(contents["val"])))
    _write_text(root / _RECORD, json.dumps({"recipe": asdict(recipe), "images": sources}, indent=1))


def _write_image(path: Path, image: NDArray[np.uint8]) -> None:
    encoded, data = cv2.imencode(path.suffix, image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    if not encoded:
        raise RuntimeError(f"OpenCV could not encode {path}.")
    path.write_bytes(data.tobytes())  # unlike cv2.imwrite, fails loudly and takes any path


def _write_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode())  # bytes: the same line ends on every system


def _yolo_row(placed: _Placed) -> str:
    box = placed.box
    shares = (box.x + box.w / 2, box.y + box.h / 2, box.w, box.h)
    return f"{placed.digit} " + " ".join(f"{value / IMAGE_SIZE:.6f}" for value in shares) + "\n"


def _coco(images: dict[str, list[_Placed]]) -> dict[str, Any]:
    """Convert `images` (file name -> digits) to annotations in COCO's format.

    The ids are those that Ultralytics writes into predictions.json: the number in the file name, and class + 1.
    """
    annotations: list[dict[str, Any]] = []
    for name, digits in images.items():
        for digit in digits:
            box = digit.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": int(Path(name).stem),
                    "category_id": digit.digit + 1,
                    "bbox": [box.x, box.y, box.w, box.h],
                    "area": box.w * box.h,
                    "iscrowd": 0,
                }
            )
    return {
        "info": {"description": "yolo_lightbackbones digits, val split"},
        "images": [
            {"id": int(Path(name).stem), "file_name": name, "width": IMAGE_SIZE, "height": IMAGE_SIZE}
            for name in images
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASS_NAMES, 1)],
    }

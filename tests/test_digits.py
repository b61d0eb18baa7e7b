"""The digits data set: what is promised about its files, and what a failed or repeated build leaves behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the digits are drawn from scikit-learn's scans")

from yolo_lightbackbones.datasets import digits

TRAIN, VAL = 12, 8


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits.build_digits(tmp_path_factory.mktemp("data") / "digits", train_images=TRAIN, val_images=VAL)


def read_labels(path: Path) -> np.ndarray:
    """Rows (n, 5): class, then box centre and size as shares of the image."""
    return np.loadtxt(path, ndmin=2)


def all_labels(dataset: Path) -> np.ndarray:
    return np.concatenate([read_labels(path) for path in sorted(dataset.glob("labels/*/*.txt"))])


def fingerprint(dataset: Path) -> dict[str, str]:
    return {
        path.relative_to(dataset).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(dataset.rglob("*"))
        if path.is_file()
    }


def sources(dataset: Path) -> dict[str, list[int]]:
    return json.loads((dataset / "sources.json").read_text())["images"]


def test_every_image_has_labels(dataset: Path) -> None:
    for split, count in (("train", TRAIN), ("val", VAL)):
        images = {path.stem for path in (dataset / "images" / split).iterdir()}
        assert len(images) == count
        assert images == {path.stem for path in (dataset / "labels" / split).iterdir()}
    for path in dataset.glob("images/*/*.jpg"):
        assert cv2.imread(str(path)).shape == (320, 320, 3)


def test_builds_are_identical(dataset: Path, tmp_path: Path) -> None:
    again = digits.build_digits(tmp_path / "digits", train_images=TRAIN, val_images=VAL)
    assert fingerprint(again) == fingerprint(dataset)
    other = digits.build_digits(tmp_path / "other", train_images=TRAIN, val_images=VAL, seed=1)
    assert not set(fingerprint(other).values()) & set(fingerprint(dataset).values())


def test_no_scan_is_in_both_splits(tmp_path: Path) -> None:
    # Enough val images to deal every val scan at least once.
    dataset = digits.build_digits(tmp_path / "digits", train_images=150, val_images=150)
    scans: dict[str, set[int]] = {"train": set(), "val": set()}
    for name, indices in sources(dataset).items():
        scans[name.split("/")[0]].update(indices)
    assert not scans["train"] & scans["val"]
    assert len(scans["val"]) == pytest.approx(1797 / 4, abs=5), "a quarter, rounded in each class"
    assert scans["train"] | scans["val"] <= set(range(1797))


def test_labels_name_the_digits_of_the_scans(dataset: Path) -> None:
    from sklearn.datasets import load_digits

    targets = load_digits().target
    for name, indices in sources(dataset).items():
        labels = read_labels(dataset / "labels" / Path(name).with_suffix(".txt"))
        assert labels[:, 0].tolist() == targets[indices].tolist()


def test_classes_are_balanced(dataset: Path) -> None:
    for split in ("train", "val"):
        rows = np.concatenate([read_labels(path) for path in (dataset / "labels" / split).iterdir()])
        counts = np.bincount(rows[:, 0].astype(int), minlength=10)
        assert counts.max() - counts.min() <= 1


def test_boxes_lie_in_the_image_and_keep_their_sizes(dataset: Path) -> None:
    for path in dataset.glob("labels/*/*.txt"):
        assert 1 <= len(read_labels(path)) <= 6
    boxes = all_labels(dataset)[:, 1:] * 320
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
    assert corners.min() > -0.01
    assert corners.max() < 320.01
    longer_sides = boxes[:, 2:].max(axis=1)
    assert longer_sides.min() > 39.99
    assert longer_sides.max() < 160.01
    assert longer_sides.max() > 1.5 * longer_sides.min(), "sizes vary"


def test_boxes_of_one_image_hardly_overlap(dataset: Path) -> None:
    for path in dataset.glob("labels/*/*.txt"):
        boxes = read_labels(path)[:, 1:]
        low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
        for i in range(len(boxes)):
            for j in range(i):
                width, height = np.clip(np.minimum(high[i], high[j]) - np.maximum(low[i], low[j]), 0, None)
                smaller = min(boxes[i, 2:].prod(), boxes[j, 2:].prod())
                assert width * height <= 0.101 * smaller, path


def frame(image: np.ndarray, box: np.ndarray, margin: int) -> list[np.ndarray]:
    """The four sides, one pixel wide, of a box (x1, y1, x2, y2) widened by `margin` pixels, up to 10."""
    image = np.pad(image, [(10, 10), (10, 10), (0, 0)][: image.ndim], mode="edge")
    x1, y1, x2, y2 = np.rint(box).astype(int) + 10 + margin * np.array([-1, -1, 1, 1])
    patch = image[y1:y2, x1:x2]
    return [patch[0], patch[-1], patch[:, 0], patch[:, -1]]


def test_boxes_are_tight_on_visible_ink(dataset: Path) -> None:
    """Seen in the finished JPEGs: ink reaches each side of a box, and none is left a little beyond it."""
    checked = 0
    for path in sorted(dataset.glob("labels/*/*.txt")):
        labels = read_labels(path)
        if len(labels) > 1:
            continue  # with one digit alone, all else is background
        centre, half = labels[0, 1:3] * 320, labels[0, 3:] * 320 / 2
        box = np.concatenate([centre - half, centre + half])
        image = cv2.imread(str(dataset / "images" / path.parent.name / f"{path.stem}.jpg")).astype(np.float32)
        image = cv2.GaussianBlur(image, (0, 0), 1.5)  # against the noise
        background = np.median(np.concatenate(frame(image, box, 6)), axis=0)
        contrast = np.abs(image - background).mean(axis=2)
        x1, y1, x2, y2 = np.rint(box).astype(int)
        ink = np.percentile(contrast[y1:y2, x1:x2], 95)
        assert ink > 30, "the digit stands out"
        assert min(side.max() for side in frame(contrast, box, -2)) > 0.4 * ink, "ink reaches every side"
        assert max(side.max() for side in frame(contrast, box, 4)) < 0.5 * ink, "and ends there"
        checked += 1
    assert checked >= 2


def test_coco_json_agrees_with_the_labels(dataset: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco").COCO(dataset / "annotations" / "instances_val.json")
    assert {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())} == dict(enumerate(digits.CLASS_NAMES, 1))
    files = {path.name for path in (dataset / "images" / "val").iterdir()}
    assert {image["file_name"] for image in coco.dataset["images"]} == files
    for image in coco.dataset["images"]:
        assert image["id"] == int(Path(image["file_name"]).stem), "as in Ultralytics' predictions.json"
        labels = read_labels(dataset / "labels" / "val" / f"{Path(image['file_name']).stem}.txt")
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert [a["category_id"] - 1 for a in annotations] == labels[:, 0].tolist()
        boxes = np.array([a["bbox"] for a in annotations], float)
        boxes[:, :2] += boxes[:, 2:] / 2
        np.testing.assert_allclose(boxes / 320, labels[:, 1:], atol=1e-6)


def test_the_yaml_names_the_same_classes() -> None:
    yaml = pytest.importorskip("yaml")
    file = Path(__file__).parents[1] / "cfg" / "datasets" / "digits.yaml"
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert tuple(data["names"][i] for i in range(10)) == digits.CLASS_NAMES


def test_the_yaml_builds_the_set_where_ultralytics_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yaml = pytest.importorskip("yaml")
    file = Path(__file__).parents[1] / "cfg" / "datasets" / "digits.yaml"
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    built: list[Path] = []
    monkeypatch.setattr(digits, "build_digits", built.append)
    exec(data["download"], {"yaml": {**data, "path": tmp_path / "digits"}})  # as check_det_dataset does
    assert built == [tmp_path / "digits"]


def test_a_finished_set_is_left_alone(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "_write_dataset", lambda *_: pytest.fail("rebuilt"))
    (dataset / "labels" / "train.cache").touch()  # as Ultralytics leaves it
    assert digits.build_digits(dataset, train_images=TRAIN, val_images=VAL) == dataset
    (dataset / "labels" / "train.cache").unlink()


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    digits.build_digits(tmp_path, train_images=1, val_images=1)
    assert (tmp_path / "sources.json").is_file()


def test_a_foreign_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="not a digits data set"):
        digits.build_digits(tmp_path, train_images=1, val_images=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", [None, "[" * 100_000, '{"recipe": "' + "x" * 1_000_000 + '"}', "[]", "\ud800"])
def test_a_record_of_any_kind_is_refused_in_a_sentence(content: str | None, tmp_path: Path) -> None:
    record = tmp_path / "sources.json"
    if content is None:
        os.mkfifo(record)
    else:
        record.write_text(content, errors="surrogatepass")
    with pytest.raises(FileExistsError, match=r"Delete it, or choose another folder\.$") as caught:
        digits.build_digits(tmp_path, train_images=1, val_images=1)
    assert len(str(caught.value)) < 1000


def test_links(tmp_path: Path) -> None:
    """A link to an empty folder, on a larger disk say, is filled; one to nothing is refused."""
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (tmp_path / "digits").symlink_to(elsewhere)
    assert digits.build_digits(tmp_path / "digits", train_images=1, val_images=1) == tmp_path / "digits"
    assert (elsewhere / "sources.json").is_file()
    (tmp_path / "broken").symlink_to("nowhere")
    with pytest.raises(FileExistsError, match="broken exists and is not a digits data set"):
        digits.build_digits(tmp_path / "broken", train_images=1, val_images=1)
    assert sorted(os.listdir(tmp_path)) == ["broken", "digits", "elsewhere"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_nothing_is_named(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=f"^{tmp_path / 'digits'} could not be written: {os.strerror(number)}$") as caught:
        digits.build_digits(tmp_path / "digits", train_images=1, val_images=1)
    assert caught.value.errno == number
    assert not list(tmp_path.iterdir())


def test_a_set_of_another_recipe_is_refused(dataset: Path) -> None:
    with pytest.raises(FileExistsError, match=r"'seed': 0.*not as .*'seed': 7"):
        digits.build_digits(dataset, train_images=TRAIN, val_images=VAL, seed=7)


def test_an_incomplete_set_is_refused(tmp_path: Path) -> None:
    root = digits.build_digits(tmp_path / "digits", train_images=2, val_images=1)
    next((root / "images" / "train").iterdir()).unlink()
    with pytest.raises(FileExistsError, match="holds 1 of 2 files"):
        digits.build_digits(root, train_images=2, val_images=1)


@pytest.mark.parametrize("error", [RuntimeError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_build_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    write_image, written = digits._write_image, []

    def fail_midway(path: Path, image: np.ndarray) -> None:
        if len(written) == 3:
            raise error
        write_image(path, image)
        written.append(path)

    monkeypatch.setattr(digits, "_write_image", fail_midway)
    with pytest.raises(type(error)):
        digits.build_digits(tmp_path / "digits", train_images=4, val_images=4)
    assert not list(tmp_path.iterdir())


def test_two_builds_at_once_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, write_dataset = tmp_path / "digits", digits._write_dataset

    def overtaken(*args: object) -> None:
        monkeypatch.undo()
        digits.build_digits(root, train_images=1, val_images=1)
        write_dataset(*args)

    monkeypatch.setattr(digits, "_write_dataset", overtaken)
    assert digits.build_digits(root, train_images=1, val_images=1) == root
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_missing_scikit_learn_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
        digits.build_digits(tmp_path / "digits")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"train_images": 0}, {"val_images": -1}, {"seed": -1}])
def test_wrong_arguments_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        digits.build_digits(tmp_path / "digits", **wrong)

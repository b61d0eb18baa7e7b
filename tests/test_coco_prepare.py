"""`lightbackbones coco-prepare`: what it writes for a small folder of our own, and for real images of COCO."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from coco_folder import LABELS, OBJECTS, prepare, report, rows, snapshot, write_coco, write_split
from places import COCO
from typer.testing import CliRunner

from yolo_lightbackbones.cli import app


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


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

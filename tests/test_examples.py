"""The examples run as their texts say, from any folder, and a mistake is a message."""

from __future__ import annotations

import errno
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from places import REPOSITORY
from typer.testing import CliRunner

from yolo_lightbackbones import create_backbone
from yolo_lightbackbones.cli import app

EXAMPLES = REPOSITORY / "examples"


@dataclass(frozen=True)
class Completed:
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Completed]


def process(*command: str | Path, cwd: Path, **environment: str) -> Completed:
    """Run Python with these arguments as a process of its own."""
    result = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return Completed(result.returncode, result.stdout, result.stderr)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run an example in this process, which has imported torch already, with `tmp_path` as the current folder."""

    def run_here(name: str, *arguments: str | Path) -> Completed:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        assert isinstance(ended.value.code, int)
        return Completed(ended.value.code, *capfd.readouterr())

    return run_here


def succeed(result: Completed) -> str:
    """What an example printed that should have ended well."""
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def assert_refused(result: Completed, message: str, folder: Path, present: set[Path]) -> None:
    """A user's mistake is one message and exit code 1, and writes nothing."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    assert set(folder.iterdir()) == present


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set YAML of a few pictures of digits."""
    pytest.importorskip("sklearn", reason="the digits are drawn from scikit-learn's scans")
    from yolo_lightbackbones.datasets.digits import CLASS_NAMES, build_digits

    folder = tmp_path_factory.mktemp("data")
    root = build_digits(folder / "digits", train_images=8, val_images=2)
    names = dict(enumerate(CLASS_NAMES))
    content = {"path": str(root), "train": "images/train", "val": "images/val", "names": names}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder / "data.yaml"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of `lightbackbones convert`, from weights of ours."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.save(create_backbone("edgevit_xxs").state_dict(), folder / "weights.pth")
    arguments = ["convert", folder / "weights.pth", "--model", "yolov5n_edgevit.yaml", "--output", folder / "init.pt"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return folder / "init.pt"


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a model without a backbone of ours."""
    from ultralytics import YOLO

    path = tmp_path_factory.mktemp("stock") / "stock.pt"
    YOLO("yolov8n.yaml").save(path)
    return path


# --- custom_backbone.py -----------------------------------------------------------------------------------------------


def test_a_custom_backbone_builds_runs_and_folds(tmp_path: Path) -> None:
    # not in this process, whose registry would know the family from then on
    out = succeed(process(EXAMPLES / "custom_backbone.py", "--imgsz", "64", "--scale", "s", cwd=tmp_path))
    assert "registered: plainnet_n, plainnet_s" in out
    for line in ("P2: 1 x 32 x 16 x 16", "P3: 1 x 64 x 8 x 8", "P4: 1 x 128 x 4 x 4", "P5: 1 x 256 x 2 x 2"):
        assert line in out
    difference = re.search(r"largest difference of a value is (\S+)", out)
    assert difference
    assert 0 < float(difference[1]) < 1e-4
    assert "strides 8, 16, 32, 84 boxes" in out  # 8 x 8, 4 x 4 and 2 x 2 positions


def test_a_custom_backbone_refuses_other_sizes(tmp_path: Path) -> None:
    result = process(EXAMPLES / "custom_backbone.py", "--imgsz", "100", cwd=tmp_path)
    assert_refused(result, "--imgsz is 100; it must be a multiple of 32", tmp_path, set())


@pytest.fixture(scope="module")
def plainnet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of processes in which the example is installed, with the entry point that its text tells of."""
    entry_point = re.search(
        r"^    \[project.entry-points.(\w+)\]\n    (\w+) = \"(\S+)\"$", read("custom_backbone.py"), re.M
    )
    assert entry_point
    site = tmp_path_factory.mktemp("site")
    shutil.copy(EXAMPLES / "custom_backbone.py", site)
    information = site / "plainnet-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: plainnet\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{entry_point[1]}]\n{entry_point[2]} = {entry_point[3]}\n")
    return {"PYTHONPATH": os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])}


@pytest.mark.slow
def test_an_installed_backbone_trains_and_loads_in_processes_that_import_nothing(
    plainnet: dict[str, str], data: Path, tmp_path: Path
) -> None:
    shutil.copy(EXAMPLES / "custom_backbone.yaml", tmp_path)
    train = """
from ultralytics import YOLO
YOLO("custom_backbone.yaml").train(data=DATA, epochs=1, imgsz=32, batch=4, workers=0, amp=False, plots=False, val=False,
                                   project=PROJECT, name="train")
"""
    values = f"DATA, PROJECT = {str(data)!r}, {str(tmp_path / 'runs')!r}"
    result = process("-c", values + train, cwd=tmp_path, **plainnet)
    assert result.returncode == 0, result.stdout + result.stderr
    # the scale letter reached the variant: the neck's channels follow from P5's 128
    load = """
from ultralytics import YOLO
backbone = YOLO("runs/train/weights/best.pt").model.model[0]
print(type(backbone).__module__, type(backbone).__name__, backbone.out_channels)
"""
    result = process("-c", load, cwd=tmp_path, ULTRALYTICS_SAFE_LOAD="1", **plainnet)
    assert result.stdout.splitlines()[-1] == "custom_backbone PlainNet (16, 32, 64, 128)", result.stderr
    # and without the package a name is missing: it was the entry point that brought it
    assert "custom_backbone" in process("-c", load, cwd=tmp_path).stderr


# --- tap_features.py --------------------------------------------------------------------------------------------------


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A bright square on black, 96 high and 160 wide."""
    image = np.zeros((96, 160, 3), np.uint8)
    image[32:64, 96:128] = 255
    cv2.imwrite(str(tmp_path / "picture.png"), image)
    return tmp_path / "picture.png"


def test_taps_are_drawn_side_by_side(run: Run, picture: Path, tmp_path: Path) -> None:
    out = succeed(run("tap_features.py", picture, "--imgsz", "160", "--out", "taps.png"))
    assert out.splitlines()[:4] == [
        "P2 /4: 36 x 24 x 40",
        "P3 /8: 72 x 12 x 20",
        "P4 /16: 144 x 6 x 10",
        "P5 /32: 288 x 3 x 5",
    ]
    drawn = cv2.imread(str(tmp_path / "taps.png"))
    height = drawn.shape[0] - 96  # of the titles
    assert 0 < height < 40
    assert drawn.shape[1] == 5 * 160
    original, heat = drawn[height:, :160], drawn[height:, 160:320].astype(int)
    np.testing.assert_array_equal(original, cv2.imread(str(picture)))
    # the map of P2 tells the square's border from the empty corner
    assert np.abs(heat[32:64, 92:132].mean((0, 1)) - heat[:16, :16].mean((0, 1))).max() > 10


def test_taps_of_loaded_weights_and_of_a_checkpoint_agree(
    run: Run, picture: Path, converted: Path, tmp_path: Path
) -> None:
    weights = ["--weights", converted.with_name("weights.pth")]
    for name, arguments in {"a": weights, "b": ["--model", converted], "c": []}.items():
        out = succeed(run("tap_features.py", picture, "--imgsz", "160", *arguments, "--out", f"{name}.png"))
        assert ("loaded 244 of 244" in out) == (name == "a")
    a, b, c = (cv2.imread(str(tmp_path / f"{name}.png")).astype(int) for name in "abc")
    assert np.abs(a - b).mean() < 0.5
    assert np.abs(a - c).mean() > 5, "other weights, other features"


def test_a_full_disk_is_told_and_leaves_no_half_picture(
    run: Run, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    result = run("tap_features.py", picture, "--imgsz", "160", "--out", "taps.png")
    assert_refused(result, r"error: taps\.png could not be written: No space left on device", tmp_path, {picture})


def test_mistakes_in_asking_for_taps(run: Run, picture: Path, stock: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (["nothing.jpg"], "there is no picture nothing.jpg"),
        ([__file__], "not a picture"),
        ([picture, "--backbone", "edgevit_xxl"], "Unknown variant 'edgevit_xxl'.*Allowed: xxs, xs, s"),
        ([picture, "--weights", "nothing.pth"], "no weights file nothing.pth"),
        ([picture, "--model", "nothing.pt"], "no checkpoint nothing.pt"),
        ([picture, "--model", stock], "no backbone of yolo_lightbackbones"),
        ([picture, "--imgsz", "8"], "--imgsz is 8"),
        ([picture, "--out", "nowhere/taps.jpg"], "no folder nowhere"),
        ([picture, "--out", "taps.doc"], r"Give one that ends in .jpg or .png"),
    ):
        result = run("tap_features.py", *arguments)
        assert_refused(result, message, tmp_path, {picture})


# --- frozen_finetuning.py ---------------------------------------------------------------------------------------------

SHORT = ["--epochs", "1", "--imgsz", "32", "--batch", "4", "--workers", "0", "--out", "runs"]


def test_a_frozen_backbone_stays_and_the_rest_learns(run: Run, converted: Path, data: Path, tmp_path: Path) -> None:
    out = succeed(run("frozen_finetuning.py", converted, "--data", data, *SHORT))
    assert "Backbone: 0 of 220 parameters and 0 of 26 BatchNorm statistics changed" in out
    changed = re.search(r"Whole model: (\d+) of \d+ parameters and (\d+) of", out)
    assert changed
    assert int(changed[1]) > 100
    assert int(changed[2]) > 50
    # what the script says of itself; EdgeViT-XXS has 3,778,128 parameters, its norms behind three taps 1,008
    counted = re.search(r"Trainable: ([\d,]+) of ([\d,]+)", out)
    assert counted
    trainable, total = counted.groups()
    numbers = [int(number.replace(",", "")) for number in (trainable, total)]
    assert numbers[1] - numbers[0] == 3_778_128 + 1_008 + 16, "the backbone, and the 16 bin numbers that never learn"
    before = torch.load(converted, weights_only=False)["model"].model[0].state_dict()
    after = torch.load(tmp_path / "runs" / "train" / "weights" / "last.pt", weights_only=False)["model"]
    for key, value in after.model[0].state_dict().items():
        assert torch.equal(value, before[key].to(value.dtype)), key


def test_without_freezing_the_same_comparison_sees_everything_move(run: Run, converted: Path, data: Path) -> None:
    out = succeed(run("frozen_finetuning.py", converted, "--data", data, *SHORT, "--unfrozen"))
    assert "Backbone: 220 of 220 parameters and 26 of 26 BatchNorm statistics changed" in out


def test_mistakes_in_fine_tuning(run: Run, converted: Path, stock: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (["nothing.pt"], "no checkpoint nothing.pt.*lightbackbones convert"),
        ([stock], "layer 0 of .* is Conv, not a backbone"),
        ([converted, "--data", "nothing.yaml"], "'nothing.yaml' does not exist.*data set YAML"),
    ):
        assert_refused(run("frozen_finetuning.py", *arguments), message, tmp_path, set())


# --- quickstart.ipynb -------------------------------------------------------------------------------------------------


def read(name: str) -> str:
    return (EXAMPLES / name).read_text(encoding="utf-8")


def notebook() -> Any:
    nbformat = pytest.importorskip("nbformat", reason="notebooks are read with nbformat")
    return nbformat.reads(read("quickstart.ipynb"), as_version=4)


def test_the_notebook_is_valid_and_without_outputs() -> None:
    nbformat = pytest.importorskip("nbformat", reason="notebooks are read with nbformat")
    book = notebook()
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert len(code) > 3
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.slow
def test_the_notebook_runs(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the settings of its cell "parameters" made small, and a small data set where digits.yaml has its own."""
    nbclient = pytest.importorskip("nbclient", reason="notebooks are run with nbclient")
    pytest.importorskip("ipykernel", reason="notebooks are run with ipykernel")
    pytest.importorskip("onnxruntime", reason="the notebook exports to ONNX")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "settings"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shutil.copytree(data.parent / "digits", tmp_path / "datasets" / "digits")
    settings = process(
        "-c",
        f"from ultralytics import settings; settings.update(datasets_dir={str(tmp_path / 'datasets')!r})",
        cwd=tmp_path,
    )
    assert settings.returncode == 0, settings.stderr

    book = notebook()
    (parameters,) = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    assert re.findall(r"^(\w+) =", parameters.source, re.M) == ["EPOCHS", "FRACTION", "IMGSZ"]
    parameters.source = "EPOCHS = 1\nFRACTION = 1.0\nIMGSZ = 64"
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources=resources).execute()

    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    assert re.search(r"^mAP50 \d\.\d{3}, mAP50-95 \d\.\d{3}$", text, re.M)
    assert any("image/png" in output.get("data", {}) for output in outputs), "the picture is shown"
    difference = re.search(r"largest difference to the checkpoint: (\S+)", text)
    assert difference
    assert float(difference[1]) < 1e-2  # of boxes in pixels
    assert (tmp_path / "runs" / "quickstart" / "train" / "weights" / "best.onnx").is_file()


# --- the list ---------------------------------------------------------------------------------------------------------


def test_the_readme_lists_every_example() -> None:
    listed = set(re.findall(r"^\| \[[^\]]+\]\(([^)]+)\)", read("README.md"), re.M))
    present = {path.name for path in EXAMPLES.iterdir() if path.suffix in {".py", ".ipynb"}}
    assert listed == present | {"third-party-package/pyproject.toml"}

"""`lightbackbones export`: a file is kept if it finds what PyTorch finds, and nothing is left of one that does not."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectors import awake_detector
from places import REPOSITORY
from typer.testing import CliRunner, Result
from ultralytics import YOLO

from yolo_lightbackbones import plugin
from yolo_lightbackbones.cli import app, export_request, export_run
from yolo_lightbackbones.datasets.digits import build_digits
from yolo_lightbackbones.plugin import devices, formats, proof

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with best.pt, a detector of ten classes whose boxes depend on the image, and data.yaml with digits."""
    plugin.register()
    folder = tmp_path_factory.mktemp("made")
    text = (REPOSITORY / "cfg" / "yolov5_repvit.yaml").read_text(encoding="utf-8")
    yaml = folder / "yolov5n_repvit.yaml"
    yaml.write_text(re.sub(r"(?m)^nc: \d+", "nc: 10", text), encoding="utf-8")
    awake_detector(str(yaml)).save(folder / "best.pt")
    YOLO(folder / "best.pt").export(format="torchscript", imgsz=64)
    build_digits(folder / "digits", train_images=4, val_images=4)
    names = "".join(f"  {number}: digit{number}\n" for number in range(10))
    (folder / "data.yaml").write_text(
        f"path: {folder / 'digits'}\ntrain: images/train\nval: images/val\nnames:\n{names}", encoding="utf-8"
    )
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with best.pt, data.yaml and pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export_run, "ROUNDS", 1)
    for name in ("best.pt", "data.yaml"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    (tmp_path / "pictures").symlink_to(made / "digits" / "images" / "val")
    return tmp_path


@pytest.fixture
def exported(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every export gives the TorchScript file that `made` has, so that it takes no time."""

    def copy(detector: Any, _: Any) -> Path:
        place = Path(detector.ckpt_path).with_suffix(".torchscript")
        return Path(shutil.copy(made / "best.torchscript", place))

    monkeypatch.setattr(export_run, "_exported", copy)


GIVEN = {"best.pt", "data.yaml", "pictures"}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)], env={"COLUMNS": "120"})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def told(result: Result) -> str:
    """What the command says when it refuses: one line, no traceback, nothing on stdout."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert len(line) < 1000
    return line


@pytest.fixture
def never_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_run, "export", lambda _: pytest.fail("something was exported"))


# --- files that are right ---------------------------------------------------------------------------------------------


def test_onnx_as_json(folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    (folder / "out").mkdir()
    result = run("best.pt", "--format", "onnx", "--images", "pictures", "--imgsz", 64, "-o", "out", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["file"] == str(Path("out", "best.onnx"))
    assert found["proven"] is True
    assert found["imgsz"] == [64, 64]
    assert found["images"] == 4
    assert found["boxes"] > 4
    assert 0 < found["box_px"] < 0.01
    assert 0 < found["score"] < 1e-4
    assert found["overlap"] > 0.999
    assert found["map50_95"] is None
    assert found["tolerance"] == {"of": "boxes", "limit": 0.01}
    assert found["ratio"] > 0
    assert found["megabytes"] == pytest.approx((folder / "out" / "best.onnx").stat().st_size / 1e6, abs=1e-3)
    assert names(folder / "out") == {"best.onnx"}
    assert names(folder) == {*GIVEN, "out"}
    # What Ultralytics does with the file is what the command has compared.
    picture = str(next((folder / "pictures").iterdir()))
    boxes = [
        YOLO(file, task="detect").predict(picture, imgsz=64, conf=0.9, rect=False, verbose=False)[0].boxes.xyxy
        for file in ("best.pt", "out/best.onnx")
    ]
    torch.testing.assert_close(*boxes, atol=1.0, rtol=0)


def test_openvino_of_a_wide_image_in_words(folder: Path) -> None:
    pytest.importorskip("openvino")
    (folder / "best_openvino_model").mkdir()
    (folder / "best_openvino_model" / "mine.txt").write_text("precious")
    result = run("best.pt", "--for", "intel-cpu", "--images", "pictures", "--imgsz", "64,96")
    assert result.exit_code == 0, result.output
    assert re.search(r"^4 images, \d+ boxes: worst box [\d.e-]+ px, worst score", result.stdout, re.MULTILINE)
    assert re.search(r"^Proven: scores and IoU change by at most 0\.1?", result.stdout, re.MULTILINE)
    assert re.search(r"^Wrote best_openvino_model, \d+\.\d MB\.$", result.stdout, re.MULTILINE)
    assert names(folder) == {*GIVEN, "best_openvino_model"}
    assert {"best.xml", "best.bin", "metadata.yaml", "mine.txt"} <= names(folder / "best_openvino_model")


def test_int8_with_a_data_set(folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    arguments = ("best.pt", "--format", "onnx", "--quantize", "8", "--data", "data.yaml", "--imgsz", "64")
    result = run(*arguments, "--tolerance", "1", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["quantize"] == 8
    assert set(found["map50_95"]) == {"pytorch", "file"}
    # The detector has learned nothing, so that mAP cannot show anything: boxes decide.
    assert found["map50_95"]["pytorch"] < proof.LEAST_MAP
    assert found["tolerance"] == {"of": "boxes", "limit": 1}
    assert found["score"] > 1e-3
    assert names(folder) == {*GIVEN, Path(found["file"]).name}


@pytest.mark.usefixtures("exported")
def test_what_cannot_run_here_is_not_proven(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(formats.find("torchscript"), bound=True, on="the moon")
    monkeypatch.setitem(formats.FORMATS, "torchscript", row)
    result = run("best.pt", "--format", "torchscript", "--imgsz", "64")
    assert result.exit_code == 0, result.output
    assert "Not proven: TorchScript files run only on the moon." in result.stdout
    assert names(folder) == {*GIVEN, "best.torchscript"}
    result = run("best.pt", "--format", "torchscript", "--imgsz", "64", "--json")
    found = json.loads(result.stdout)
    assert (found["proven"], found["not_proven"]) == (False, "TorchScript files run only on the moon")
    assert "score" not in found


def test_a_checkpoint_of_qat_is_judged_as_int8(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[export_run.Job] = []

    def stop(job: export_run.Job) -> None:
        jobs.append(job)
        raise KeyboardInterrupt

    monkeypatch.setattr(export_run, "export", stop)
    monkeypatch.setattr(export_request, "is_quantised", lambda _: True)
    run("best.pt", "--format", "onnx", "--images", folder / "pictures", "--imgsz", "64")
    assert [(job.request.quantize, job.request.precision) for job in jobs] == [(8, "int8")]


def test_what_the_file_was_made_from_is_not_kept(folder: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_intermediate(detector: Any, _: Any) -> Path:
        place = Path(detector.ckpt_path)
        place.with_suffix(".onnx").write_text("not proven")
        place.with_name("best_saved_model").mkdir()
        return Path(shutil.copy(made / "best.torchscript", place.with_suffix(".torchscript")))

    monkeypatch.setattr(export_run, "_exported", with_intermediate)
    (folder / "best.onnx").write_text("the user's")
    result = run("best.pt", "--format", "torchscript", "--images", "pictures", "--imgsz", "64")
    assert result.exit_code == 0, result.output
    assert (folder / "best.onnx").read_text() == "the user's"
    assert names(folder) == {*GIVEN, "best.onnx", "best.torchscript"}


# --- files that are wrong ---------------------------------------------------------------------------------------------


def broken(change: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files give an output that is changed."""
    backend = proof.backend

    def wrong(*arguments: Any) -> Any:
        run = backend(*arguments)
        return lambda images: change(run(images))

    monkeypatch.setattr(proof, "backend", wrong)


def moved(output: torch.Tensor) -> torch.Tensor:
    output[:, 0] += 3  # pixels
    return output


def lower(output: torch.Tensor) -> torch.Tensor:
    output[:, 4:] *= 0.9
    return output


def hidden(output: torch.Tensor) -> torch.Tensor:
    """Wrong where no score is above the floor, which nobody sees."""
    output[:, :4] += 100 * (output[:, 4:].amax(1, keepdim=True) < proof.FLOOR / 2)
    return output


def unknown(output: torch.Tensor) -> torch.Tensor:
    return torch.full_like(output, torch.nan)


def fails(_: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no such operator\nat all")


def cut(output: torch.Tensor) -> torch.Tensor:
    return output[:, :-1]


TORCHSCRIPT = ("best.pt", "--format", "torchscript", "--images", "pictures", "--imgsz", "64")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moved, r"differs from PyTorch and was not kept: on 4 images .* a box by 3 px \(IoU 0\.\d+\); .* is 0\.01\.$"),
        (
            lower,
            r"differs from PyTorch and was not kept: on 4 images a score differs by 0\.\d+, .* is 0\.01\.$",
        ),
        (unknown, r"is wrong, and was not kept: the output has values that are not finite\.$"),
        (fails, r"torchscript file does not run here, and was not kept: no such operator at all$"),
        (cut, r"is wrong, and was not kept: the output has the shape \(1, 13, \d+\)"),
    ],
)
@pytest.mark.usefixtures("exported")
def test_a_file_that_is_wrong_is_not_kept(
    change: Any, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "best.torchscript").write_text("older")
    broken(change, monkeypatch)
    assert re.search(message, told(run(*TORCHSCRIPT)))
    assert (folder / "best.torchscript").read_text() == "older"
    assert names(folder) == {*GIVEN, "best.torchscript"}


@pytest.mark.usefixtures("exported")
def test_what_nobody_sees_does_not_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(hidden, monkeypatch)
    result = run(*TORCHSCRIPT)
    assert result.exit_code == 0, result.output
    assert names(folder) == {*GIVEN, "best.torchscript"}


@pytest.mark.usefixtures("exported")
def test_the_tolerance_can_be_wider(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(lower, monkeypatch)
    result = run(*TORCHSCRIPT, "--tolerance", "0.15")
    assert result.exit_code == 0, result.output
    assert "Proven: scores and IoU change by at most 0.15." in result.stdout


@pytest.mark.parametrize(("file", "tolerance", "kept"), [(0.801, (), True), (0.7, (), False), (0.7, (0.2,), True)])
@pytest.mark.usefixtures("exported")
def test_map_decides_where_there_is_one(
    file: float, tolerance: tuple[float, ...], kept: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = iter([0.8, file])
    monkeypatch.setattr(proof, "validate", lambda *_, **__: next(maps))
    broken(lower, monkeypatch)  # of which mAP knows nothing
    more = ["--data", "data.yaml", *(["--tolerance", *tolerance] if tolerance else [])]
    result = run("best.pt", "--format", "torchscript", "--imgsz", "64", *more, "--json")
    if kept:
        found = json.loads(result.stdout)
        assert found["map50_95"] == {"pytorch": 0.8, "file": file}
        assert found["tolerance"] == {"of": "mAP50-95", "limit": tolerance[0] if tolerance else 0.001}
        assert names(folder) == {*GIVEN, "best.torchscript"}
    else:
        assert "changes mAP50-95 from 0.8000 to 0.7000, by 0.1000; the tolerance is 0.001." in told(result)
        assert names(folder) == GIVEN


def test_map_is_not_measured_on_images_that_are_not_square(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ultralytics would validate the checkpoint on squares, and the file on what it was made for."""
    monkeypatch.setattr(proof, "validate", lambda *_, **__: pytest.fail("mAP was measured"))
    result = run("best.pt", "--format", "torchscript", "--imgsz", "64,96", "--data", "data.yaml", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["map50_95"], found["tolerance"]) == (None, {"of": "boxes", "limit": 0.01})


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "could not be written: No space left on device"),
        (RuntimeError("no kernel\nat all"), "could not export best.pt as torchscript: no kernel at all"),
        (ModuleNotFoundError("No module named 'moon'", name="moon"), "needs the package moon, which is not installed"),
    ],
)
def test_an_export_that_fails_leaves_nothing(
    error: Exception, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any, path: str, *_args: Any, **_more: Any) -> None:
        Path(path).write_text("half")
        raise error

    (folder / "best.torchscript").write_text("older")
    monkeypatch.setattr(torch.jit.ScriptModule, "save", fail, raising=False)
    assert message in told(run(*TORCHSCRIPT))
    assert (folder / "best.torchscript").read_text() == "older"
    assert names(folder) == {*GIVEN, "best.torchscript"}


@pytest.mark.usefixtures("exported")
def test_an_interruption_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(proof, "latencies", interrupt)
    assert run(*TORCHSCRIPT).exit_code != 0
    assert names(folder) == GIVEN


# --- mistakes ---------------------------------------------------------------------------------------------------------

ONNX = ("best.pt", "--format", "onnx", "--images", "pictures")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "No checkpoint is given"),
        (("best.pt",), "Neither a format nor a device is given"),
        (("nowhere.pt", "--format", "onnx"), "There is no checkpoint nowhere.pt; nothing is downloaded"),
        (("yolov5n_repvit.yaml", "--format", "onnx"), "only a checkpoint, *.pt, can be exported"),
        (("best.pt", "--format", "onxx"), "The format is 'onxx'; it must be one of torchscript, onnx,"),
        (("best.pt", "--for", "rk3599"), "No device is called 'rk3599'. Devices: rk3588, rk3576,"),
        (("best.pt", "--for", "browser", "--format", "ncnn"), "--for browser means format onnx, and --format is ncnn"),
        ((*ONNX, "--quantize", "4"), "--quantize is '4'; format onnx can be 32, 16, 8."),
        ((*ONNX, "--quantize", "w8a16"), "--quantize is 'w8a16'; format onnx can be 32, 16, 8."),
        (("best.pt", "--format", "ncnn", "--quantize", "8"), "--quantize is '8'; format ncnn can be 32, 16."),
        ((*ONNX, "--quantize", "8"), "needs images to calibrate with. Give the data set"),
        (("best.pt", "--format", "onnx"), "compared with PyTorch on images. Give some"),
        (("best.pt", "--format", "onnx", "--images", "nowhere"), "There is no folder or file nowhere."),
        (("best.pt", "--format", "onnx", "--images", "data.yaml"), "data.yaml has no image that Ultralytics reads"),
        ((*ONNX, "--tolerance", "small"), "--tolerance is 'small'; it must be a number from 0 to 1"),
        ((*ONNX, "--tolerance", "-0.1"), "--tolerance is '-0.1'; it must be a number from 0 to 1"),
        ((*ONNX, "--tolerance", "nan"), "--tolerance is 'nan'; it must be a number from 0 to 1"),
        ((*ONNX, "--imgsz", "65"), "needs multiples of 32"),
        ((*ONNX, "-o", "nowhere"), "There is no folder nowhere to write to"),
        ((*ONNX, "--data", "nowhere.yaml"), "There is no data YAML nowhere.yaml"),
        ((*ONNX, "--data", "https://example.org/data.yaml"), "Nothing is downloaded here"),
        ((*ONNX, "--data", "few.yaml"), "few.yaml has 2 classes, and the model has 10"),
        ((*ONNX, "--data", "empty.yaml"), "The val split of empty.yaml has no images"),
        ((*ONNX, "--data", "far.yaml"), "The images of far.yaml are not on this computer"),
        (("text.pt", *ONNX[1:]), "text.pt"),
    ],
)
@pytest.mark.usefixtures("never_exports")
def test_mistakes_are_told_before_anything_is_written(arguments: Any, message: str, folder: Path, made: Path) -> None:
    digits, ten = made / "digits", "".join(f"  {number}: digit{number}\n" for number in range(10))
    (folder / "few.yaml").write_text(f"path: {digits}\ntrain: images/train\nval: images/val\nnames: [a, b]\n")
    (folder / "none").mkdir()
    (folder / "empty.yaml").write_text(f"path: {folder}\ntrain: none\nval: none\nnames:\n{ten}")
    script = "download: |\n  open('canary.txt', 'w')\n"
    (folder / "far.yaml").write_text(f"path: {folder}\ntrain: far\nval: far\nnames:\n{ten}{script}")
    (folder / "text.pt").write_text("no checkpoint")
    before = names(folder)
    assert message in told(run(*arguments))
    assert names(folder) == before


@pytest.mark.usefixtures("never_exports")
def test_a_checkpoint_that_would_run_code_is_refused(folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(folder / "canary"),)

    torch.save({"model": Evil()}, folder / "evil.pt")
    assert "Reading them could run any code" in told(run("evil.pt", *ONNX[1:]))
    assert not (folder / "canary").exists()


def test_images_without_objects_prove_nothing(folder: Path) -> None:
    detector = YOLO("best.pt")
    for branch in detector.model.model[-1].cv3:
        torch.nn.init.constant_(branch[-1].bias, -20.0)
    detector.save("dull.pt")
    before = names(folder)
    said = told(run("dull.pt", *ONNX[1:], "--imgsz", "64"))
    assert "PyTorch finds no box with a score above 0.1 on 4 images, so nothing could be compared" in said
    assert names(folder) == before


def test_an_image_that_cannot_be_read(folder: Path) -> None:
    (folder / "half.jpg").write_bytes(b"\xff\xd8\xff")
    assert "half.jpg cannot be read as an image" in told(run("best.pt", "--format", "onnx", "--images", "half.jpg"))


# --- devices ----------------------------------------------------------------------------------------------------------


def test_the_devices_are_exports_that_ultralytics_takes() -> None:
    from ultralytics.cfg import DEFAULT_CFG_DICT
    from ultralytics.utils import RKNN_CHIPS

    from yolo_lightbackbones.cli import export_request

    for row in devices.DEVICES.values():
        assert row.format in export_request._formats()
        assert row.quantize is None or row.quantize in export_request.allowed_precisions(row.format)
        assert not row.chip or row.chip in RKNN_CHIPS
        assert row.reason.endswith(".")
    assert "name" in DEFAULT_CFG_DICT


def test_options_come_before_those_of_the_device() -> None:
    from yolo_lightbackbones.cli import export_request

    row = export_request.read(None, None, None, "RK3588")
    assert row.arguments == {"format": "rknn", "quantize": 8, "name": "rk3588"}
    assert (row.raw_head, row.precision, row.calibrates, row.needs_hint) == (True, "int8", True, False)
    own = export_request.read("rknn", "16", False, "rk3588")
    assert own.arguments == {"format": "rknn", "quantize": 16, "name": "rk3588"}
    assert (own.raw_head, own.precision, own.calibrates) == (False, "half", False)
    assert export_request.read("litert", "8", None, None).needs_hint
    assert not export_request.read("litert", "w8a32", None, None).calibrates
    assert not export_request.read("mnn", "8", None, None).calibrates
    assert export_request.read("edgetpu", None, None, None).calibrates  # INT8 is all it takes


def test_the_table_of_devices() -> None:
    found = json.loads(run("--list", "--json").stdout)
    assert [row["name"] for row in found] == list(devices.DEVICES)
    result = run("--list")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in devices.DEVICES)


# --- images -----------------------------------------------------------------------------------------------------------


def test_images_are_those_of_folders_lists_and_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("b.jpg", "in/a.PNG", "notes.md"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "list.txt").write_text("./b.jpg\n\nmissing.jpg\n")
    assert proof.pictures([tmp_path]) == [tmp_path / "b.jpg", tmp_path / "in" / "a.PNG"]
    assert proof.pictures([tmp_path / "list.txt"]) == [tmp_path / "b.jpg"]
    assert proof.pictures([tmp_path / "notes.md"]) == []
    paths = [Path(str(number)) for number in range(40)]
    assert proof.spread(paths, 4) == [paths[0], paths[10], paths[20], paths[30]]
    assert proof.spread(paths[:3], 4) == paths[:3]


def test_an_image_is_letterboxed_as_for_an_exported_file(tmp_path: Path) -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[..., 2] = 255  # red, as OpenCV has it
    cv2.imwrite(str(tmp_path / "red.png"), image)
    found = proof.letterboxed(tmp_path / "red.png", (64, 64))
    assert found.shape == (1, 3, 64, 64)
    torch.testing.assert_close(found[0, :, 32, 32], torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(found[0, :, 2, 2], torch.full((3,), 114 / 255))
    assert proof.letterboxed(tmp_path / "red.png", (32, 64), channels=1).shape == (1, 1, 32, 64)
    with pytest.raises(ValueError, match=r"red\.png has 3 channels, and the model takes 6"):
        proof.letterboxed(tmp_path / "red.png", (64, 64), channels=6)


def test_a_raw_head_is_written_and_proven(folder: Path) -> None:
    result = run(*TORCHSCRIPT, "--raw-head", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["raw_head"], found["proven"]) == (True, True)
    assert found["score"] < 1e-4
    maps = torch.jit.load(folder / "best.torchscript")(torch.zeros(1, 3, 64, 64))
    assert [tuple(one.shape[2:]) for one in maps] == [(8, 8)] * 2 + [(4, 4)] * 2 + [(2, 2)] * 2

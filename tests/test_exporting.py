"""What surrounds an export: failures change nothing and say what to do, and nothing is installed."""

from __future__ import annotations

import errno
import importlib
import os
import re
import signal
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectors import awake_detector
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.modules.block import DFL

from yolo_lightbackbones.plugin import environment, exporting, formats
from yolo_lightbackbones.plugin.staging import Staging


@pytest.fixture(scope="module")
def detector() -> YOLO:
    return YOLO("yolov5n_repvit.yaml")


@pytest.fixture
def checkpoint(detector: YOLO, tmp_path: Path) -> Path:
    detector.save(path := tmp_path / "best.pt")
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder, hidden ones as well."""
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def finish(staging: Staging, files: dict[str, str]) -> None:
    """An export that writes these files."""
    with staging.step(last=True):
        write(staging.file.parent, files)


def on_export_start() -> Callable[[Any], None]:
    from ultralytics.utils.callbacks import default_callbacks

    (callback,) = (f for f in default_callbacks["on_export_start"] if f.__module__.startswith("yolo_lightbackbones."))
    return callback


def test_a_full_disk_costs_no_older_file(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    folder = checkpoint.parent
    write(folder, {"best.onnx": "older", "best_v2.torchscript": "older"})

    def full(_model: Any, file: str) -> None:
        Path(file).write_text("half")
        write(folder, {"best_v2.onnx": "another export", "best_v2.torchscript": "another export, too"})
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(onnx, "save", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{re.escape(str(folder / 'best.onnx'))}'$"):
        YOLO(checkpoint).export(format="onnx", imgsz=64)
    checkpoint.unlink()
    assert contents(folder) == {
        "best.onnx": "older",
        "best_v2.onnx": "another export",
        "best_v2.torchscript": "another export, too",
    }


def test_names_are_those_that_a_user_knows(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The returned path and the log name the file in its place, whatever the path of the checkpoint contains."""
    from ultralytics.utils import LOGGER

    monkeypatch.setattr(LOGGER, "propagate", True)
    (folder := checkpoint.parent / "runs.pt").mkdir()
    moved = checkpoint.rename(folder / "best.pt")
    with caplog.at_level("INFO"):
        file = YOLO(moved).export(format="torchscript", imgsz=64)
    assert file == str(folder / "best.torchscript")
    assert names(folder) == {"best.pt", "best.torchscript"}
    assert f"saved as '{file}'" in caplog.text
    assert "lightbackbones-export" not in caplog.text


def test_a_cut_off_file_is_no_finished_export(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MNN's converter calls it a success when the disk was full."""
    pytest.importorskip("MNN")
    with environment.silenced():
        mnnconvert = importlib.import_module("MNN.tools.mnnconvert")
    convert = mnnconvert.convert

    def full(arguments: list[str]) -> None:
        convert(arguments)
        file = arguments[arguments.index("--MNNModel") + 1]
        os.truncate(file, os.path.getsize(file) * 2 // 3)

    monkeypatch.setattr(mnnconvert, "convert", full)
    write(checkpoint.parent, {"best.onnx": "older"})
    with pytest.raises(OSError, match=r"cannot be read back.*/best\.mnn'"):
        YOLO(checkpoint).export(format="mnn", imgsz=64)
    assert names(checkpoint.parent) == {"best.pt", "best.onnx"}
    assert (checkpoint.parent / "best.onnx").read_text() == "older"


def test_cut_off_weights_of_ncnn_are_found(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    parameters = "7767517\n2 2\nInput in0 0 1 in0\nConvolution conv 1 1 in0 out0 0=8 1=1 5=1 6=16\n"
    weights = bytes(4 * (1 + 16 + 8)).decode()  # a tag, the kernel, the bias
    staging = Staging(tmp_path / "best.pt", "ncnn")
    files = {"best_ncnn_model/model.ncnn.param": parameters, "best_ncnn_model/model.ncnn.bin": weights}
    with pytest.raises(OSError, match=r"cannot be read back.*/best_ncnn_model/model\.ncnn\.bin"):
        finish(staging, {**files, "best_ncnn_model/model.ncnn.bin": weights[:-8]})
    unknown = parameters.replace("Convolution", "Tensor.reshape")  # pnnx writes what NCNN does not have
    with pytest.raises(OSError, match="the format lacks an operation of this model"):
        finish(staging, {**files, "best_ncnn_model/model.ncnn.param": unknown})
    assert not names(tmp_path)
    finish(Staging(tmp_path / "best.pt", "ncnn"), files)
    assert contents(tmp_path) == files


@pytest.mark.parametrize(
    ("format", "package", "extra"), [("ncnn", "pnnx", "export"), ("executorch", "executorch", "executorch")]
)
def test_a_missing_package_is_named_with_its_extra(
    format: str, package: str, extra: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    expected = rf'format={format} needs the package {package}\S* which is not .*"\.\[{extra}\]"'
    with pytest.raises(ModuleNotFoundError, match=expected):
        YOLO(checkpoint).export(format=format, imgsz=64)
    assert names(checkpoint.parent) == {"best.pt"}


def test_a_size_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """Ultralytics rounds sizes to the largest stride of the head; the backbone may need a multiple of more."""
    (tmp_path / "p3.yaml").write_text(
        "nc: 2\nbackbone:\n  - [-1, 1, RepViT, [m0_6]]\n  - [0, 1, Tap, [P3]]\nhead:\n  - [[1], 1, Detect, [nc]]\n"
    )
    YOLO(tmp_path / "p3.yaml").save(tmp_path / "p3.pt")
    with pytest.raises(ValueError, match=r"72.*multiple"):
        YOLO(tmp_path / "p3.pt").export(format="onnx", imgsz=72)
    assert names(tmp_path) == {"p3.yaml", "p3.pt"}


@pytest.mark.parametrize(
    ("format", "steps", "results"),
    [
        ("onnx", ["onnx"], ["best.onnx"]),
        ("mlmodel", ["coreml"], ["best.mlmodel"]),  # the only format whose step has another name
        ("saved_model", ["saved_model"], ["best_saved_model"]),
        ("pb", ["saved_model", "pb"], ["best_saved_model", "best.pb"]),
        ("edgetpu", ["saved_model", "edgetpu"], ["best_saved_model", "best.edgetpu"]),
    ],
)
def test_every_step_of_an_export_is_guarded(
    format: str, steps: list[str], results: list[str], detector: YOLO, tmp_path: Path
) -> None:
    """With a stand-in for the exporter: the converters of these formats do not all install here."""

    def step(name: str, *, fails: bool) -> Callable[..., Any]:
        def run() -> Any:
            if name == "saved_model":
                (folder := Path(str(exporter.file).replace(exporter.file.suffix, "_saved_model"))).mkdir()
                write(folder, {"half": ""})
                result = str(folder)
            else:
                result = exporter.file.with_suffix(f".{format}")
                result.write_text("half")
            if fails:
                raise RuntimeError(f"in {result}")
            return (result, "a Keras model") if name == "saved_model" else result

        return run

    write(tmp_path, dict.fromkeys(results, "older"))
    arguments = SimpleNamespace(dynamic=False, format=format, quantize=None)
    for failing in steps:
        exporter = SimpleNamespace(model=detector.model, args=arguments, file=tmp_path / "best.pt")
        originals = {f"export_{name}": step(name, fails=name == failing) for name in steps}
        vars(exporter).update(originals)
        on_export_start()(exporter)
        with pytest.raises(RuntimeError, match=rf"in {re.escape(str(tmp_path))}/best\w*(\.\w+)?$"):
            [getattr(exporter, f"export_{name}")() for name in steps]
        assert contents(tmp_path) == dict.fromkeys(results, "older")
        assert exporter.file == tmp_path / "best.pt"
        assert all(getattr(exporter, name) is original for name, original in originals.items() if failing in name)

    vars(exporter).update({f"export_{name}": step(name, fails=False) for name in steps})
    on_export_start()(exporter)
    returned = [getattr(exporter, f"export_{name}")() for name in steps][-1]
    assert names(tmp_path) == set(results)
    assert "older" not in contents(tmp_path).values()
    assert str(tmp_path) in str(returned)
    assert "lightbackbones-export" not in str(returned)


def test_exports_of_stock_models_are_left_to_ultralytics(tmp_path: Path) -> None:
    def export_mnn() -> None: ...

    arguments = SimpleNamespace(dynamic=False, format="mnn", quantize=None)
    exporter = SimpleNamespace(
        model=YOLO("yolov5n.yaml").model, args=arguments, file=tmp_path / "a.pt", export_mnn=export_mnn
    )
    on_export_start()(exporter)
    assert exporter.export_mnn is export_mnn


class TestStaging:
    @pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, RuntimeError, OSError])
    def test_whatever_ends_an_export_changes_nothing(self, failure: type[BaseException], tmp_path: Path) -> None:
        before = {"best.onnx": "1", "best_v2.onnx": "2", "best_ncnn_model/model.bin": "3", "best_notes.txt": "4"}
        write(tmp_path, before)
        staging = Staging(tmp_path / "best.pt", "ncnn")

        def export() -> None:
            with staging.step(last=True):
                write(staging.file.parent, {"best.onnx": "half", "best_ncnn_model/deeper/model.bin": "half"})
                raise failure

        with pytest.raises(failure):
            export()
        assert contents(tmp_path) == before
        assert names(tmp_path) == {"best.onnx", "best_v2.onnx", "best_ncnn_model", "best_notes.txt"}

    def test_a_finished_export_takes_its_place(self, tmp_path: Path) -> None:
        """Into the folders that Ultralytics adds to; anew in those that it empties, and in packages."""
        write(
            tmp_path,
            {
                "best.onnx": "older",
                "best_rknn_model/best-rk3588.rknn": "for another device",
                "best_rknn_model/best-rk3566.rknn": "older",
                "best_rknn_model/deeper/notes.txt": "the user's",
                "best_saved_model/older.tflite": "older",
                "best.mlpackage/Data/older": "older",
            },
        )
        (tmp_path / "best_rknn_model" / "link").symlink_to("nowhere")
        new = {
            "best.onnx": "new",
            "best_rknn_model/best-rk3566.rknn": "new",
            "best_rknn_model/deeper/new.txt": "new",
            "best_saved_model/new.tflite": "new",
            "best.mlpackage/Data/new": "new",
        }
        finish(Staging(tmp_path / "best.pt", "rknn"), new)
        kept = {
            "best_rknn_model/best-rk3588.rknn": "for another device",
            "best_rknn_model/deeper/notes.txt": "the user's",
        }
        assert contents(tmp_path) == {**new, **kept}
        assert os.readlink(tmp_path / "best_rknn_model" / "link") == "nowhere"
        assert names(tmp_path) == {"best.onnx", "best_rknn_model", "best_saved_model", "best.mlpackage"}

    def test_a_link_is_replaced_and_not_followed(self, tmp_path: Path) -> None:
        write(tmp_path, {"elsewhere": "untouched"})
        (tmp_path / "best.onnx").symlink_to("elsewhere")
        finish(Staging(tmp_path / "best.pt", "onnx"), {"best.onnx": "new"})
        assert contents(tmp_path) == {"best.onnx": "new", "elsewhere": "untouched"}

    @pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
    def test_files_take_their_places_together(
        self, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = {"best.engine": "older", "best.onnx": "older", "best_model/a": "older"}
        write(tmp_path, before)
        replace = Path.replace

        def failing(self: Path, target: Path) -> Path:
            if self.read_text() == "the last one":
                raise PermissionError(errno.EPERM, "Operation not permitted", str(self))
            return replace(self, target)

        def unsupported(*_args: Any, **_options: Any) -> None:
            raise OSError(errno.EPERM, "no hard links here")

        if not links:
            monkeypatch.setattr(os, "link", unsupported)
        new = {"best.engine": "new", "best.onnx": "new", "best.zzz": "the last one"}
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", failing)
            with pytest.raises(PermissionError) as caught:
                finish(Staging(tmp_path / "best.pt", "engine"), new)
        assert caught.value.filename == str(tmp_path / "best.zzz")
        assert contents(tmp_path) == before

        finish(Staging(tmp_path / "best.pt", "engine"), {"best.engine": "new", "best_model/b": "new"})
        assert contents(tmp_path) == {**before, "best.engine": "new", "best_model/b": "new"}

    def test_exports_side_by_side_do_not_meet(self, tmp_path: Path) -> None:
        """MNN's begins with an ONNX file of its own, and fails when another export has finished one."""
        mnn, onnx = (Staging(tmp_path / "best.pt", format) for format in ("mnn", "onnx"))

        def export() -> None:
            with mnn.step(last=True):
                write(mnn.file.parent, {"best.onnx": "on the way to MNN"})
                for folder in tmp_path.glob(".*"):
                    os.utime(folder, (0, 0))  # at work for long, which is no reason to sweep it away
                finish(onnx, {"best.onnx": "finished"})
                assert (mnn.file.parent / "best.onnx").read_text() == "on the way to MNN"
                raise RuntimeError

        with pytest.raises(RuntimeError):
            export()
        assert contents(tmp_path) == {"best.onnx": "finished"}

    @pytest.mark.parametrize("moment", ["writing", "moving"])
    def test_what_a_killed_export_leaves_is_put_in_order_by_the_next(self, moment: str, tmp_path: Path) -> None:
        """Killed while it writes, or between moving the older folder away and the new one in."""
        before = {"best.onnx": "older", "best_ncnn_model/notes.txt": "older"}
        write(tmp_path, before)

        def die(*_arguments: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        if (child := os.fork()) == 0:
            staging = Staging(tmp_path / "best.pt", "ncnn")
            with staging.step(last=True):
                write(staging.file.parent, {"best_ncnn_model/notes.txt": "half"})
                if moment == "writing":
                    die()
                Path.replace = die  # type: ignore[assignment,method-assign]
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        assert (tmp_path / "best_ncnn_model").exists() == (moment == "writing")
        (left,) = tmp_path.glob(".*")
        os.utime(left, (os.stat(left).st_mtime - 120,) * 2)
        finish(Staging(tmp_path / "best.pt", "torchscript"), {"best.torchscript": "new"})
        assert contents(tmp_path) == {**before, "best.torchscript": "new"}
        assert names(tmp_path) == {"best.onnx", "best_ncnn_model", "best.torchscript"}

    def test_names_of_folders_come_out_right(self, tmp_path: Path) -> None:
        """As Ultralytics makes them; with the checkpoint's own suffix, they would land in another folder."""
        (folder := tmp_path / "runs.pt").mkdir()
        staging = Staging(folder / "v1.2.pt", "openvino")
        with staging.step(last=True):
            written = Path(str(staging.file).replace(staging.file.suffix, "_openvino_model/"))
            written.mkdir()
            write(written, {"model.py": f"load({str(written / 'model.bin')!r})"})
        assert staging.in_place(str(written)) == str(folder / "v1.2_openvino_model")
        assert contents(folder) == {"v1.2_openvino_model/model.py": f"load('{folder}/v1.2_openvino_model/model.bin')"}

    def test_a_checkpoint_without_a_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A model from a YAML: results go to the current folder, under relative paths."""
        monkeypatch.chdir(tmp_path)
        finish(staging := Staging(Path("yolov5n.yaml"), "onnx"), {"yolov5n.onnx": "new"})
        assert staging.in_place(str(staging.file.with_suffix(".onnx"))) == "yolov5n.onnx"
        assert contents(tmp_path) == {"yolov5n.onnx": "new"}

    def test_folders_that_ultralytics_empties_are_known(self) -> None:
        from ultralytics.engine import exporter
        from ultralytics.utils import export

        methods = re.split(
            r"^    def (?:export_)?(\w+)", Path(exporter.__file__).read_text(encoding="utf-8"), flags=re.M
        )
        sources = dict(zip(methods[1::2], methods[2::2], strict=True))
        for module in Path(export.__path__[0]).glob("*.py"):
            sources[module.stem] = module.read_text(encoding="utf-8")
        empties = {name for name, source in sources.items() if "rmtree(" in source}
        assert "saved_model" in empties
        folders = {f"_{name}_model".replace("_model_model", "_model") for name in empties - {"coreml"}}
        assert folders <= set(formats.emptied_folders())


@pytest.mark.parametrize("installed", [False, True], ids=["without its package", "with its package"])
def test_mnn_converter_neither_installs_nor_reports(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it does, it does when it is imported."""
    tools = pytest.importorskip("MNN.tools")
    done: list[str] = []

    def unreachable(request: urllib.request.Request) -> None:
        done.append(request.full_url)
        raise OSError

    if installed:
        write(tmp_path, {"aliyun/__init__.py": "", "aliyun/log/__init__.py": "LogClient = PutLogsRequest = None"})
        write(tmp_path, {"aliyun/log/logitem.py": "LogItem = None"})
        monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(os, "system", done.append)
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)

    def forget() -> None:
        monkeypatch.delattr(tools, "mnnconvert", raising=False)
        for name in [name for name in sys.modules if name.startswith(("MNN.tools.mnnconvert", "MNN.tools.utils"))]:
            monkeypatch.delitem(sys.modules, name)

    forget()
    with environment.silenced():
        converter = importlib.import_module("MNN.tools.mnnconvert")
    assert callable(converter.convert)
    assert not done
    assert "MNN.tools.utils.log" not in sys.modules
    forget()
    importlib.import_module("MNN.tools.mnnconvert")
    assert done, "it does so otherwise: what is suppressed is still there"


def test_expected_distances_are_those_of_the_heads_convolution() -> None:
    head = DFL(16)
    logits = 5 * torch.randn(2, 64, 30, generator=torch.Generator().manual_seed(0))
    seen = exporting.expected_distances(logits, head.conv.weight.flatten())
    torch.testing.assert_close(seen, head(logits), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("quantize", "integers"), [(None, False), (32, False), (16, False), (8, True), ("w8a16", True), ("w8a32", True)]
)
def test_every_precision_with_integers_keeps_the_expectation_out_of_the_convolutions(
    quantize: int | str | None, integers: bool
) -> None:
    """Ultralytics' values of `quantize=`: w8a16 and w8a32 round weights as 8 does."""
    model = awake_detector("yolov5n_repvit.yaml").model.fuse(verbose=False)
    (head,) = (module for module in model.modules() if isinstance(module, DFL))
    calls: list[object] = []
    head.conv.register_forward_hook(lambda *_: calls.append(None))
    arguments = SimpleNamespace(dynamic=False, format="onnx", quantize=quantize)
    on_export_start()(SimpleNamespace(model=model, args=arguments))
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    assert len(calls) == (0 if integers else 1)


def test_int8_exports_keep_the_expectation_out_of_the_convolutions(tmp_path: Path) -> None:
    """Before it is quantised, the ONNX file of our model has one convolution less than its modules."""
    onnx = pytest.importorskip("onnx")
    callback = on_export_start()
    model = awake_detector("yolov5n_repvit.yaml").model.fuse(verbose=False)
    for quantize, expected in ((None, 0), (8, 1)):
        callback(SimpleNamespace(model=model, args=SimpleNamespace(dynamic=False, format="onnx", quantize=quantize)))
        torch.onnx.export(model, (torch.rand(1, 3, 64, 64),), str(tmp_path / "m.onnx"), dynamo=False)
        nodes = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
        modules = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        assert len(modules) - nodes.count("Conv") == expected

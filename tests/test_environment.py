"""Exports install nothing, change no package and use no network; what was missing is one sentence."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import site
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import exports_alone
import pytest
from test_exports import write_detector
from ultralytics import YOLO

from yolo_lightbackbones.plugin import formats, refusals
from yolo_lightbackbones.plugin.environment import RefusedError, left_alone, silenced

NOWHERE = "192.0.2.1"  # RFC 5737: an address that nobody has


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight drawn images to calibrate with."""
    pytest.importorskip("sklearn")
    from yolo_lightbackbones.datasets.digits import build_digits

    folder = build_digits(tmp_path_factory.mktemp("data") / "digits", train_images=1, val_images=8)
    (data := folder / "data.yaml").write_text(f"path: {folder}\ntrain: images/val\nval: images/val\nnc: 10\n")
    return data


@pytest.fixture
def traps(tmp_path: Path) -> Path:
    """Installers that only note down how they are called: programs, and a package `pip` for `python -m pip`."""
    (folder := tmp_path / "traps").mkdir()
    for name in ("pip", "pip3", "uv", "conda", "apt", "apt-get", "curl", "wget"):
        (folder / name).write_text(f'#!/bin/sh\n[ "$1" = -V ] || echo "{name} $@" >> "{folder}/calls"\n')
        (folder / name).chmod(0o755)
    (folder / "pip").rename(folder / "pip-program")
    (package := folder / "modules" / "pip").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(
        f"import sys\nopen({str(folder / 'calls')!r}, 'a').write(f'python -m pip {{sys.argv[1:]}}\\n')\n"
    )
    (folder / "pip-program").rename(folder / "pip")
    return folder


@pytest.mark.slow
def test_every_format_leaves_the_environment_alone(digits: Path, traps: Path, tmp_path: Path) -> None:
    """With Ultralytics' own installations on. NCNN's asks for another pnnx than the one that is here."""
    write_detector("repvit", tmp_path / "best.yaml")
    YOLO(tmp_path / "best.yaml").save(tmp_path / "best.pt")
    variables = {key: value for key, value in os.environ.items() if key != "YOLO_AUTOINSTALL"}
    variables["PATH"] = f"{traps}{os.pathsep}{variables['PATH']}"
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(traps / "modules"), variables.get("PYTHONPATH")]))
    command = [sys.executable, exports_alone.__file__, str(tmp_path / "best.pt"), str(digits), str(traps)]
    ran = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    report = json.loads(next(line for line in ran.stdout.splitlines() if line.startswith("REPORT "))[7:])
    assert "install" in report["a control"], "Ultralytics installs when nothing is exported, and the traps notice"
    assert {"torchscript"} <= set(report["exported"]) <= set(exports_alone.EXPORTS)
    assert all((tmp_path / file).exists() for file in report["exported"].values())
    assert report["calls"] == ""
    harmless = {"runs pnnx", "runs xpu-smi", "runs nvidia-smi", "runs lscpu"}  # NCNN's converter, looks at the machine
    assert set(report["passed"]) <= harmless
    assert report["after"] == report["before"]
    assert len(report["before"]["packages"]) > 20


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("pip install -U aliyun-log-python-sdk", True),
        ("/opt/venv/bin/pip3.11 uninstall -y onnx", True),
        ("sudo -n apt-get install -y openjdk-21-jre", True),
        ("env PIP_INDEX_URL=x timeout 30s python3 -m pip download onnx", True),
        ("python -u -m pip install onnx", True),
        ("python /usr/bin/pip install onnx", True),
        ("python -m ensurepip", True),
        ("uv pip install --python x onnx", True),
        ("uvx ruff", True),
        ("cd /tmp && (pip install onnx; true)", True),
        ("true\npip install onnx", True),
        ("bash -lc 'conda install -y onnx'", True),
        ("git clone https://example.com/x.git", True),
        ("curl -sSL https://example.com", True),
        ("pip install 'onnx", True),  # a quotation without an end
        ("pip --version", False),
        ("pip list", False),
        ("uv -V", False),
        ("dpkg -l openjdk-21-jre", False),
        ("git rev-parse HEAD", False),
        ("pnnx model.pt inputshape=[1,3,64,64]", False),
        ("python convert.py install", False),
        ("python -c 'import pip'", False),
        ("echo pip install", False),
        ("java --version", False),
        ("", False),
    ],
)
def test_programs_that_install_or_download_are_told_from_others(line: str, refused: bool) -> None:
    assert bool(refusals.shell_command((line,))) == refused
    assert bool(refusals.shell_command((line.encode(),))) == refused


@pytest.mark.parametrize(
    ("name", "here"),
    [
        *[(name, True) for name in ("localhost", "127.0.0.1", "127.8.8.8", "::1", "", "0.0.0.0", b"localhost", None)],
        *[(name, False) for name in (NOWHERE, "example.com", "2001:db8::1", b"example.com", "localhost.example.com")],
    ],
)
def test_other_hosts_are_told_from_this_one(name: Any, here: bool) -> None:
    assert (refusals.host((name,)) is None) == here


def act_of(name: str, folder: Path) -> Callable[[], object]:
    """Something that an export must not do."""
    package = Path(site.getsitepackages()[0])
    return {
        "pip": lambda: subprocess.run([sys.executable, "-m", "pip", "install", "x"], check=True),
        "a shell": lambda: subprocess.run("pip install x", shell=True, check=True),
        "os.system": lambda: os.system("pip install x"),
        "a spawned program": lambda: os.posix_spawn("/usr/bin/pip", ["pip", "install", "x"], {}),
        "a connection": lambda: socket.create_connection((NOWHERE, 80), timeout=0.1),
        "a name": lambda: socket.getaddrinfo("example.com", 80),
        "a datagram": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", (NOWHERE, 80)),
        "a file of a package": lambda: (package / "yolo_lightbackbones_test").write_text(""),
        "a renamed file": lambda: (folder / "here").rename(package / "yolo_lightbackbones_test"),
    }[name]


ACTS = (
    *("pip", "a shell", "os.system", "a spawned program", "a connection", "a name", "a datagram"),
    *("a file of a package", "a renamed file"),
)


@pytest.mark.parametrize("name", ACTS)
def test_an_export_is_refused_what_changes_the_environment(name: str, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("")
    message = r"^format=onnx stopped, because .* is refused: an export of"
    with pytest.raises(RuntimeError, match=message), left_alone("onnx", tmp_path):
        act_of(name, tmp_path)()
    assert not list(Path(site.getsitepackages()[0]).glob("yolo_lightbackbones_test"))


def test_what_is_harmless_goes_on(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, left_alone("onnx", tmp_path):
        socket.create_connection(server.getsockname()).close()
        assert socket.getaddrinfo("localhost", None)
        subprocess.run([sys.executable, "-c", ""], check=True)
        (tmp_path / "file").write_text("")
        importlib.import_module("colorsys")


def in_thread(act: Callable[[], object]) -> type[BaseException] | None:
    """Run it in a new thread, and tell which error it has raised."""
    errors: list[type[BaseException]] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            errors.append(type(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return errors[0] if errors else None


def test_exports_that_overlap_share_the_stand_ins() -> None:
    name = next(iter(formats.silenced_modules()))
    original = sys.modules.get(name)
    first, second = silenced(), silenced()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert name in sys.modules, "the second is still exporting"
    second.__exit__(None, None, None)
    assert sys.modules.get(name) is original


def test_the_workers_of_a_pool_are_free_after_an_export(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        with left_alone("onnx", tmp_path), pytest.raises(RefusedError):
            pool.submit(socket.getaddrinfo, "name.invalid", 80).result()
        with pytest.raises(socket.gaierror):  # asked, and not found
            pool.submit(socket.getaddrinfo, "name.invalid", 80).result()


def test_other_threads_are_left_alone_and_those_of_an_export_are_not(tmp_path: Path) -> None:
    begin, answers = threading.Event(), []

    def elsewhere() -> None:
        begin.wait()
        with contextlib.suppress(OSError):
            socket.getaddrinfo("name.invalid", 80)  # RFC 6761: it is never found
        answers.append(in_thread(lambda: os.system("true # pip install x")))
        answers.append(refused(lambda: socket.getaddrinfo("name.invalid", 80)))

    def refused(act: Callable[[], object]) -> bool:
        try:
            act()
        except RefusedError:
            return True
        except OSError:
            pass
        return False

    late: list[bool] = []

    def phone_home_late() -> None:
        time.sleep(0.2)
        late.append(refused(lambda: socket.getaddrinfo("name.invalid", 80)))

    other = threading.Thread(target=elsewhere)
    other.start()
    reporter, start = threading.Thread(target=phone_home_late), threading.Thread.start
    with left_alone("onnx", tmp_path):
        begin.set()
        other.join()
        assert in_thread(lambda: in_thread(lambda: socket.getaddrinfo("name.invalid", 80))) is None
        assert in_thread(lambda: socket.getaddrinfo("name.invalid", 80)) is RefusedError
        reporter.start()
    assert answers == [None, False]
    assert not refused(lambda: socket.getaddrinfo("name.invalid", 80)), "afterwards, everything is as before"
    assert threading.Thread.start is start
    reporter.join()
    assert late == [True], "a thread that an export has started stays part of it"


def test_exports_within_exports(tmp_path: Path) -> None:
    with left_alone("mnn", tmp_path):
        with left_alone("onnx", tmp_path):
            pass
        with pytest.raises(RefusedError):
            socket.getaddrinfo("name.invalid", 80)


def test_stock_models_install_as_ultralytics_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ultralytics.utils import checks

    asked: list[Any] = []
    monkeypatch.setattr(checks, "AUTOINSTALL", True)
    monkeypatch.setattr(checks, "ONLINE", True)
    monkeypatch.setattr(checks.subprocess, "check_output", lambda *arguments, **_options: asked.append(arguments))
    assert checks.check_requirements("a-package-of-nobody")
    assert asked
    asked.clear()
    with left_alone("onnx", tmp_path):
        assert not checks.check_requirements("a-package-of-nobody")
        assert checks.check_requirements(["numpy", ("a-package-of-nobody", "torch")])
    assert not asked


# --- what is said -----------------------------------------------------------------------------------------------------


def test_a_wrong_version_is_named_and_the_export_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ultralytics.utils import LOGGER, checks

    said: list[str] = []
    monkeypatch.setattr(LOGGER, "warning", said.append)
    with left_alone("onnx", tmp_path):
        for _ in range(2):
            checks.check_requirements([("numpy<1",), "torch"], cmds="--no-deps")
    (text,) = said
    assert text.startswith("format=onnx: Ultralytics asks for numpy<1, and ")
    assert importlib.import_module("numpy").__version__ in text


@pytest.mark.parametrize(
    ("format", "requirement", "error", "expected"),
    [
        ("ncnn", "pnnx==1", ModuleNotFoundError("...", name="pnnx"), r'package pnnx, which .*"\.\[export\]"\.$'),
        (
            "axelera",
            "axelera-devkit==1.9",
            ModuleNotFoundError("Axelera export requires axelera-devkit."),
            r'package axelera-devkit, which .* own: pip install "axelera-devkit==1\.9"\.$',
        ),
        ("rknn", None, ModuleNotFoundError("...", name="rknn"), r"package rknn, which .*docs/exports\.md"),
        ("onnx", "numpy<1", ImportError("no name 'x'"), r"no name 'x'.* numpy<1 \(\d.* installed\)"),
    ],
)
def test_what_is_missing_is_one_sentence(
    format: str, requirement: str | None, error: ImportError, expected: str, tmp_path: Path
) -> None:
    from ultralytics.utils import checks

    def convert() -> None:
        if requirement:
            checks.check_requirements(requirement)
        raise error

    with pytest.raises(type(error), match=expected) as caught, left_alone(format, tmp_path):
        convert()
    assert str(caught.value).startswith(f"format={format} ")
    assert "\n" not in str(caught.value)


def test_an_error_of_another_kind_stays_what_it_is(tmp_path: Path) -> None:
    def convert() -> None:
        with contextlib.suppress(OSError):
            socket.getaddrinfo("name.invalid", 80)
        raise ValueError("its own")

    with pytest.raises(ValueError, match=r"^its own$"), left_alone("onnx", tmp_path):
        convert()


def test_a_data_set_that_is_not_here_is_not_downloaded(tmp_path: Path) -> None:
    """Ultralytics takes `coco8.yaml` where none is given, and would download it."""
    write_detector("repvit", tmp_path / "best.yaml")
    YOLO(tmp_path / "best.yaml").save(tmp_path / "best.pt")
    pytest.importorskip("onnxruntime")
    (data := tmp_path / "far.yaml").write_text(
        "path: nowhere-at-all\ntrain: images\nval: images\nnc: 10\ndownload: https://name.invalid/far.zip\n"
    )
    with pytest.raises(RuntimeError, match=r"^format=onnx stopped, because asking for the host 'name\.invalid'.*data="):
        YOLO(tmp_path / "best.pt").export(format="onnx", quantize=8, data=str(data), imgsz=64)
    assert {path.name for path in tmp_path.iterdir()} == {"best.yaml", "best.pt", "far.yaml"}


# --- files that a converter would download ----------------------------------------------------------------------------


@pytest.fixture
def _supplying(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    row = formats.Format("madeup", supplied={"sample.npy": lambda file: file.write_text("made") and None})
    monkeypatch.setitem(formats.FORMATS, "madeup", row)
    monkeypatch.chdir(tmp_path)
    yield
    shutil.rmtree(tmp_path)


@pytest.mark.usefixtures("_supplying")
def test_a_file_is_supplied_and_taken_away(tmp_path: Path) -> None:
    with left_alone("madeup", tmp_path):
        assert (tmp_path / "sample.npy").read_text() == "made"
    assert not (tmp_path / "sample.npy").exists()
    (tmp_path / "sample.npy").write_text("the user's")
    with left_alone("madeup", tmp_path):
        assert (tmp_path / "sample.npy").read_text() == "the user's"
    assert (tmp_path / "sample.npy").read_text() == "the user's"

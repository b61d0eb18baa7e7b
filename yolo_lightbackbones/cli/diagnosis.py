"""The checks of `lightbackbones doctor`. Whatever may be broken is imported with care, and nothing is changed."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import platform
import site
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from yolo_lightbackbones import __version__
from yolo_lightbackbones.cli.machine import cores, cpu_name, installed
from yolo_lightbackbones.configs import finding
from yolo_lightbackbones.plugin import formats

OK, NOTE, WRONG = "ok", "note", "wrong"

PACKAGE = "yolo_lightbackbones"
DISTRIBUTION = "yolo-lightbackbones"
AUTOLOAD_FILE = "yolo_lightbackbones_autoload.pth"
AUTOLOAD_SWITCH = "YOLO_LIGHTBACKBONES_AUTOLOAD"

LIBRARIES = {
    "ultralytics": ("ultralytics",),
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "OpenCV": ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"),
    "numpy": ("numpy",),
}
"""Name in the report -> distributions that it may come from."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        name: what was checked.
        status: `OK`, `NOTE` (worth knowing) or `WRONG`.
        text: what was found.
        advice: what to do about it.
    """

    name: str
    status: str
    text: str
    advice: str = ""


def versions() -> dict[str, str | None]:
    """Versions of everything that matters here, by name; None for what is not installed. Imports only torch."""
    found = {name: installed(*names) for name, names in (LIBRARIES | formats.packages()).items()}
    if found["torch"]:
        found["torch"] += f", {_devices()}"
    return {
        PACKAGE: __version__,
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "processor": f"{cpu_name()}, {cores()} cores",
        **found,
    }


def findings() -> list[Finding]:
    """Run all checks; each comes after those that it builds on."""
    found = [_copies(), _installation(), _yamls(), *_autoload(), _exports()]
    with _settings_of_its_own(), _recorded_warnings() as caught:
        importable = [_import("torch"), _import("ultralytics.nn.tasks")]
        found += importable
        if all(finding.status == OK for finding in importable):
            found += _ultralytics()
    found += [Finding("warning", WRONG, text) for text in dict.fromkeys(caught)]
    return found


# --- the package ------------------------------------------------------------------------------------------------------


def _copies() -> Finding:
    """Whether the package is the only one of its name on the import path."""
    here = Path(finding.__file__).resolve().parent.parent
    candidates = [Path(entry or ".") / PACKAGE for entry in sys.path]
    others = {path.resolve() for path in candidates if (path / "__init__.py").is_file()} - {here}
    if not others:
        return Finding("package", OK, f"imported from {here}")
    listed = ", ".join(map(str, sorted(others)))
    return Finding(
        "package",
        WRONG,
        f"imported from {here}, which hides another copy: {listed}",
        "two copies may differ, and each process takes the one that it finds first. Keep one: pip uninstall "
        f"{DISTRIBUTION}, or leave the folder out of PYTHONPATH and start from elsewhere.",
    )


def _installation() -> Finding:
    """Whether pip knows the package, and knows it in this version."""
    again = f"install it again: pip install --force-reinstall --no-deps {DISTRIBUTION}, or pip install -e FOLDER."
    try:
        known = distribution(DISTRIBUTION).version
    except PackageNotFoundError:
        return Finding("installation", WRONG, f"{DISTRIBUTION} is not installed, only imported from a folder", again)
    if known != __version__:
        text = f"installed as {known}, but the code says {__version__}"
        return Finding("installation", WRONG, text, again)
    return Finding("installation", OK, f"{DISTRIBUTION} {known}")


def _yamls() -> Finding:
    folder = finding.config_dir()
    models = sorted(path.name for path in folder.glob("*.yaml"))
    if models:
        return Finding("YAMLs", OK, f"{len(models)} model YAMLs in {folder}")
    return Finding("YAMLs", WRONG, f"no model YAMLs in {folder}", f"install {DISTRIBUTION} again.")


def _exports() -> Finding:
    """The formats whose packages are all installed."""
    there = [row.name for row in formats.FORMATS.values() if row.packages and all(map(_is_installed, row.packages))]
    text = f"all packages are installed for {', '.join(there) or 'no format'}; docs/exports.md says what others need"
    return Finding("exports", OK, text)


def _is_installed(package: str) -> bool:
    return installed(*formats.packages()[package]) is not None


# --- the autoload -----------------------------------------------------------------------------------------------------


def _autoload() -> list[Finding]:
    """Whether every new process will know our modules."""
    files = [folder / AUTOLOAD_FILE for folder in _site_folders() if (folder / AUTOLOAD_FILE).is_file()]
    off = os.environ.get(AUTOLOAD_SWITCH) == "0"
    again = f"install {DISTRIBUTION} again with pip; until then, call yolo_lightbackbones.register() in your script."
    if files:
        file = Finding("autoload file", OK, ", ".join(map(str, files)))
    else:
        file = Finding("autoload file", NOTE if off else WRONG, f"there is no {AUTOLOAD_FILE} in site-packages", again)
    if off:
        advice = f"unset {AUTOLOAD_SWITCH}, or call yolo_lightbackbones.register() in every script."
        return [file, Finding("autoload", NOTE, f"turned off by {AUTOLOAD_SWITCH}=0", advice)]
    return [file, _fresh_interpreter(again)]


def _site_folders() -> list[Path]:
    """Where Python reads `.pth` files."""
    folders = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        folders = [*folders, site.getusersitepackages()]
    return [Path(folder) for folder in folders]


def _fresh_interpreter(advice: str) -> Finding:
    """Whether a new interpreter, such as a worker of multi-GPU training, waits for Ultralytics."""
    code = "import sys; print(*(type(finder).__module__ for finder in sys.meta_path))"
    try:
        command = [sys.executable, "-c", code]  # nothing in it comes from users
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # nosec B603
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("autoload", WRONG, f"a new interpreter cannot be started: {error}", "see whether python runs.")
    if f"{PACKAGE}.autoload" in result.stdout.split():
        return Finding("autoload", OK, "active in a new interpreter")
    said = [line for line in result.stderr.splitlines() if PACKAGE in line]
    reason = f": {said[0].strip()}" if said else ""
    return Finding("autoload", WRONG, f"not active in a new interpreter{reason}", advice)


# --- ultralytics ------------------------------------------------------------------------------------------------------


def _import(name: str) -> Finding:
    """Whether a module can be imported; whatever it raises is a finding."""
    package = name.split(".", maxsplit=1)[0]
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Ultralytics prints that it made its settings
            module = importlib.import_module(package)
            importlib.import_module(name)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        how = f"pip install {package}" if missing else f"pip install --force-reinstall {package}, or what it misses"
        return Finding(package, WRONG, f"cannot be imported: {reason}", f"{how}.")
    where = Path(getattr(module, "__file__", None) or "").parent
    return Finding(package, OK, f"{getattr(module, '__version__', '')} imported from {where}")


def _ultralytics() -> list[Finding]:
    """Whether the plugin fits the Ultralytics that is imported, is installed on it, and works."""
    from yolo_lightbackbones import plugin

    version = str(importlib.import_module("ultralytics").__version__)
    seams = plugin.seams()
    fits = not any(seam.problem for seam in seams if seam.feature is None)
    tested = f"tested: {plugin.TESTED_VERSIONS}"
    if plugin.is_tested(version):
        found = [Finding("Ultralytics version", OK, f"{version} ({tested})")]
    else:
        text = f"{version} is outside the tested range ({tested}); the seams {'fit' if fits else 'do not fit'}"
        found = [Finding("Ultralytics version", NOTE if fits else WRONG, text, _tested_release(plugin))]
    registered = plugin.is_registered()
    found += [_seam(seam, registered, _tested_release(plugin)) for seam in seams]
    if registered:
        return [*found, _trial()]
    if not fits:
        return [*found, Finding("plugin", WRONG, "stays away from Ultralytics", _tested_release(plugin))]
    status = NOTE if os.environ.get(AUTOLOAD_SWITCH) == "0" else WRONG
    advice = "repair the autoload (see above), or call yolo_lightbackbones.register()."
    return [*found, Finding("plugin", status, "not installed on Ultralytics in this process", advice)]


def _tested_release(plugin: Any) -> str:
    first, last = plugin.TESTED_VERSIONS.split(" to ")
    return f'if something fails, install a tested release: pip install "ultralytics>={first},<={last}"'


def _seam(seam: Any, registered: bool, tested_release: str) -> Finding:
    if seam.problem and seam.feature:
        text = f"does not fit: {seam.problem}. Without it there is {seam.feature}; everything else works"
        return Finding(seam.name, WRONG, text, tested_release)
    if seam.problem:
        return Finding(seam.name, WRONG, f"does not fit: {seam.problem}")
    if seam.installed is None:
        return Finding(seam.name, OK, "fits")
    if seam.installed:
        return Finding(seam.name, OK, "fits, installed")
    if not registered:
        return Finding(seam.name, NOTE, "fits, not installed")
    advice = "find out which other package changes Ultralytics; import it before this one, or uninstall it."
    return Finding(seam.name, WRONG, "fits, but something else has been put in its place", advice)


def _trial() -> Finding:
    """Whether Ultralytics' own parser can build the smallest model with a backbone of ours."""
    from yolo_lightbackbones import registry

    tasks = importlib.import_module("ultralytics.nn.tasks")
    name, family = next(iter(registry.families().items()))
    variant = family.example()
    rows = [[-1, 1, name, [variant]], [0, 1, "Tap", ["P3"]]]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            model, _ = tasks.parse_model({"nc": 1, "backbone": rows, "head": []}, 3, verbose=False)
    except Exception as error:  # any error belongs in the report
        return Finding("trial", WRONG, f"{name} {variant} cannot be built: {type(error).__name__}: {error}")
    return Finding("trial", OK, f"a model with {name} {variant} was built, {len(model)} layers")


@contextlib.contextmanager
def _settings_of_its_own() -> Iterator[None]:
    """Protect the user's settings: on import, Ultralytics makes a settings file, or resets one of another version."""
    if "ultralytics" in sys.modules:
        yield
        return
    before = os.environ.get("YOLO_CONFIG_DIR")
    with tempfile.TemporaryDirectory(prefix="lightbackbones_doctor_") as folder:
        os.environ["YOLO_CONFIG_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["YOLO_CONFIG_DIR"]
            if before is not None:
                os.environ["YOLO_CONFIG_DIR"] = before


@contextlib.contextmanager
def _recorded_warnings() -> Iterator[list[str]]:
    """Collect our own warnings instead of printing them: a family cannot be registered, Ultralytics does not fit."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
        said = [str(warning.message) for warning in caught]
    texts += [text for text in said if PACKAGE in text or text.startswith("Backbone ")]


def _devices() -> str:
    """The devices that torch can use."""
    try:
        import torch
    except Exception as error:
        return f"which cannot be imported: {type(error).__name__}"
    if torch.cuda.is_available():
        names = dict.fromkeys(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
        return f"CUDA {torch.version.cuda}: {', '.join(names)}"
    return "MPS" if torch.backends.mps.is_available() else "CPU only"

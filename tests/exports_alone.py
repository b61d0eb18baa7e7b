"""Exports a checkpoint to the formats that install anywhere, and reports what that did to the environment.

    python exports_alone.py CHECKPOINT DATA_YAML TRAPS

For test_environment.py, in a process of its own: Ultralytics may install packages here, and believes that it is online.
TRAPS is a folder with programs that only note down their arguments, in TRAPS/calls. Prints one line of JSON.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import site
import sys
from pathlib import Path
from typing import Any

EXPORTS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "torchscript": ("torch", {"format": "torchscript"}, False),
    "onnx": ("onnx", {"format": "onnx"}, False),
    "onnx int8": ("onnxruntime", {"format": "onnx", "quantize": 8}, True),
    "openvino": ("openvino", {"format": "openvino"}, False),
    "openvino int8": ("nncf", {"format": "openvino", "quantize": 8}, True),
    "ncnn": ("pnnx", {"format": "ncnn"}, False),
    "mnn": ("MNN", {"format": "mnn"}, False),
}
"""Name -> a module that it takes, arguments of `yolo export`, and whether it takes a data set."""


def environment() -> dict[str, Any]:
    """Packages with their versions, and the entries of site-packages with the size and time of files."""
    folders = [Path(folder) for folder in site.getsitepackages()]
    found = {
        str(entry): (entry.stat().st_size, entry.stat().st_mtime_ns) if entry.is_file() else ()
        for folder in folders
        for entry in sorted(folder.iterdir())
        if entry.name != "__pycache__"
    }
    packages = importlib.metadata.distributions(path=[*map(str, folders)])
    return {"packages": {p.metadata["Name"]: p.version for p in packages}, "entries": found}


def main() -> None:
    checkpoint, data, traps = sys.argv[1:]
    calls = Path(traps, "calls")

    from ultralytics import YOLO
    from ultralytics.utils import checks

    from yolo_lightbackbones.plugin.environment import left_alone

    checks.ONLINE = True
    assert checks.AUTOINSTALL
    report: dict[str, Any] = {"before": environment(), "passed": [], "exported": {}}
    checks.check_requirements("a-package-of-nobody==1")
    report["a control"] = calls.read_text() if calls.exists() else ""
    calls.unlink(missing_ok=True)

    with left_alone("onnx", Path(traps)):
        pass  # the plugin's hook is there now; the next one is asked only about what that lets pass

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("subprocess.Popen", "os.system", "os.posix_spawn"):
            report["passed"].append(f"runs {os.path.basename(str(arguments[0]))}")
        elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
            report["passed"].append(f"{event} {arguments[1]}")
        elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
            report["passed"].append(f"{event} {arguments[0]}")

    sys.addaudithook(note)
    for name, (module, options, calibrates) in EXPORTS.items():
        if importlib.util.find_spec(module):
            given = {**options, "data": data} if calibrates else options
            file = YOLO(checkpoint).export(imgsz=64, verbose=False, **given)
            report["exported"][name] = os.path.relpath(file, Path(checkpoint).parent)
    report["calls"] = calls.read_text() if calls.exists() else ""
    report["after"] = environment()
    print("REPORT " + json.dumps(report))


if __name__ == "__main__":
    main()

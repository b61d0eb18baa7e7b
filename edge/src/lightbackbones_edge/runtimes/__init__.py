"""The libraries that can run an exported model, each behind the same two things: `info` and a call.

To add one: write a module with a class like those here (see `base.Runtime`), and name it in `RUNTIMES` with the suffix
of the files that it opens. Its library is imported when a model is loaded: nobody has them all.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import NamedTuple, cast

from lightbackbones_edge.runtimes.base import Runtime


class Entry(NamedTuple):
    """How a runtime is found."""

    suffix: str
    """Of the file that it opens."""
    module: str
    """Beside this one."""
    name: str
    """Of the class in it."""

    def load(self, path: Path) -> Runtime:
        """Load a model."""
        module = importlib.import_module(f"{__name__}.{self.module}")
        return cast("Runtime", getattr(module, self.name)(path))


# The first that opens a suffix is the default for it.
RUNTIMES: dict[str, Entry] = {
    "onnxruntime": Entry(".onnx", "onnxruntime", "OnnxRuntime"),
    "opencv": Entry(".onnx", "opencv_dnn", "OpenCv"),
    "openvino": Entry(".xml", "openvino", "OpenVino"),
    "ncnn": Entry(".param", "ncnn", "Ncnn"),
    "mnn": Entry(".mnn", "mnn", "Mnn"),
    "litert": Entry(".tflite", "litert", "LiteRt"),
    "executorch": Entry(".pte", "executorch", "ExecuTorch"),
    "rknn": Entry(".rknn", "rknn", "Rknn"),
}
SUFFIXES = tuple(dict.fromkeys(entry.suffix for entry in RUNTIMES.values()))


def load(path: Path, runtime: str | None = None) -> Runtime:
    """Load an exported model, a file or the folder it lies in, with `runtime` or the one that its suffix asks for.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: the runtime is not installed.
        ValueError: no runtime here opens such a file, or the runtime cannot load this one.
    """
    if runtime is not None and runtime not in RUNTIMES:
        raise ValueError(f"There is no runtime {runtime!r}; there are {', '.join(RUNTIMES)}.")
    file = find_model(path)
    entry = RUNTIMES[runtime] if runtime else next(e for e in RUNTIMES.values() if e.suffix == file.suffix)
    if entry.suffix != file.suffix:
        raise ValueError(f"The runtime {runtime} needs {entry.suffix} files, and {file} is another.")
    return entry.load(file)


def find_model(path: Path) -> Path:
    """The one model that a file or a folder stands for."""
    if not path.exists():
        raise FileNotFoundError(f"There is no model {path}.")
    candidates = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [file for file in candidates if file.suffix in SUFFIXES]
    if not files:
        raise ValueError(
            f"{path} is none of the model files that can be run here ({', '.join(SUFFIXES)}). Export it first."
        )
    if len(files) > 1:
        raise ValueError(f"{path} holds more than one model: name one of {', '.join(f.name for f in files)}.")
    return files[0]

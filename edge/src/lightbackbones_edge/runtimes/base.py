"""What every runtime is, and what several of them need."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lightbackbones_edge.boxes import FloatArray, Image
from lightbackbones_edge.info import ModelInfo
from lightbackbones_edge.raw import Outputs


class Runtime(Protocol):
    """An exported model, loaded by whichever library runs it."""

    info: ModelInfo
    in_order: bool
    """Whether outputs come in the order of the graph, names or not."""

    def __call__(self, image: Image) -> Outputs:
        """Map the input (height, width, 3), RGB bytes, to the network's outputs.

        One output is what `boxes.decode` takes; those of a raw head are (1, channels, h, w) each.
        """


def as_batch(image: Image) -> FloatArray:
    """Input (height, width, 3), bytes -> batch (1, 3, height, width) in 0..1."""
    batch: FloatArray = np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32) / np.float32(255)
    return batch


def numbered(outputs: Any) -> Outputs:
    """Outputs without names, as arrays of our own: the next run may reuse the runtime's memory."""
    return {str(number): np.array(values, np.float32) for number, values in enumerate(outputs)}


def require(path: Path, extra: str, package: str, *modules: str) -> Any:
    """Import a runtime, the first there is of `modules` (by default `package`).

    Raises:
        ModuleNotFoundError: there is none; the message says what to install.
    """
    cause: ImportError | None = None
    for module in modules or (package,):
        try:
            return importlib.import_module(module)
        except ImportError as error:
            cause = cause or error
    broken = "" if isinstance(cause, ModuleNotFoundError) else f" (the one here is broken: {one_line(cause)})"
    raise ModuleNotFoundError(
        f"Running {path.name} needs {package}{broken}: pip install {package}, or lightbackbones-edge with its extra "
        f"[{extra}]."
    ) from cause


def input_size(path: Path, shape: list[Any]) -> tuple[int, int] | None:
    """Height and width of a graph's input (1, 3, height, width); None where it takes any (a name, or -1).

    Raises:
        ValueError: the graph takes several pictures at once.
    """
    batch, _, *size = shape
    if isinstance(batch, int) and batch > 1:
        raise ValueError(f"{path} takes {batch} pictures at once; export it with batch=1.")
    return (size[0], size[1]) if all(isinstance(side, int) and side > 0 for side in size) else None


def one_line(error: BaseException | None) -> str:
    """The message of somebody else's error on one line of bounded length."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "..."

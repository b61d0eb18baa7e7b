"""The libraries that can run an exported model, each behind the same two things: `info` and a call.

To add one: write a class with `info: ModelInfo` and `__call__(batch) -> output` (see `detection.Runtime`) and name the
files it opens in `RUNTIMES`. Import its library inside the class: nobody has them all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from detection import FloatArray, ModelInfo, Runtime


class OnnxRuntime:
    """An ``.onnx`` file on onnxruntime's CPU provider."""

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"Running {path.name} needs onnxruntime: pip install onnxruntime", name=error.name
            ) from error
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own errors share no base class
            raise ValueError(f"onnxruntime cannot load {path}: {error}") from error
        self._input = self._session.get_inputs()[0]
        batch, _, *size = self._input.shape  # a name in place of a number means: any size
        if isinstance(batch, int) and batch != 1:
            raise ValueError(f"{path} takes {batch} pictures at once; export it with batch=1.")
        fixed_size = (size[0], size[1]) if all(isinstance(side, int) for side in size) else None
        self.info = ModelInfo.from_metadata(self._session.get_modelmeta().custom_metadata_map, fixed_size)
        self._dtype = np.float16 if self._input.type == "tensor(float16)" else np.float32

    def __call__(self, batch: FloatArray) -> FloatArray:
        (output, *_) = self._session.run(None, {self._input.name: batch.astype(self._dtype, copy=False)})
        return np.asarray(output, np.float32)


RUNTIMES: dict[str, Callable[[Path], Runtime]] = {".onnx": OnnxRuntime}


def load(path: Path) -> Runtime:
    """Load an exported model with the runtime that its file name asks for.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: the runtime is not installed.
        ValueError: no runtime here opens such a file, or the runtime cannot load this one.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is no model {path}.")
    if path.suffix not in RUNTIMES:
        raise ValueError(f"{path} is none of the model files this example runs ({', '.join(RUNTIMES)}).")
    return RUNTIMES[path.suffix](path)

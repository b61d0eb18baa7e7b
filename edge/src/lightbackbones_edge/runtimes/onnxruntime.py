"""onnxruntime, on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lightbackbones_edge.boxes import Image
from lightbackbones_edge.info import ModelInfo
from lightbackbones_edge.raw import Outputs
from lightbackbones_edge.runtimes.base import as_batch, input_size, one_line, require


class OnnxRuntime:
    """An ``.onnx`` file on onnxruntime's CPU provider."""

    in_order = True

    def __init__(self, path: Path) -> None:
        onnxruntime = require(path, "onnxruntime", "onnxruntime")
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own errors share no base class
            raise ValueError(f"onnxruntime cannot load {path}: {one_line(error)}") from error
        self._input = self._session.get_inputs()[0]
        self._outputs = [output.name for output in self._session.get_outputs()]
        values = self._session.get_modelmeta().custom_metadata_map
        self.info = ModelInfo.from_metadata(values, input_size(path, self._input.shape))
        self._dtype = np.float16 if self._input.type == "tensor(float16)" else np.float32

    def __call__(self, image: Image) -> Outputs:
        found = self._session.run(None, {self._input.name: as_batch(image).astype(self._dtype, copy=False)})
        return {name: np.asarray(values, np.float32) for name, values in zip(self._outputs, found, strict=True)}

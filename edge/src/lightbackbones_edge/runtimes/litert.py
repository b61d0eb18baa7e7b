"""LiteRT (formerly TensorFlow Lite), on the CPU."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lightbackbones_edge import metadata
from lightbackbones_edge.boxes import FloatArray, Image
from lightbackbones_edge.info import ModelInfo
from lightbackbones_edge.raw import Outputs
from lightbackbones_edge.runtimes.base import as_batch, input_size, one_line, require


class LiteRt:
    """A ``.tflite`` file."""

    def __init__(self, path: Path) -> None:
        module = require(path, "litert", "ai-edge-litert", "ai_edge_litert.interpreter", "tflite_runtime.interpreter")
        try:
            self._interpreter = module.Interpreter(str(path), num_threads=os.cpu_count())
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"LiteRT cannot load {path}: {one_line(error)}") from error
        self._input = self._interpreter.get_input_details()[0]
        self._outputs = {str(details["index"]): details for details in self._interpreter.get_output_details()}
        self.in_order = False
        if len(self._interpreter.get_signature_list()) == 1:  # it numbers them: output_0, output_1 and so on
            signed = self._interpreter.get_signature_runner().get_output_details()
            self.in_order = all(re.fullmatch(r"output_\d+", name) for name in signed)
            self._outputs = dict(sorted(signed.items(), key=lambda item: (len(item[0]), item[0])))
        shape = [int(side) for side in self._input["shape"]]
        # Exports made through TensorFlow take (1, height, width, 3), those made from PyTorch directly (1, 3, ...).
        self._channels_last = shape[-1] == 3
        if self._channels_last:
            shape = [shape[0], shape[3], shape[1], shape[2]]
        values = metadata.from_zip(path)
        self.info = ModelInfo.from_metadata(values, input_size(path, shape))
        self._final = metadata.literal(values, "end2end", bool, False) or metadata.argument(values, "nms")

    def __call__(self, image: Image) -> Outputs:
        batch = as_batch(image)
        if self._channels_last:
            batch = np.ascontiguousarray(batch.transpose(0, 2, 3, 1))  # (1, 3, h, w) -> (1, h, w, 3)
        self._interpreter.set_tensor(self._input["index"], quantize(batch, self._input))
        self._interpreter.invoke()
        found = {}
        for name, details in self._outputs.items():
            values = dequantize(self._interpreter.get_tensor(details["index"]), details)
            found[name] = self._as_raw(values) if self.info.raw else self._in_pixels(values)
        return found

    def _as_raw(self, values: FloatArray) -> FloatArray:
        return values.transpose(0, 3, 1, 2) if self._channels_last and values.ndim == 4 else values

    def _in_pixels(self, output: FloatArray) -> FloatArray:
        """Boxes are shares of the input's width and height, for the sake of INT8. Not final boxes made from PyTorch."""
        size = np.array([self.info.width, self.info.height] * 2, np.float32)
        if not self._final:
            output[:, :4] *= size[:, None]
        elif self._channels_last:
            output[:, :, :4] *= size
        return output


def quantize(values: FloatArray, details: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """Real numbers -> the type of a LiteRT tensor, to the nearest of its steps."""
    if not np.issubdtype(details["dtype"], np.integer):
        return values  # LiteRT's other inputs are float32
    scale, zero_point = details["quantization"]
    limits = np.iinfo(details["dtype"])
    steps: FloatArray = np.clip(np.round(values / scale + zero_point), limits.min, limits.max)
    return steps.astype(details["dtype"])


def dequantize(values: np.ndarray[Any, Any], details: Mapping[str, Any]) -> FloatArray:
    """The numbers of a LiteRT tensor -> real ones, as an array of our own."""
    real = np.array(values, np.float32)
    if np.issubdtype(details["dtype"], np.integer):
        scale, zero_point = details["quantization"]
        real = (real - np.float32(zero_point)) * np.float32(scale)
    return real

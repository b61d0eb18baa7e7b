"""MNN, on the CPU."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from lightbackbones_edge import metadata
from lightbackbones_edge.boxes import Image
from lightbackbones_edge.info import ModelInfo
from lightbackbones_edge.raw import Outputs
from lightbackbones_edge.runtimes.base import as_batch, input_size, numbered, require


class Mnn:
    """An ``.mnn`` file."""

    in_order = False

    def __init__(self, path: Path) -> None:
        mnn = require(path, "mnn", "MNN")
        # "normal" computes in float32; "low" would compute in float16 where the CPU can.
        config = {"backend": "CPU", "precision": "normal", "numThread": ((os.cpu_count() or 1) + 1) // 2}
        manager = mnn.nn.create_runtime_manager((config,))
        try:
            self._net = mnn.nn.load_module_from_file(str(path), [], [], runtime_manager=manager, rearrange=True)
        except (SystemError, RuntimeError, ValueError) as error:
            raise ValueError(f"MNN cannot load {path}.") from error
        self._expr = mnn.expr
        info = self._net.get_info()
        values = metadata.from_json(info.get("bizCode", ""))
        self.info = ModelInfo.from_metadata(values, input_size(path, list(info["inputs"][0].shape)))
        self._outputs: list[str] = info.get("outputNames", [])

    def __call__(self, image: Image) -> Outputs:
        batch = as_batch(image)
        outputs = self._net.onForward([self._expr.const(batch, list(batch.shape))])
        if not outputs:  # an export with nms=True that found nothing
            return {"0": np.empty((1, 0, 6), np.float32)}
        arrays = [output.read() for output in outputs]
        if len(self._outputs) != len(arrays):
            return numbered(arrays)
        # Copies: the next run reuses its memory.
        return {name: np.array(values, np.float32) for name, values in zip(self._outputs, arrays, strict=True)}

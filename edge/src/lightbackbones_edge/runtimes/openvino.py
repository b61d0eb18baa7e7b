"""OpenVINO, on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lightbackbones_edge import metadata
from lightbackbones_edge.boxes import Image
from lightbackbones_edge.info import ModelInfo
from lightbackbones_edge.raw import Outputs
from lightbackbones_edge.runtimes.base import as_batch, input_size, one_line, require


class OpenVino:
    """The ``.xml`` file of a ``*_openvino_model`` folder."""

    in_order = True

    def __init__(self, path: Path) -> None:
        openvino = require(path, "openvino", "openvino")
        core = openvino.Core()
        # Left alone, newer CPUs compute in bfloat16, which moves boxes by more than a pixel. INT8 layers stay INT8.
        config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        try:
            model = core.read_model(path)
            shape = [side.get_length() if side.is_static else -1 for side in model.input().partial_shape]
            self._model = core.compile_model(model, "CPU", config)
        except RuntimeError as error:
            raise ValueError(f"OpenVINO cannot load {path}: {one_line(error)}") from error
        values = metadata.from_yaml(path.with_name("metadata.yaml"))
        self.info = ModelInfo.from_metadata(values, input_size(path, shape))
        self._outputs = [
            min(output.get_names(), key=len, default=str(number)) for number, output in enumerate(self._model.outputs)
        ]

    def __call__(self, image: Image) -> Outputs:
        found = self._model(as_batch(image))
        return {name: np.array(found[number], np.float32) for number, name in enumerate(self._outputs)}

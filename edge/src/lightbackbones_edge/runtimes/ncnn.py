"""ncnn, on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lightbackbones_edge import metadata
from lightbackbones_edge.boxes import Image
from lightbackbones_edge.info import ModelInfo
from lightbackbones_edge.raw import Outputs
from lightbackbones_edge.runtimes.base import as_batch, require


class Ncnn:
    """The ``.param`` file of a ``*_ncnn_model`` folder."""

    in_order = True

    def __init__(self, path: Path) -> None:
        self._ncnn = require(path, "ncnn", "ncnn")
        self._net = self._ncnn.Net()
        weights = path.with_suffix(".bin")
        if not weights.exists():
            raise FileNotFoundError(f"{path} comes with a file of weights, and there is no {weights}.")
        if self._net.load_param(str(path)) or self._net.load_model(str(weights)):  # 0 is success
            raise ValueError(f"ncnn cannot load {path}.")
        # The graph holds no size of its own: the metadata's is the only one.
        self.info = ModelInfo.from_metadata(metadata.from_yaml(path.with_name("metadata.yaml")))
        # pnnx calls them out0, out1, ... in the order of the graph; ncnn may list them in another.
        self._outputs = sorted(self._net.output_names(), key=lambda name: (len(name), name))

    def __call__(self, image: Image) -> Outputs:
        batch, outputs = as_batch(image)[0], {}  # its arrays have no batch; they borrow this memory
        with self._net.create_extractor() as extractor:
            extractor.input(self._net.input_names()[0], self._ncnn.Mat(batch))
            for name in self._outputs:
                failed, values = extractor.extract(name)
                if failed:
                    raise ValueError("ncnn cannot run this model.")
                outputs[name] = np.array(values, np.float32)[None]  # a copy: the extractor's memory goes with it
        return outputs

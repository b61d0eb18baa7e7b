"""OpenCV's own `dnn` module: nothing else to install."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lightbackbones_edge import metadata
from lightbackbones_edge.boxes import Image
from lightbackbones_edge.info import ModelInfo
from lightbackbones_edge.opencv import cv2
from lightbackbones_edge.raw import Outputs
from lightbackbones_edge.runtimes.base import as_batch, one_line


class OpenCv:
    """An ``.onnx`` file on OpenCV."""

    in_order = False

    def __init__(self, path: Path) -> None:
        values = metadata.from_onnx(path)  # OpenCV does not hand them out
        self.info = ModelInfo.from_metadata(values)  # nor the size of the input
        if metadata.argument(values, "nms"):  # OpenCV 5.0's loses boxes where there are many
            raise ValueError(f"OpenCV loses boxes in its own non-maximum suppression: export {path} with nms=False.")
        try:
            self._net = cv2.dnn.readNetFromONNX(str(path))
            self._outputs = list(self._net.getUnconnectedOutLayersNames())
        except cv2.error as error:
            raise ValueError(f"OpenCV cannot load {path} (it takes float32 only): {one_line(error)}") from error

    def __call__(self, image: Image) -> Outputs:
        self._net.setInput(as_batch(image))
        try:
            found = self._net.forward(self._outputs)
        except cv2.error as error:  # some layers are refused only when they run
            raise ValueError(f"OpenCV cannot run this model: {one_line(error)}") from error
        # OpenCV 4 names the layer, in which the output's own name comes last.
        names = [name.rpartition("!")[2] for name in self._outputs]
        return {name: np.array(values, np.float32) for name, values in zip(names, found, strict=True)}

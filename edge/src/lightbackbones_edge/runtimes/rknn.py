"""RKNN-Lite2, on the NPU of a Rockchip board."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lightbackbones_edge import metadata
from lightbackbones_edge.boxes import Image
from lightbackbones_edge.info import ModelInfo
from lightbackbones_edge.raw import Outputs
from lightbackbones_edge.runtimes.base import numbered, require


class Rknn:
    """The ``.rknn`` file of a ``*_rknn_model`` folder. Tested with a stand-in for RKNN-Lite2, not on a board."""

    in_order = True

    def __init__(self, path: Path) -> None:
        api = require(path, "rknn", "rknn-toolkit-lite2", "rknnlite.api")
        # RKNN-Lite2 tells no size of the input: the metadata's is the only one.
        values = metadata.from_yaml(path.with_name("metadata.yaml"))
        self.info = ModelInfo.from_metadata(values)
        # For the sake of INT8, such exports give boxes as shares of the input's width and height.
        shares = metadata.argument(values, "quantize") == 8 and not metadata.literal(values, "end2end", bool, False)
        self._in_shares = shares and not self.info.raw
        self._model = api.RKNNLite()
        if failed := self._model.load_rknn(str(path)):
            raise ValueError(f"RKNN-Lite2 cannot load {path} (code {failed}).")
        if failed := self._model.init_runtime():
            raise ValueError(
                f"RKNN-Lite2 cannot start {path} here (code {failed}): it runs on the chip that it was exported for "
                "(name=...), with the driver of that board."
            )

    def __call__(self, image: Image) -> Outputs:
        # Bytes, channels last: the division by 255 is part of the network.
        found = self._model.inference(inputs=[np.ascontiguousarray(image[None])])
        if not found:
            raise ValueError("RKNN-Lite2 gave no outputs: its own messages say why.")
        outputs = numbered(found)
        if self._in_shares:
            for values in outputs.values():
                values[:, :4] *= np.array([self.info.width, self.info.height] * 2, np.float32)[:, None]
        return outputs

"""ExecuTorch, on the CPU. Its Python runtime brings torch, whose tensors it takes; the other runtimes do without."""

from __future__ import annotations

from pathlib import Path

from lightbackbones_edge import metadata
from lightbackbones_edge.boxes import Image
from lightbackbones_edge.info import ModelInfo
from lightbackbones_edge.raw import Outputs
from lightbackbones_edge.runtimes.base import as_batch, input_size, numbered, one_line, require


class ExecuTorch:
    """The ``.pte`` file of a ``*_executorch_model`` folder."""

    in_order = True

    def __init__(self, path: Path) -> None:
        runtime = require(path, "executorch", "executorch", "executorch.runtime")
        self._torch = require(path, "executorch", "torch")
        try:
            self._method = runtime.Runtime.get().load_program(path).load_method("forward")
            shape = list(self._method.metadata.input_tensor_meta(0).sizes())
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"ExecuTorch cannot load {path}: {one_line(error)}") from error
        values = metadata.from_yaml(path.with_name("metadata.yaml"))
        self.info = ModelInfo.from_metadata(values, input_size(path, shape))

    def __call__(self, image: Image) -> Outputs:
        try:
            return numbered(self._method.execute([self._torch.from_numpy(as_batch(image))]))
        except RuntimeError as error:
            raise ValueError(f"ExecuTorch cannot run this model: {one_line(error)}") from error

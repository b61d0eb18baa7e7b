"""Learned position embeddings along one axis of a map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_lightbackbones import recording
from yolo_lightbackbones.layers.circular import Axis, resize, symbolic_resize


class PositionEmbedding(recording.SizeBound):
    """Adds an embedding of the position along one axis, which a circular convolution cannot see (2203.03952, 3.1).

    (B, dim, H, W) -> the same; the embedding varies along its axis only.
    """

    no_weight_decay_names = ("weight",)

    def __init__(self, dim: int, length: int, axis: Axis) -> None:
        super().__init__()
        self.axis: Axis = axis
        self.weight = nn.Parameter(torch.empty(1, dim, *((length, 1) if axis == 2 else (1, length))))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        if self.any_size and recording.is_recording():
            return x + symbolic_resize(self.weight, self.axis, x)
        return x + resize(self.weight, self.axis, int(x.shape[self.axis]))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, length={max(self.weight.shape[2:])}, axis={'HW'[self.axis - 2]}"

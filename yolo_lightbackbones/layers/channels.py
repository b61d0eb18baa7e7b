"""Some channels of an image: for models on images of several sensors, such as RGB and infrared."""

from __future__ import annotations

from torch import Tensor, nn


class Channels(nn.Module):
    """Takes the channels from `start` up to, not including, `stop`: (B, C, H, W) -> (B, stop - start, H, W)."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start = start
        self.stop = stop

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.start : self.stop]

    def extra_repr(self) -> str:
        return f"{self.start}, {self.stop}"

"""From a picture to the network's input, and from boxes in the input back to the picture.

The numbers follow Ultralytics' own `yolo predict` on a fixed-size export, so that the boxes are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightbackbones_edge.boxes import FloatArray, Image
from lightbackbones_edge.opencv import cv2

PAD_VALUE = 114  # grey of the letterbox borders


@dataclass(frozen=True)
class Letterbox:
    """Scale a picture to fit the network's input, keep its proportions, fill the rest with grey."""

    source: tuple[int, int]  # height, width of the picture
    resized: tuple[int, int]  # of the picture inside the input
    target: tuple[int, int]  # of the input
    top: int
    left: int

    @classmethod
    def fit(cls, image: Image, target: tuple[int, int]) -> Letterbox:
        """Place `image` in an input of `target` (height, width) pixels."""
        source = image.shape[:2]
        gain = min(target[0] / source[0], target[1] / source[1])
        resized = max(round(source[0] * gain), 1), max(round(source[1] * gain), 1)
        # Half of an odd border is rounded down at the top and left: 0.1 keeps round() away from its ties.
        top, left = (round((t - r) / 2 - 0.1) for t, r in zip(target, resized, strict=True))
        return cls((source[0], source[1]), resized, target, top, left)

    def apply(self, image: Image) -> Image:
        """Picture (h, w, 3), BGR -> the network's input (height, width, 3), RGB; bytes both."""
        height, width = self.resized
        if self.resized != self.source:
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        canvas = np.full((*self.target, 3), PAD_VALUE, np.uint8)
        canvas[self.top : self.top + height, self.left : self.left + width] = image[..., ::-1]
        return canvas

    def undo(self, boxes: FloatArray) -> FloatArray:
        """Boxes (n, 4) in pixels of the input -> in pixels of the picture, cut at its edges."""
        height, width = self.source
        gain_y, gain_x = self.resized[0] / height, self.resized[1] / width
        offset = np.array([self.left, self.top] * 2, np.float32)
        gain = np.array([gain_x, gain_y] * 2, np.float32)
        inside: FloatArray = np.clip((boxes - offset) / gain, 0, np.array([width, height] * 2, np.float32))
        return inside

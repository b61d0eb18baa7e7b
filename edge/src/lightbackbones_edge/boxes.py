"""From the numbers that a network gives to boxes, with numpy: decoding and non-maximum suppression.

The numbers follow Ultralytics' own `yolo predict` on a fixed-size export, so that the boxes are the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Image = NDArray[np.uint8]  # (height, width, 3); BGR where it is a picture, as cv2.imread returns it

MAX_CANDIDATES = 30_000  # boxes that enter non-maximum suppression
MAX_DETECTIONS = 300  # boxes that leave it


class Detections(NamedTuple):
    """Boxes of one picture, the highest score first."""

    boxes: FloatArray
    """(n, 4): x1, y1, x2, y2 in pixels of the picture."""
    scores: FloatArray
    """(n,), 0..1."""
    classes: NDArray[np.int64]
    """(n,), numbers of classes."""

    def where(self, keep: NDArray[np.int64] | slice) -> Detections:
        """Return the boxes at these places."""
        return Detections(self.boxes[keep], self.scores[keep], self.classes[keep])

    def best_first(self) -> Detections:
        """Sort by score."""
        return self.where(np.argsort(-self.scores, kind="stable"))


def decode(output: FloatArray, classes: int | None, *, conf: float, iou: float) -> Detections:
    """Read the output of a network that ends in boxes, and find the best MAX_DETECTIONS, in pixels of the input.

    A plain head gives (1, 4 + classes, n): box centre, width and height, then a score per class. A head or an export
    that ends in final boxes gives (1, n, 6): corners, score, class; `iou` means nothing to it.

    Args:
        output: what the network gave.
        classes: how many classes the model has; None where it is not known.
        conf: boxes score above this.
        iou: boxes of one class that overlap by more are one.

    Raises:
        ValueError: the output has another shape.
    """
    final = output.ndim == 3 and output.shape[2] == 6  # also (1, 0, 6): nothing was found
    plain = output.ndim == 3 and output.shape[2] > 4 and output.shape[1] > 4 and classes in (None, output.shape[1] - 4)
    if not (final or plain) or output.shape[0] != 1:
        expected = f"(1, 4 + {classes or 'classes'}, n) or (1, n, 6)"
        raise ValueError(f"The network's output has the shape {output.shape}; expected {expected}.")
    rows = output[0]
    if final:
        rows = rows[rows[:, 4] > conf]
        found = Detections(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64)).best_first()
        return found.where(slice(MAX_DETECTIONS))
    rows = rows.T  # (4 + classes, n) -> (n, 4 + classes)
    rows = rows[rows[:, 4:].max(axis=1) > conf]
    centre, half = rows[:, :2], rows[:, 2:4] / 2
    return suppressed(np.concatenate([centre - half, centre + half], axis=1), rows[:, 4:], iou)


def suppressed(corners: FloatArray, scores: FloatArray, iou: float) -> Detections:
    """Find the best MAX_DETECTIONS boxes, each of its best class, after non-maximum suppression.

    Args:
        corners: (n, 4), x1, y1, x2, y2.
        scores: (n, classes).
        iou: boxes of one class that overlap by more are one.
    """
    candidates = Detections(corners, scores.max(axis=1), scores.argmax(axis=1)).best_first()
    return non_max_suppression(candidates.where(slice(MAX_CANDIDATES)), iou).where(slice(MAX_DETECTIONS))


def non_max_suppression(candidates: Detections, iou: float) -> Detections:
    """Drop every box that overlaps a better one of its class by more than `iou`. Takes boxes sorted by score."""
    boxes, _, classes = candidates
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    remaining, kept = np.arange(len(boxes)), []
    while remaining.size:
        best, rest = remaining[0], remaining[1:]
        kept.append(best)
        corner_1 = np.maximum(boxes[best, :2], boxes[rest, :2])
        corner_2 = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = np.clip(corner_2 - corner_1, 0, None).prod(axis=1)
        # As a product, so that two boxes without any area divide nothing by zero.
        overlaps = shared > iou * (areas[best] + areas[rest] - shared)
        remaining = rest[~overlaps | (classes[rest] != classes[best])]
    return candidates.where(np.array(kept, np.int64))

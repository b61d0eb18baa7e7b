"""Raw heads: exports that end before the boxes are decoded, which is done here.

In a decoded output, pixels of up to some hundreds lie beside scores of 0 to 1, and one 8-bit scale serves neither. A
raw file has two outputs per level instead, each with a scale of its own: the box logits (1, 4 * reg_max, h, w) and the
class logits (1, classes, h, w).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightbackbones_edge.boxes import MAX_DETECTIONS, Detections, FloatArray, suppressed
from lightbackbones_edge.metadata import literal

VERSION = 1
"""Of the layout of raw files (`raw_head` in their metadata) that is read here."""

Outputs = dict[str, FloatArray]
"""What a network gives, by name, in the order of its graph. Names are the runtime's where the file has none."""


@dataclass(frozen=True)
class RawHead:
    """What the maps of a raw file mean."""

    strides: tuple[int, ...]
    """Pixels of the input per cell of a level, the finest level first."""
    reg_max: int
    """Bins of a distribution over distances; 1 where the head gives the distance itself."""
    classes: int
    end_to_end: bool
    """Whether each object has one box, so that nothing has to be suppressed."""
    max_detections: int = MAX_DETECTIONS
    """Most boxes that an end-to-end head gives."""

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], classes: int) -> RawHead | None:
        """Read what the metadata of an export say of its raw head; None if it has none.

        Raises:
            ValueError: it is raw in a way that is not known here, or a key is missing.
        """
        version = literal(metadata, "raw_head", int, 0)
        if not version:
            return None
        if version != VERSION:
            raise ValueError(
                f"This file has raw outputs in version {version} of their layout; this lightbackbones-edge reads "
                f"version {VERSION}: install the lightbackbones-edge that belongs to what exported it."
            )
        strides: tuple[int, ...] = ()
        strides = literal(metadata, "raw_strides", lambda values: tuple(int(value) for value in values), strides)
        reg_max = literal(metadata, "raw_reg_max", int, 0)
        # The key end2end is no help: raw files have it set, so that converters leave their first output alone.
        end_to_end = literal(metadata, "raw_end2end", int, -1)
        max_detections = literal(metadata, "raw_max_det", int, MAX_DETECTIONS)
        usable = {
            "raw_strides": bool(strides) and min(strides) > 0 and len(set(strides)) == len(strides),
            "raw_reg_max": reg_max > 0,
            "raw_end2end": end_to_end in (0, 1),
            "raw_max_det": max_detections > 0,
            "names": classes > 0,
        }
        if missing := [key for key, good in usable.items() if not good]:
            raise ValueError(
                f"This file has raw outputs, but its metadata have no usable {', '.join(missing)}, without which they "
                "cannot be decoded: export it again."
            )
        return cls(strides, reg_max, classes, bool(end_to_end), max_detections)

    def shapes(self, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        """Name and shape of each output, in order, for an input of `size` (height, width) pixels."""
        found = {}
        for stride in self.strides:
            cells = tuple(-(-side // stride) for side in size)
            found[f"box_{stride}"] = (1, 4 * self.reg_max, *cells)
            found[f"class_{stride}"] = (1, self.classes, *cells)
        return found

    def sorted(self, outputs: Outputs, size: tuple[int, int], *, in_order: bool) -> list[FloatArray]:
        """Tell which output is which: by name, or else by shape, or else by the order of the graph.

        Args:
            outputs: what the network gave.
            size: height and width of its input in pixels.
            in_order: whether the runtime keeps to the order of the graph.

        Raises:
            ValueError: there are more or fewer of them, or one has another shape, or nothing says which is which.
        """
        expected = self.shapes(size)
        by_shape = dict(zip(expected.values(), expected, strict=True))
        if len(outputs) != len(expected):
            raise ValueError(
                f"This file has {len(outputs)} outputs; its raw head has {len(expected)}: {_listed(expected)}."
            )
        if expected.keys() == outputs.keys():
            named = outputs
        elif len(by_shape) == len(expected):
            named = {by_shape.get(values.shape, name): values for name, values in outputs.items()}
        elif in_order:
            named = dict(zip(expected, outputs.values(), strict=True))
        else:
            raise ValueError(
                "Several raw outputs of this file have the same shape, and this runtime gives neither their names nor "
                "their order: export it for another one, such as ONNX."
            )
        if any(name not in named or named[name].shape != shape for name, shape in expected.items()):
            given = {name: values.shape for name, values in outputs.items()}
            raise ValueError(f"The outputs of this file are {_listed(given)}; its raw head has {_listed(expected)}.")
        return [named[name] for name in expected]

    def decode(self, maps: list[FloatArray], conf: float) -> tuple[FloatArray, FloatArray]:
        """Decode the cells that score above `conf`.

        Args:
            maps: box logits (1, 4 * reg_max, h, w) and class logits (1, classes, h, w) of each level.
            conf: a cell is left out unless a class scores above this.

        Returns:
            Corners (n, 4) in pixels of the input and scores (n, classes).
        """
        # Most cells are background: the logit tells, and nothing else of them is computed. The small gap is for
        # rounding; scores are compared below.
        limit = -math.inf if conf <= 0 else math.inf if conf >= 1 else math.log(conf / (1 - conf)) - 1e-3
        corners, scores = [], []
        for stride, box, class_map in zip(self.strides, maps[::2], maps[1::2], strict=True):
            width = box.shape[3]
            logits = class_map.reshape(self.classes, -1)
            (cells,) = np.nonzero(logits.max(axis=0) > limit)
            bins = box.reshape(4, self.reg_max, -1)[..., cells]
            left, top, right, bottom = _distances(bins)
            x, y = cells % width + np.float32(0.5), cells // width + np.float32(0.5)
            level = np.stack([x - left, y - top, x + right, y + bottom], axis=1) * np.float32(stride)
            corners.append(level.astype(np.float32))
            scores.append(_sigmoid(logits[:, cells].T))
        found, all_scores = np.concatenate(corners), np.concatenate(scores)
        above = all_scores.max(axis=1) > conf
        return found[above], all_scores[above]

    def detections(
        self, outputs: Outputs, size: tuple[int, int], *, in_order: bool, conf: float, iou: float
    ) -> Detections:
        """Find the best boxes, in pixels of the input; `iou` means nothing to an end-to-end head."""
        maps = self.sorted(outputs, size, in_order=in_order)
        corners, scores = self.decode(maps, conf)
        if not self.end_to_end:
            return suppressed(corners, scores, iou)
        cells, classes = np.nonzero(scores > conf)  # a cell may have several classes
        found = Detections(corners[cells], scores[cells, classes], classes).best_first()
        count = sum(box[0, 0].size for box in maps[::2])  # like Ultralytics' head, no more boxes than there are cells
        return found.where(slice(min(self.max_detections, count)))


def _distances(bins: FloatArray) -> FloatArray:
    """Box logits (4, reg_max, n) -> distances (4, n) in cells: the mean over the softmax, or the one value itself."""
    if bins.shape[1] == 1:
        return bins[:, 0]
    weights = np.exp(bins - bins.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    mean: FloatArray = np.einsum("srn,r->sn", weights, np.arange(bins.shape[1], dtype=np.float32))
    return mean


def _sigmoid(logits: FloatArray) -> FloatArray:
    """Without overflow: exp() sees no number above zero."""
    small = np.exp(-np.abs(logits))
    scores: FloatArray = np.where(logits >= 0, 1, small) / (1 + small)
    return scores.astype(np.float32, copy=False)


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    shown = [f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items()]
    return ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "")

"""From a picture to boxes, with numpy and OpenCV alone: what happens before and after the network.

The numbers follow Ultralytics' own `yolo predict` on a fixed-size export, so that the boxes are the same. Nothing here
knows a runtime; `runtimes.py` holds those.
"""

from __future__ import annotations

import ast
import colorsys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
T = TypeVar("T")
Image = NDArray[np.uint8]  # (height, width, 3), BGR, as cv2.imread returns it

PAD_VALUE = 114  # grey of the letterbox borders
MAX_CANDIDATES = 30_000  # boxes that enter non-maximum suppression
MAX_DETECTIONS = 300  # boxes that leave it


@dataclass(frozen=True)
class ModelInfo:
    """What has to be known about an exported detector to feed it and to read its answer."""

    height: int  # of the network's input, pixels
    width: int
    names: dict[int, str]  # class number -> name; classes that are missing here are shown by number

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], input_shape: tuple[int, int] | None = None) -> ModelInfo:
        """Read what Ultralytics writes into an export: values, or (in ONNX) the same written out as strings.

        `input_shape` (height, width) is the graph's own, which has the last word; None where the graph leaves it open.

        Raises:
            ValueError: the model is no detector of colour images, or its input size is nowhere to be found.
        """
        task = metadata.get("task", "detect")
        if task != "detect":
            raise ValueError(f"This is a model for the task {task!r}; this example reads 'detect' only.")
        channels = literal(metadata, "channels", int, 3)
        if channels != 3:
            raise ValueError(f"This model reads {channels} channels; this example feeds colour images (3).")
        size = input_shape or literal(metadata, "imgsz", lambda size: tuple(map(int, size)), None)
        if size is None:
            raise ValueError(
                "The model's input size is open and its metadata name no 'imgsz': export it with imgsz=..."
            )
        height, width = size
        names: dict[int, str] = {}
        names = literal(metadata, "names", lambda names: {int(key): str(name) for key, name in names.items()}, names)
        return cls(height, width, names)

    def name(self, class_id: int) -> str:
        return self.names.get(class_id, str(class_id))


def literal(metadata: Mapping[str, Any], key: str, read: Callable[[Any], T], default: T) -> T:
    """Read a value, or the Python that stands for it; literal_eval, for opening a model file must never run code."""
    if key not in metadata:
        return default
    value = metadata[key]
    try:
        return read(ast.literal_eval(value) if isinstance(value, str) else value)
    except (ValueError, SyntaxError, TypeError, AttributeError):
        raise ValueError(f"The model's metadata are damaged: {key}={value!r}.") from None


class Runtime(Protocol):
    """An exported model, loaded by whichever library runs it."""

    info: ModelInfo

    def __call__(self, batch: FloatArray) -> FloatArray:
        """Map a batch (1, 3, height, width), RGB in 0..1, to the network's one output (see `decode`)."""


class Detections(NamedTuple):
    """Boxes of one picture."""

    boxes: FloatArray  # (n, 4): x1, y1, x2, y2 in pixels of the picture
    scores: FloatArray  # (n,), 0..1
    class_ids: NDArray[np.int64]  # (n,)

    def where(self, keep: NDArray[np.int64] | slice) -> Detections:
        return Detections(self.boxes[keep], self.scores[keep], self.class_ids[keep])

    def by_score(self) -> Detections:
        return self.where(np.argsort(-self.scores, kind="stable"))


def detect(runtime: Runtime, image: Image, *, conf: float = 0.25, iou: float = 0.7) -> Detections:
    """Find objects that score above `conf`; of two of one class that overlap by more than `iou`, only the better."""
    letterbox = Letterbox.fit(image, runtime.info)
    found = decode(runtime(letterbox.apply(image)), conf=conf, iou=iou)
    return found._replace(boxes=letterbox.undo(found.boxes))


@dataclass(frozen=True)
class Letterbox:
    """Scale a picture to fit the network's input, keep its proportions, fill the rest with grey."""

    source: tuple[int, int]  # height, width of the picture
    resized: tuple[int, int]  # of the picture inside the input
    target: tuple[int, int]  # of the input
    top: int
    left: int

    @classmethod
    def fit(cls, image: Image, info: ModelInfo) -> Letterbox:
        source, target = image.shape[:2], (info.height, info.width)
        gain = min(target[0] / source[0], target[1] / source[1])
        resized = max(round(source[0] * gain), 1), max(round(source[1] * gain), 1)
        # Half of an odd border is rounded down at the top and left: 0.1 keeps round() away from its ties.
        top, left = (round((t - r) / 2 - 0.1) for t, r in zip(target, resized, strict=True))
        return cls((source[0], source[1]), resized, target, top, left)

    def apply(self, image: Image) -> FloatArray:
        """Picture (h, w, 3), BGR bytes -> batch (1, 3, height, width), RGB in 0..1."""
        height, width = self.resized
        if self.resized != self.source:
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        canvas = np.full((*self.target, 3), PAD_VALUE, np.uint8)
        canvas[self.top : self.top + height, self.left : self.left + width] = image
        planes = canvas[..., ::-1].transpose(2, 0, 1)[None]  # BGR -> RGB; (h, w, 3) -> (1, 3, h, w)
        batch: FloatArray = np.ascontiguousarray(planes, np.float32) / np.float32(255)
        return batch

    def undo(self, boxes: FloatArray) -> FloatArray:
        """Boxes (n, 4) in pixels of the input -> in pixels of the picture, cut at its edges."""
        height, width = self.source
        gain_y, gain_x = self.resized[0] / height, self.resized[1] / width
        offset = np.array([self.left, self.top] * 2, np.float32)
        gain = np.array([gain_x, gain_y] * 2, np.float32)
        inside: FloatArray = np.clip((boxes - offset) / gain, 0, np.array([width, height] * 2, np.float32))
        return inside


def decode(output: FloatArray, *, conf: float, iou: float) -> Detections:
    """Read the network's output: the best MAX_DETECTIONS boxes, in pixels of the input.

    A plain head gives (1, 4 + classes, n): box centre, width and height, then a score per class. A head or an export
    that ends in final boxes gives (1, n, 6): corners, score, class; `iou` means nothing to it.
    """
    final = output.ndim == 3 and output.shape[2] == 6  # also (1, 0, 6): nothing was found
    if output.ndim != 3 or output.shape[0] != 1 or (min(output.shape[1:]) < 5 and not final):
        expected = "(1, 4 + classes, n) or (1, n, 6)"
        raise ValueError(f"The network's output has the shape {output.shape}; expected {expected}.")
    rows = output[0]
    if final:
        rows = rows[rows[:, 4] > conf]
        found = Detections(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64)).by_score()
    else:
        rows = rows.T  # (4 + classes, n) -> (n, 4 + classes)
        rows = rows[rows[:, 4:].max(axis=1) > conf]
        centre, half = rows[:, :2], rows[:, 2:4] / 2
        corners = np.concatenate([centre - half, centre + half], axis=1)
        candidates = Detections(corners, rows[:, 4:].max(axis=1), rows[:, 4:].argmax(axis=1)).by_score()
        found = non_max_suppression(candidates.where(slice(MAX_CANDIDATES)), iou)
    return found.where(slice(MAX_DETECTIONS))


def non_max_suppression(candidates: Detections, iou: float) -> Detections:
    """Drop every box that overlaps a better one of its class by more than `iou`. Takes boxes sorted by score."""
    boxes, _, class_ids = candidates
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
        remaining = rest[~overlaps | (class_ids[rest] != class_ids[best])]
    return candidates.where(np.array(kept, np.int64))


def draw(image: Image, found: Detections, info: ModelInfo) -> Image:
    """A copy of `image` with each box, its class and its score."""
    image = image.copy()
    line = max(round(sum(image.shape[:2]) / 2 * 0.004), 2)
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, max(sum(image.shape[:2]) / 2 / 900, 0.4)
    for box, score, class_id in reversed(list(zip(*found, strict=True))):  # the best last, on top
        x1, y1, x2, y2 = (round(float(value)) for value in box)
        colour = _colour(int(class_id))
        cv2.rectangle(image, (x1, y1), (x2, y2), colour, line)
        text = f"{info.name(int(class_id))} {score:.2f}"
        (width, height), baseline = cv2.getTextSize(text, font, scale, 1)
        # The label sits on top of the box, or inside it at the picture's upper edge; never beyond the right edge.
        bottom = y1 if y1 >= height + baseline else y1 + height + baseline
        left = max(min(x1, image.shape[1] - width), 0)
        cv2.rectangle(image, (left, bottom - height - baseline), (left + width, bottom), colour, cv2.FILLED)
        black_or_white = (0, 0, 0) if sum(colour) > 382 else (255, 255, 255)
        cv2.putText(image, text, (left, bottom - baseline + 1), font, scale, black_or_white, 1, cv2.LINE_AA)
    return image


def _colour(class_id: int) -> tuple[int, int, int]:
    """BGR; the golden ratio keeps the hues of neighbouring classes far apart."""
    red, green, blue = colorsys.hsv_to_rgb(class_id * 0.618034 % 1.0, 0.85, 0.95)
    return round(blue * 255), round(green * 255), round(red * 255)

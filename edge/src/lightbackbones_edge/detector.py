"""A detector: a picture goes in, boxes come out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lightbackbones_edge import runtimes
from lightbackbones_edge.boxes import Detections, Image, decode
from lightbackbones_edge.info import ModelInfo
from lightbackbones_edge.letterbox import Letterbox
from lightbackbones_edge.runtimes.base import Runtime


class Detector:
    """An exported detector, loaded by the library that runs it.

    Args:
        model: the exported file, or the folder that it lies in.
        runtime: a name of `lightbackbones_edge.runtimes.RUNTIMES`; None for the one that the file's suffix asks for.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: the runtime is not installed.
        ValueError: the file is no detector that can be run here.
    """

    def __init__(self, model: str | Path, *, runtime: str | None = None) -> None:
        self._runtime = runtimes.load(Path(model), runtime)

    @property
    def info(self) -> ModelInfo:
        """What the file says about itself."""
        return self._runtime.info

    @property
    def names(self) -> dict[int, str]:
        """Names of the classes by their numbers."""
        return self.info.names

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input in pixels; pictures are scaled to it."""
        return self.info.size

    def __call__(self, image: Image, *, conf: float = 0.25, iou: float = 0.7) -> Detections:
        """Find objects.

        Args:
            image: (H, W, 3), BGR, uint8, of any height and width.
            conf: they score above this, 0..1.
            iou: of two of one class that overlap by more, only the better is kept, 0..1.

        Returns:
            Boxes (n, 4) as x1, y1, x2, y2 in pixels of `image`, scores (n,) and classes (n,), the best first.

        Raises:
            ValueError: the image has another shape or type, a limit is not in 0..1, or the network gives something
                that is no answer of a detector.
        """
        return detect(self._runtime, image, conf=conf, iou=iou)


def detect(runtime: Runtime, image: Image, *, conf: float, iou: float) -> Detections:
    """Find objects with a loaded model; see `Detector.__call__`."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        given = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"A picture is a numpy array (H, W, 3) of uint8, BGR; this is {given}.")
    if not image.size:
        raise ValueError(f"This picture has no pixels: its shape is {image.shape}.")
    for name, value in (("conf", conf), ("iou", iou)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} is not in 0..1.")
    info = runtime.info
    letterbox = Letterbox.fit(image, info.size)
    outputs = runtime(letterbox.apply(image))
    if info.raw:
        found = info.raw.detections(outputs, info.size, in_order=runtime.in_order, conf=conf, iou=iou)
    else:
        first = next(iter(outputs.values()))
        found = decode(first, len(info.names) or None, conf=conf, iou=iou)
    return found._replace(boxes=letterbox.undo(found.boxes))

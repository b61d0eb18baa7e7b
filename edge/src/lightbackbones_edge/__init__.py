"""Run a YOLO detector that Ultralytics exported, with numpy, OpenCV and one runtime.

    from lightbackbones_edge import Detector

    detector = Detector("best.onnx")
    boxes, scores, classes = detector(cv2.imread("street.jpg"))

Neither torch nor Ultralytics is imported. Importing this package imports nothing else until a name of it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightbackbones_edge.boxes import Detections
    from lightbackbones_edge.detector import Detector

__version__ = "0.1.0"
__all__ = ["Detections", "Detector", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightbackbones_edge import boxes, detector

    return detector.Detector if name == "Detector" else boxes.Detections


def __dir__() -> list[str]:
    return __all__

"""OpenCV, or one sentence that says how to get it."""

from __future__ import annotations

try:
    import cv2
except ImportError as error:  # not there, or a library of the desktop that it wants is not
    raise ImportError(
        f"lightbackbones-edge needs OpenCV, which cannot be imported here ({error}): pip install opencv-python-headless"
    ) from error

__all__ = ["cv2"]

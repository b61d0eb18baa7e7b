"""Boxes drawn into a picture."""

from __future__ import annotations

import colorsys

from lightbackbones_edge.boxes import Detections, Image
from lightbackbones_edge.info import ModelInfo
from lightbackbones_edge.opencv import cv2


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

"""What has to be known about an exported detector to feed it and to read its answer."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightbackbones_edge.metadata import literal
from lightbackbones_edge.raw import RawHead


@dataclass(frozen=True)
class ModelInfo:
    """Input size and classes of an exported detector, and how its outputs are read."""

    height: int  # of the network's input, pixels
    width: int
    names: dict[int, str] = field(default_factory=dict)  # class number -> name; a class without one is shown by number
    raw: RawHead | None = None  # where boxes are decoded here

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], input_shape: tuple[int, int] | None = None) -> ModelInfo:
        """Read what Ultralytics writes into an export: values, or (in ONNX) the same written out as strings.

        Args:
            metadata: keys and values.
            input_shape: height and width of the graph's input, which have the last word; None where it takes any.

        Raises:
            ValueError: the model is no detector of colour images, or its input size is nowhere to be found.
        """
        task = metadata.get("task", "detect")
        if task != "detect":
            raise ValueError(
                f"This is a model for the task {reprlib.repr(task)}; lightbackbones-edge reads 'detect' only."
            )
        if str(metadata.get("head", "")).startswith("RTDETR"):
            raise ValueError(
                "This is an RT-DETR, whose boxes lightbackbones-edge does not read: they are shares of an image that "
                "is stretched. Run it with `yolo predict`."
            )
        channels = literal(metadata, "channels", int, 3)
        if channels != 3:
            raise ValueError(f"This model reads {channels} channels; lightbackbones-edge feeds colour images (3).")
        size = input_shape or literal(metadata, "imgsz", lambda size: tuple(map(int, size)), None)
        if size is None:
            raise ValueError(
                "The model's input size is open and its metadata name no 'imgsz': export it with imgsz=..., and keep "
                "metadata.yaml beside it."
            )
        height, width = size
        names: dict[int, str] = {}
        names = literal(metadata, "names", lambda names: {int(key): str(name) for key, name in names.items()}, names)
        return cls(height, width, names, RawHead.from_metadata(metadata, len(names)))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input in pixels."""
        return self.height, self.width

    def name(self, class_id: int) -> str:
        """Name of a class, or its number."""
        return self.names.get(class_id, str(class_id))

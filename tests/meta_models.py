"""Builds models of Ultralytics from shapes alone, on the meta device: no memory, no random numbers, little time."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from operations import KnownShapes
from ultralytics.nn import tasks

CLASSES = {
    "Classify": "ClassificationModel",
    "Segment": "SegmentationModel",
    "Segment26": "SegmentationModel",
    "Pose": "PoseModel",
    "Pose26": "PoseModel",
    "OBB": "OBBModel",
    "OBB26": "OBBModel",
    "SemanticSegment": "SemanticSegmentationModel",
    "Depth": "DepthModel",
    "RTDETRDecoder": "RTDETRDetectionModel",
    "WorldDetect": "WorldModel",
    "YOLOEDetect": "YOLOEModel",
    "YOLOESegment": "YOLOESegModel",
    "YOLOESegment26": "YOLOESegModel",
}
"""Head -> the class in Ultralytics' `nn.tasks` that has its loss; `DetectionModel` for the others."""


class Numbers(KnownShapes):
    """Within `torch.device("meta")`: tensors of given numbers, such as the strides of a head, have their values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.tensor and isinstance(args[0], list) and len(args[0]) > 1:  # a single number is a parameter
            kwargs = {"device": "cpu", **(kwargs or {})}
        return super().__torch_function__(func, types, args, kwargs)


def model_of(path: str | Path) -> Any:
    """The model of a YAML, with the class that belongs to its head."""
    config = tasks.yaml_model_load(str(path))
    return getattr(tasks, CLASSES.get(config["head"][-1][2], "DetectionModel"))(config, verbose=False)


def shape_of(path: str | Path) -> Any:
    """The same on the meta device."""
    with torch.device("meta"), Numbers():
        return model_of(path)


def reductions(model: Any, height: int = 128, width: int = 192) -> list[int]:
    """By what each map that reaches the head of a model on the meta device is smaller than the image."""
    seen: list[int] = []

    def note(head: Any, inputs: tuple[Any, ...]) -> None:
        maps = [each for each in inputs[0] if each.ndim == 4]  # YOLOE adds text
        assert all(height * each.shape[3] == width * each.shape[2] for each in maps)
        seen.extend(height // each.shape[2] for each in maps)
        raise StopIteration

    handle = model.model[-1].register_forward_pre_hook(note)
    with contextlib.suppress(StopIteration), torch.device("meta"), Numbers():
        model.eval()(torch.zeros(1, 3, height, width))
    handle.remove()
    return seen

"""Models of Ultralytics with our modules: folding, pretrained weights, and operations counted at the image size.

Each function here takes a function of Ultralytics and returns the one that takes its place.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from yolo_lightbackbones import fusion
from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.blocks import BlockRow
from yolo_lightbackbones.measure import cost
from yolo_lightbackbones.plugin import releases, transfer

MARKS = ("i", "f", "type", "np")
"""Attributes that Ultralytics' parser writes on every layer; its models read them when they run."""

UNFOLDED = "no folding of our layers in model.fuse()"


def has_ours(model: nn.Module) -> bool:
    """Whether a backbone or a row of blocks of ours is in the model."""
    return any(isinstance(module, Backbone | BlockRow) for module in model.modules())


def fuse(original: Callable[..., Any]) -> Callable[..., Any]:
    """`BaseModel.fuse`: our modules fold themselves as well, before Ultralytics' own."""

    def fuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        unfolded = {i: module for i, module in enumerate(self.model) if not fusion.is_fused(module)}
        if problem := next((problem for module in unfolded.values() if (problem := _missing_marks(module))), None):
            releases.warn_without(UNFOLDED, problem)
            return original(self, *args, **kwargs)
        for i, module in unfolded.items():
            fused = fusion.fuse(module).train(module.training)
            for mark in MARKS:
                setattr(fused, mark, getattr(module, mark))
            self.model[i] = fused
        return original(self, *args, **kwargs)

    return fuse


def is_fused(original: Callable[..., bool]) -> Callable[..., bool]:
    """`BaseModel.is_fused`: whether our modules are folded as well."""

    def is_fused(self: Any, *args: Any, **kwargs: Any) -> bool:
        return fusion.is_fused(self) and original(self, *args, **kwargs)

    return is_fused


def load(original: Callable[..., Any]) -> Callable[..., Any]:
    """`BaseModel.load`: pretrained weights go only into rows that are the same in both models (`transfer.py`)."""

    def load(self: Any, weights: Any, *args: Any, **kwargs: Any) -> Any:
        source = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
        if not isinstance(source, nn.Module) or not (has_ours(self) or has_ours(source)):
            return original(self, weights, *args, **kwargs)
        chosen = transfer.choose(self, source.float())
        for note in chosen.notes:
            warnings.warn(note, stacklevel=3)
        if not chosen.tensors:
            return None
        result = original(self, chosen, *args, **kwargs)
        transfer.take_over_taps(self, source)
        return result

    return load


def get_flops(original: Callable[..., float]) -> Callable[..., float]:
    """`get_flops`: models with modules of ours are counted at their image size.

    Ultralytics counts on a few pixels and extrapolates, which circular convolutions do not follow.
    """

    def get_flops(model: Any, imgsz: Any = 640, *args: Any, **kwargs: Any) -> float:
        if not has_ours(model):
            return original(model, imgsz, *args, **kwargs)
        try:
            height, width = imgsz if isinstance(imgsz, list | tuple) else (imgsz, imgsz)
            shape = (1, next(model.parameters()).shape[1], height, width)
            return cost.count(cost.on_meta(model).eval(), shape).total.flops / 1e9
        except Exception:  # as in Ultralytics' own: a line of the summary must not end a training
            return original(model, imgsz, *args, **kwargs)

    return get_flops


def misfit_of_marks(parse_model: Callable[..., Any]) -> str | None:
    """Why `fuse` cannot move the parser's marks to a folded layer, tried on a model of one layer; None if it can."""
    config = {"nc": 1, "backbone": [[-1, 1, "nn.Identity", []]], "head": []}
    try:
        layer = parse_model(config, 3, verbose=False)[0][0]
    except Exception as error:  # whatever it raises, it is no parser that we know
        return f"parse_model fails on a model of one layer with {error!r}"
    return _missing_marks(layer)


def _missing_marks(layer: nn.Module) -> str | None:
    missing = [mark for mark in MARKS if not hasattr(layer, mark)]
    return f"parse_model writes no {', '.join(map(repr, missing))} on its layers" if missing else None

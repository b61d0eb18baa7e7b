"""Patches for Ultralytics' models that contain our modules: folding, pretrained weights, and counts of operations.

`fuse`, `is_fused`, `load` and `get_flops` each take a function of Ultralytics and return its replacement.
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
"""Attributes that Ultralytics' parser sets on every layer, and that its models read in the forward pass."""

UNFOLDED = "no folding of our layers in model.fuse()"


def has_ours(model: nn.Module) -> bool:
    """Whether the model contains one of our backbones or one of our rows of blocks."""
    return any(isinstance(module, Backbone | BlockRow) for module in model.modules())


def fuse(original: Callable[..., Any]) -> Callable[..., Any]:
    """Replace `BaseModel.fuse`: our modules are folded, too, before Ultralytics folds its own."""

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
    """Replace `BaseModel.is_fused`: true only if our modules are folded, too."""

    def is_fused(self: Any, *args: Any, **kwargs: Any) -> bool:
        return fusion.is_fused(self) and original(self, *args, **kwargs)

    return is_fused


def load(original: Callable[..., Any]) -> Callable[..., Any]:
    """Replace `BaseModel.load`: pretrained weights go only into rows that are the same in both models (`transfer`)."""

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
    """Replace `get_flops`: the operations of models with our modules are counted at their image size.

    Ultralytics counts on a few pixels and extrapolates, which is wrong for circular convolutions.
    """

    def get_flops(model: Any, imgsz: Any = 640, *args: Any, **kwargs: Any) -> float:
        if not has_ours(model):
            return original(model, imgsz, *args, **kwargs)
        try:
            height, width = imgsz if isinstance(imgsz, list | tuple) else (imgsz, imgsz)
            shape = (1, next(model.parameters()).shape[1], height, width)
            return cost.count(model, shape, in_eval_mode=True).total.flops / 1e9
        except Exception:  # as in Ultralytics' own: a line of the summary must not end a training
            return original(model, imgsz, *args, **kwargs)

    return get_flops


def misfit_of_marks(parse_model: Callable[..., Any]) -> str | None:
    """Explain why `fuse` cannot copy the parser's marks to a folded layer, after a try on one layer; None if it can."""
    config = {"nc": 1, "backbone": [[-1, 1, "nn.Identity", []]], "head": []}
    try:
        layer = parse_model(config, 3, verbose=False)[0][0]
    except Exception as error:  # any error means that this is not the parser that we know
        return f"parse_model fails on a model of one layer with {error!r}"
    return _missing_marks(layer)


def _missing_marks(layer: nn.Module) -> str | None:
    missing = [mark for mark in MARKS if not hasattr(layer, mark)]
    return f"parse_model writes no {', '.join(map(repr, missing))} on its layers" if missing else None

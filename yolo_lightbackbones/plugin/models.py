"""Patches for Ultralytics' models that contain our modules: folding, pretrained weights, and counts of operations.

`fuse`, `is_fused`, `load`, `with_channels` and `get_flops` each take a function of Ultralytics and return its
replacement.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from yolo_lightbackbones import fusion, registry
from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.blocks import BlockRow
from yolo_lightbackbones.bounds import is_whole
from yolo_lightbackbones.measure import cost
from yolo_lightbackbones.plugin import quantising, releases, rows, sizes, transfer

MARKS = ("i", "f", "type", "np")
"""Attributes that Ultralytics' parser sets on every layer, and that its models read in the forward pass."""

LOGGER = "ultralytics"
"""Name of the logger of Ultralytics, which shows progress."""

RGB_FIRST = "no models of a YAML with channels other than 3 before they are trained"

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
        if isinstance(weights, transfer.Chosen):
            return original(self, weights, *args, **kwargs)
        source = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
        if not isinstance(source, nn.Module) or not (has_ours(self) or has_ours(source)):
            return original(self, weights, *args, **kwargs)
        quantising.take_form(self, source)
        source = quantising.without_quantisers(source)
        chosen = transfer.choose(self, source.float())
        for note in chosen.notes:
            warnings.warn(note, stacklevel=3)
        if not chosen.tensors:
            return None
        result = original(self, chosen, *args, **kwargs)
        transfer.take_over_taps(self, chosen)
        if chosen.tail.pairs and kwargs.get("verbose", args[0] if args else True):
            logging.getLogger(LOGGER).info(str(transfer.report_tail(self, chosen)))
        return result

    return load


def with_channels(original: Callable[..., None]) -> Callable[..., None]:
    """Replace the constructor of a model: without `ch`, a YAML with rows of ours is built for its own `channels`.

    Ultralytics builds a model for RGB first (`YOLO("my.yaml")`) and for the channels of the data when it trains. Rows
    that take the second half of an image of 6 channels cannot be built for RGB.
    """
    at = list(inspect.signature(original).parameters).index("ch") - 1

    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        config = kwargs.get("cfg", args[0] if args else None)
        if "ch" not in kwargs and len(args) <= at and isinstance(config, dict):
            channels = config.get("channels")
            if is_whole(channels) and rows.names_backbone(config, registry.families()):
                kwargs["ch"] = channels
        original(self, *args, **kwargs)

    return construct


def misfit_of_channels(cls: Any) -> str | None:
    """Explain why a class of models cannot be told the channels of its images; None if it can."""
    names = list(inspect.signature(vars(cls)["__init__"]).parameters) if "__init__" in vars(cls) else []
    return None if names[:2] == ["self", "cfg"] and "ch" in names else f"{cls.__name__} takes no cfg and ch"


def get_flops(original: Callable[..., float]) -> Callable[..., float]:
    """Replace `get_flops`: the operations of models with our modules are counted at their image size.

    Ultralytics counts on a few pixels and extrapolates, which is wrong for circular convolutions. A model that is built
    for one size is counted at that size.
    """

    def get_flops(model: Any, imgsz: Any = 640, *args: Any, **kwargs: Any) -> float:
        if not has_ours(model):
            return original(model, imgsz, *args, **kwargs)
        try:
            height, width = sizes.of(model) or (imgsz if isinstance(imgsz, list | tuple) else (imgsz, imgsz))
            shape = (1, image_channels(model), height, width)
            return cost.count(model, shape, in_eval_mode=True).total.flops / 1e9
        except Exception:  # as in Ultralytics' own: a line of the summary must not end a training
            return original(model, imgsz, *args, **kwargs)

    return get_flops


def image_channels(model: nn.Module) -> int:
    """Channels of the images that a model takes: those in its YAML, where Ultralytics' exports and predictions look.

    The first convolution, where Ultralytics' count of operations looks, need not take the whole image.
    """
    config = getattr(model, "yaml", None)
    written = config.get("channels") if isinstance(config, Mapping) else None
    if is_whole(written) and written > 0:
        return int(written)
    first = next(model.parameters())
    return first.shape[1] if first.ndim == 4 else 3


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

"""Models with a backbone that takes images of one size only, in a framework that changes the size of images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from yolo_lightbackbones.backbone import Backbone


def of(model: nn.Module) -> tuple[int, int] | None:
    """Height and width that a backbone in this model is built for; None if it takes any."""
    return next((m.image_size for m in model.modules() if isinstance(m, Backbone) and m.image_size), None)


def allow_measuring(layers: Iterable[Any]) -> None:
    """Let Ultralytics measure the strides of a new model with a black image of 256 x 256."""
    for layer in layers:
        if isinstance(layer, Backbone) and layer.image_size is not None:
            layer.measures_next = True


def on_training(trainer: Any) -> None:
    """Let the images of a training have the size that its model is built for; Ultralytics' callback on every worker.

    Ultralytics validates on images that are padded as little as possible. They become squares, as in training.

    Raises:
        ValueError: for arguments that give the model images of other sizes.
    """
    size = of(trainer.model)
    if size is None:
        return
    height, width = size
    given, options = trainer.args, ("rect", "multi_scale")
    if height != width:
        raise ValueError(f"This model is built for images of {height} x {width}; Ultralytics trains on squares only.")
    if given.imgsz != height:
        raise ValueError(
            f"imgsz is {given.imgsz}; this model is built for images of {height} x {width}: imgsz={height}."
        )
    if wrong := [name for name in options if getattr(given, name, None)]:
        raise ValueError(
            f"{wrong[0]} is {getattr(given, wrong[0])}; this model is built for images of {height} x {width}, so that "
            f"it must be off."
        )
    loader = getattr(trainer, "test_loader", None)
    if loader is not None and getattr(loader.dataset, "rect", False):
        loader.dataset.rect = False
        loader.reset()  # its workers have copies of the data set

"""The option `pretrained` of backbone rows: weights come in when a model is built from its YAML, and only then.

A model YAML is built twice in a training, once by `YOLO("model.yaml")` and once by the trainer, and each reads the
weights from disk. The YAML inside a checkpoint is built as well, before the weights of the checkpoint go in. So a model
that trains gets `pretrained: false` beside its rows: its weights are in its checkpoints, and are read nowhere else.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.checkpoints import engine
from yolo_lightbackbones.plugin.row import Row, as_list

OPTION = "pretrained"
"""Option of a row; as a key of the whole YAML, `false` overrules it."""


def asked(config: Mapping[str, Any]) -> bool:
    """Whether a row of a model config asks for pretrained weights. Never raises."""
    rows = [row for part in ("backbone", "head") for row in as_list(config.get(part))]
    args = [row[3] for row in rows if isinstance(row, list | tuple) and len(row) == 4 and isinstance(row[3], list)]
    options = [each[1] for each in args if len(each) == 2 and isinstance(each[1], Mapping)]
    return config.get(OPTION) is not False and any(given.get(OPTION) for given in options)


def without(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model config that gets its weights from elsewhere; the rows stay as the user wrote them."""
    return {**config, OPTION: False} if asked(config) else dict(config)


def load(wanted: Mapping[int, tuple[Row, bool | str]], layers: Sequence[Any]) -> None:
    """Load the weights that rows ask for into the layers that Ultralytics' parser has built of them.

    Args:
        wanted: number of a row -> the row, and its option.
        layers: all layers of the model.

    Raises:
        ConfigError: if there are no such weights, or they do not fit.
    """
    for number, (row, value) in wanted.items():
        backbone = layers[number]
        if not isinstance(backbone, Backbone) or any(parameter.is_meta for parameter in backbone.parameters()):
            continue
        try:
            if isinstance(value, str):
                report = engine.load_weights(backbone, Path(value).expanduser())
                importlib.import_module("ultralytics.utils").LOGGER.info(f"{value}: {report}")
            else:
                backbone.load_published()
        except (ValueError, OSError) as error:
            raise row.error(f"pretrained: {error}") from error


def on_training(trainer: Any) -> None:
    """Mark the YAMLs of a training's models, which go into its checkpoints; Ultralytics' callback on every worker."""
    average = getattr(getattr(trainer, "ema", None), "ema", None)
    for model in (getattr(trainer.model, "module", trainer.model), average):
        if model is not None and isinstance(config := getattr(model, "yaml", None), Mapping):
            model.yaml = without(config)

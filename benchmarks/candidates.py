"""Our backbone and its reference, which has the same weights."""

from __future__ import annotations

from typing import Any

import reference
from torch import nn

from yolo_lightbackbones import create_backbone, fuse
from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.checkpoints import engine
from yolo_lightbackbones.testing import randomise

MODELS = {
    "edgevit": ("edgevit_xxs",),
    "parcnet": ("parcnet_xs",),
    "repvit": ("repvit_m0_9", "timm/repvit_m0_9"),
    "conv2former": ("conv2former_n",),
}
"""Family -> variants that are measured for it. With `timm/` in front, the reference is timm's model, folded by timm."""


def resolve(names: list[str]) -> list[str]:
    """The variants of families; names of variants, with or without `timm/`, stay.

    Raises:
        ValueError: for a name that is neither.
    """
    found: list[str] = []
    for name in names:
        family = name.removeprefix("timm/").partition("_")[0]
        if name not in MODELS and (family not in reference.FAMILIES or "_" not in name):
            raise ValueError(
                f"{name!r} is no model to measure. Allowed: a family ({', '.join(MODELS)}), a variant such as "
                "edgevit_xs, or timm/ and a variant of RepViT."
            )
        found += MODELS.get(name, (name,))
    return found


def opponent(model: str) -> str:
    """Name of the model that this one is compared with."""
    return "timm" if model.startswith("timm/") else "reference"


def make(model: str, *, training: bool = False) -> dict[str, nn.Module]:
    """Make `ours` and its opponent with the same random weights: for training as they are, for inference folded.

    The image goes in as it is. Folding is what the authors of the opponent do for inference.
    """
    ours, other = _timm_pair(model) if opponent(model) == "timm" else _reference_pair(model)
    if training:
        return {"ours": ours.train(), opponent(model): other.train()}
    if isinstance(other, reference.Reference):
        return {"ours": fuse(ours), "reference": reference.folded(other)}
    from timm.utils.model import reparameterize_model

    folded: nn.Module = reparameterize_model(other)
    return {"ours": fuse(ours), "timm": folded.requires_grad_(False)}


def _reference_pair(variant: str) -> tuple[Backbone, nn.Module]:
    ours = create_backbone(variant, input_norm="none").eval()
    randomise(ours)
    return ours, reference.twin(ours, variant)


def _timm_pair(name: str) -> tuple[Backbone, nn.Module]:
    """timm's taps are before the last block of a stage; ours move there with the weights."""
    import timm

    variant = name.removeprefix("timm/")
    model: Any = timm.create_model(variant, features_only=True).eval()
    randomise(model)
    ours = create_backbone(variant, input_norm="none").eval()
    state = {key.replace("stages_", "stages."): value for key, value in model.state_dict().items()}
    engine.load_tensors(ours, state, source=name)
    return ours, model

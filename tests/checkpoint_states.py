"""Weights made from names, backbones to load them into, and files of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import published
import torch
from safetensors.torch import save_file
from torch import Tensor

from yolo_lightbackbones import Backbone, create_backbone

GOLDEN = {
    "edgevit": ("edgevit_xxs_96x64", "official"),
    "parcnet": ("parcnet_s_96x96", "official"),
    "repvit": ("repvit_m0_9_96x64", "official"),
    "repvit_timm": ("timm_repvit_m0_9_96x64", "timm"),
    "conv2former": ("conv2former_n_96x64", "official"),
}
"""Published key lists: name of the golden file and of its layout."""


def official_state(family: str) -> dict[str, Tensor]:
    return dict(_cached_state(tuple((k, tuple(v)) for k, v in published.golden(GOLDEN[family][0])["keys"].items())))


def own_state(name: str, **options: Any) -> dict[str, Tensor]:
    """Weights under our names, made from the names alone: what a file of ours may hold."""
    shapes = {key: tuple(value.shape) for key, value in blank(name, **options).state_dict().items()}
    return dict(_cached_state(tuple(shapes.items())))


@functools.cache
def _cached_state(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, Tensor]:
    return published.make_state(dict(shapes))


def blank(name: str, **options: Any) -> Backbone:
    """A backbone full of zeros: quicker to build than one that is initialised."""
    with torch.device("meta"):
        backbone = create_backbone(name, **{"input_norm": "none", **options})
    return backbone.to_empty(device="cpu").apply(zero)


def zero(module: torch.nn.Module) -> None:
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        tensor.data.zero_()


def save(content: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def assert_state(backbone: Backbone, expected: Mapping[str, Tensor]) -> None:
    state = backbone.state_dict()
    assert state.keys() == expected.keys()
    assert [key for key, value in expected.items() if not torch.equal(state[key], value)] == []


def snapshot(backbone: Backbone) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in backbone.state_dict().items()}

"""What is published: checkpoint files as the authors write them, with the golden outputs' weights, and their costs."""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"

COUNTED = {
    "edgevit_xxs": (3_778_128, 5.266),
    "edgevit_xs": (6_384_288, 10.1605),
    "edgevit_s": (12_722_400, 17.3358),
    "parcnet_xs": (1_901_504, 6.8645),
    "parcnet_s": (4_292_408, 10.6368),
    "parcnet_h": (19_026_300, 54.1373),
    "repvit_m0_6": (2_165_652, 3.1455),
    "repvit_m0_9": (4_717_792, 6.6639),
    "repvit_m1_0": (6_403_004, 9.0362),
    "repvit_m1_1": (7_774_864, 10.9218),
    "repvit_m1_5": (13_616_384, 18.5743),
    "repvit_m2_3": (22_404_232, 36.8916),
    "conv2former_n": (13_052_640, 18.7503),
    "conv2former_t": (24_675_084, 35.2906),
    "conv2former_s": (48_010_572, 70.7835),
    "conv2former_b": (87_761_232, 129.3115),
    "conv2former_l": (196_298_176, 293.6488),
}
"""The backbone alone, counted on the published code: parameters, and GMACs at 640 px."""


def golden(name: str) -> dict[str, Any]:
    """Outputs of a published implementation, and the names and shapes of its checkpoint."""
    content: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return content


def make_tensor(key: str, shape: Sequence[int]) -> Tensor:
    """The weight that the recipe of the golden files gives to a key."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    u = np.random.RandomState(zlib.crc32(key.encode())).uniform(-1, 1, size=tuple(shape))
    if key.endswith("running_mean"):
        value = 0.1 * u
    elif key.endswith("running_var"):
        value = 1 + 0.5 * u
    elif len(shape) >= 2:
        value = u * np.sqrt(3 / np.prod(shape[1:]))
    elif key.endswith("bias"):
        value = 0.1 * u
    else:
        value = 0.5 + 0.25 * u
    return torch.from_numpy(value.astype(np.float32))


def make_state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    return {key: make_tensor(key, shape) for key, shape in shapes.items()}


def make_image(shape: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.random.RandomState(0).uniform(0, 1, size=tuple(shape)).astype(np.float32))


def save_checkpoint(state: Mapping[str, Tensor], path: Path, wrapper: str | None) -> Path:
    """Write `state` as a training script would: under `wrapper`, beside an optimizer and its command line."""
    if wrapper is None:
        torch.save(dict(state), path)
    else:
        rest = {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}, "epoch": 299}
        torch.save({wrapper: dict(state), **rest, "args": argparse.Namespace(model="x", lr=1e-3)}, path)
    return path

"""Checkpoint files as the authors publish them, with the deterministic weights of the golden outputs."""

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

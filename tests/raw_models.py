"""Heads and detectors of few layers for tests of raw heads; their weights are random, and their outputs spread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.nn import modules
from ultralytics.nn.modules import head as heads

CHANNELS = (16, 24, 32)
STRIDES = (8, 16, 32)


def awake(module: nn.Module, seed: int = 0) -> Any:
    """Random norms, in their statistics as well, and logits that differ from place to place."""
    torch.manual_seed(seed)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.uniform_(child.weight, 0.5, 1.5)
            nn.init.uniform_(child.bias, -0.3, 0.3)
            nn.init.uniform_(child.running_var, 0.1, 0.5)
            nn.init.uniform_(child.running_mean, -0.2, 0.2)
        if isinstance(child, nn.Conv2d) and child.bias is not None:
            nn.init.normal_(child.weight, std=0.4)
            nn.init.normal_(child.bias)
    return module.eval()


def new_head(name: str, *arguments: Any, branch: str = "one2many") -> Any:
    """A head of Ultralytics as an export has it, and with the branch that it uses."""
    cls = getattr(modules, name, None) or getattr(heads, name)
    head = awake(cls(*arguments, ch=CHANNELS))
    head.stride, head.export = torch.tensor(STRIDES).float(), True
    if getattr(head, "one2one_cv2", None) is not None:
        head.end2end = branch == "one2one"
    return head


def features(batch: int = 2) -> list[Tensor]:
    """Feature maps of an image of 96 x 64 pixels."""
    generator = torch.Generator().manual_seed(1)
    sides = [(96 // stride, 64 // stride) for stride in STRIDES]
    return [torch.randn(batch, c, *side, generator=generator) for c, side in zip(CHANNELS, sides, strict=True)]


def write_checkpoint(path: Path, head: list[Any], *, classes: int, levels: int = 3, **more: Any) -> Path:
    """A detector of few layers, of Ultralytics' modules, with that head on levels from stride 8 on."""
    convolutions = [[-1, 1, "Conv", [8 + 4 * number, 3, 2]] for number in range(2 + levels)]
    rows = [[[*range(2, 2 + levels)], 1, *head]]
    (file := path.with_suffix(".yaml")).write_text(
        yaml.safe_dump({"nc": classes, **more, "backbone": convolutions, "head": rows})
    )
    detector = YOLO(file, task={"Segment": "segment", "Pose": "pose", "OBB": "obb"}.get(head[0], "detect"))
    awake(detector.model)
    detector.save(path)
    return path


def write_ours(path: Path) -> Path:
    """A detector of few layers on a backbone of ours."""
    taps = [[0, 1, "Tap", [tap]] for tap in ("P3", "P4", "P5")]
    rows = [[[1, 2, 3], 1, "Detect", ["nc"]]]
    (file := path.with_suffix(".yaml")).write_text(
        yaml.safe_dump({"nc": 5, "backbone": [[-1, 1, "RepViT", ["m0_9"]], *taps], "head": rows})
    )
    detector = YOLO(file)
    awake(detector.model.model[-1])
    detector.save(path)
    return path


def image(height: int = 96, width: int = 64, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height + width))


def outputs(model: Any, x: Tensor) -> list[Tensor]:
    """The boxes, and the prototypes if there are any, of a detector of Ultralytics in eval mode or of a file."""
    with torch.no_grad():
        out = model(x)
    if isinstance(out, list):  # of a file
        return out
    out = out[0] if isinstance(out, tuple) else out
    return [*out] if isinstance(out, tuple) else [out]

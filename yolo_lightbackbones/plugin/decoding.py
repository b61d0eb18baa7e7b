"""Decodes the raw maps of a detection head into what Ultralytics' heads return.

The arithmetic is that of Ultralytics' heads (Detect, Segment, Pose, OBB and those of YOLO26). An export compares both
before it writes anything (`raw_heads.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EXTRAS = ("", "masks", "keypoints", "keypoints26", "angle", "angle26")
"""Kinds of a level's third map: none; mask coefficients; keypoints of Pose or Pose26; the angle of OBB or OBB26."""


@dataclass(frozen=True)
class Layout:
    """Which raw maps a head has, and how they are decoded.

    Args:
        strides: pixels of the image per cell of each level's maps, from the finest level to the coarsest.
        reg_max: bins per side of a box; with 1, the map holds the distances themselves.
        classes: number of classes.
        extra: one of `EXTRAS`.
        keypoints: number of keypoints, and of values per keypoint (2 or 3); (0, 0) if there are none.
        end2end: whether the maps belong to a one-to-one branch, whose best boxes need no NMS.
        max_det: most boxes per image that an `end2end` head returns.
    """

    strides: tuple[int, ...]
    reg_max: int
    classes: int
    extra: str = ""
    keypoints: tuple[int, int] = (0, 0)
    end2end: bool = False
    max_det: int = 300

    @property
    def names(self) -> list[str]:
        """Names of the maps in their order: `box_8`, `class_8`, `extra_8`, `box_16`, ..., `prototypes`."""
        kinds = ("box", "class", "extra") if self.extra else ("box", "class")
        names = [f"{kind}_{stride}" for stride in self.strides for kind in kinds]
        return [*names, "prototypes"] if self.extra == "masks" else names

    def problem(self, maps: Sequence[Tensor]) -> str | None:
        """Say which of the maps cannot be the one that its position stands for; None if all can.

        Args:
            maps: tensors in the order of `names`; for prototypes and mask coefficients only equal channels are asked.
        """
        if len(maps) != len(self.names):
            return f"it gives {len(maps)} outputs instead of {len(self.names)} ({', '.join(self.names)})"
        sides: set[tuple[int, ...]] = set()
        coefficients = {
            value.shape[1] for name, value in zip(self.names, maps, strict=True) if self._is_mask(name, value)
        }
        for name, value in zip(self.names, maps, strict=True):
            kind, _, stride = name.partition("_")
            channels = {"box": 4 * self.reg_max, "class": self.classes, "extra": self._extra_channels}.get(kind)
            wanted = coefficients if channels is None else {channels}
            if value.ndim != 4 or value.shape[1] not in wanted or len(wanted) > 1:
                return f"its output {name} has the shape {tuple(value.shape)}"
            if stride:
                sides.add(tuple(side * int(stride) for side in value.shape[2:]))
        return None if len(sides) == 1 else "its maps belong to images of different sizes"

    @property
    def _extra_channels(self) -> int | None:
        if self.extra.startswith("keypoints"):
            return math.prod(self.keypoints)
        return 1 if self.extra.startswith("angle") else None

    def _is_mask(self, name: str, value: Tensor) -> bool:
        return self.extra == "masks" and name.startswith(("extra", "prototypes")) and value.ndim == 4


def decode(maps: Sequence[Tensor], layout: Layout) -> list[Tensor]:
    """Turn the raw maps of a head into the output of Ultralytics' head.

    Args:
        maps: tensors (B, C, h, w) in the order of `layout.names`.
        layout: what the maps are.

    Returns:
        The boxes, and the prototypes if the head has any. Boxes are (B, 4 + classes + further, N), x, y, w, h in
        pixels of the image; of an `end2end` head (B, max_det, 6 + further), x1, y1, x2, y2, score, class, for OBB with
        x, y, w, h.
    """
    kinds = 3 if layout.extra else 2
    count = kinds * len(layout.strides)
    levels = [maps[start : start + kinds] for start in range(0, count, kinds)]
    box, scores, *rest = (torch.cat([level[kind].flatten(2) for level in levels], 2) for kind in range(kinds))
    points, strides = _grid([level[0] for level in levels], layout.strides)
    further = list(_further(rest, points, strides, layout))
    turned = further[0] if layout.extra.startswith("angle") else None
    bins = torch.arange(layout.reg_max, dtype=box.dtype, device=box.device)
    distances = box if layout.reg_max == 1 else expected_distances(box, bins)
    boxes = _boxes(distances, points, turned, corners=layout.end2end and turned is None) * strides
    decoded = torch.cat([boxes, scores.sigmoid(), *further], 1)
    return [_best(decoded, layout) if layout.end2end else decoded, *maps[count:]]


def expected_distances(logits: Tensor, bins: Tensor) -> Tensor:
    """Compute the expected bin number per side of a box as a sum; detection heads use a convolution instead.

    Quantisers give convolutions 8-bit weights, which changes the bin numbers 0 to 15 by up to 0.06: for EdgeViT on the
    digits, mAP50-95 fell by 0.038 in ONNX Runtime with the convolution and by 0.003 without.

    Args:
        logits: (B, 4 * bins, N), the bins of one side next to each other.
        bins: (bins,), the number of each bin.

    Returns:
        (B, 4, N)
    """
    batch, _, places = logits.shape
    shares = logits.view(batch, 4, bins.shape[0], places).softmax(2)
    return (shares * bins.view(1, 1, -1, 1)).sum(2)


def _grid(maps: Sequence[Tensor], strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Centres of all cells, (2, N), x and y in cells of their level, and the strides of their levels, (1, N)."""
    points, scales = [], []
    for level, stride in zip(maps, strides, strict=True):
        rows, columns = (torch.arange(side, dtype=level.dtype, device=level.device) + 0.5 for side in level.shape[2:])
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        points.append(torch.stack([x.flatten(), y.flatten()]))
        scales.append(torch.full_like(points[-1][:1], stride))
    return torch.cat(points, 1), torch.cat(scales, 1)


def _further(maps: Sequence[Tensor], points: Tensor, strides: Tensor, layout: Layout) -> Iterator[Tensor]:
    """Decode the third maps, (B, C, N); there are none in a head for boxes."""
    for logits in maps:
        if layout.extra == "angle":
            yield (logits.sigmoid() - 0.25) * math.pi
        elif layout.extra.startswith("keypoints"):
            values = logits.view(logits.shape[0], *layout.keypoints, -1)
            places = values[:, :, :2] + points if layout.extra == "keypoints26" else values[:, :, :2] * 2 + points - 0.5
            yield torch.cat([places * strides, values[:, :, 2:].sigmoid()], 2).flatten(1, 2)
        else:
            yield logits


def _boxes(distances: Tensor, points: Tensor, angle: Tensor | None, *, corners: bool) -> Tensor:
    """Boxes, (B, 4, N), in cells, of the distances of their sides from the points: x1, y1, x2, y2 or x, y, w, h."""
    before, after = distances.chunk(2, 1)
    if corners:
        return torch.cat([points - before, points + after], 1)
    off = (after - before) / 2
    if angle is not None:
        (x, y), cos, sin = off.chunk(2, 1), angle.cos(), angle.sin()
        off = torch.cat([x * cos - y * sin, x * sin + y * cos], 1)
    return torch.cat([points + off, before + after], 1)


def _best(decoded: Tensor, layout: Layout) -> Tensor:
    """Of (B, 4 + classes + further, N) the pairs of box and class with the highest scores, one row each."""
    boxes, scores, further = decoded.mT.tensor_split([4, 4 + layout.classes], 2)
    best, index = scores.flatten(1).topk(min(layout.max_det, scores.shape[1]), 1)
    row = (index // layout.classes)[..., None]

    def picked(values: Tensor) -> Tensor:
        return values.gather(1, row.expand(-1, -1, values.shape[2]))

    return torch.cat([picked(boxes), best[..., None], (index % layout.classes)[..., None], picked(further)], 2)

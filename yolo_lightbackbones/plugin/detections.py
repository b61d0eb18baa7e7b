"""Reads the outputs of detectors, and says how far those of an exported file are from PyTorch's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

TASKS = ("detect", "segment", "pose", "obb")
"""Tasks whose outputs are boxes with scores."""

_SAME_OBJECT = 0.5  # IoU
_SAME_PLACE = 1e-3  # pixels


@dataclass(frozen=True)
class Head:
    """What must be known of a model's head to read its outputs.

    Args:
        task: one of `TASKS`.
        classes: number of classes.
        size: height and width of the image, in pixels.
        points: number of keypoints, and values per keypoint, 2 or 3; for `pose`.
        normalised: whether boxes are cx, cy, w, h as fractions of the image, as RT-DETR has them.
    """

    task: str
    classes: int
    size: tuple[int, int]
    points: tuple[int, int] = (0, 0)
    normalised: bool = False


@dataclass(frozen=True)
class Detections:
    """The boxes that a model gives for one image, before non-maximum suppression.

    Args:
        boxes: (N, 4), x1, y1, x2, y2 in pixels; of rotated boxes, before they are rotated.
        scores: (N, classes), 0..1.
        by_place: whether box n belongs to the same place of the image in every output.
        angles: (N, 1), radians; for `obb`.
        points: (N, K, 2), pixels; for `pose`.
        visibilities: (N, K), 0..1; for `pose` with three values per keypoint.
        coefficients: (N, P); for `segment`.
        prototypes: (P, h, w); for `segment`.
    """

    boxes: Tensor
    scores: Tensor
    by_place: bool
    angles: Tensor | None = None
    points: Tensor | None = None
    visibilities: Tensor | None = None
    coefficients: Tensor | None = None
    prototypes: Tensor | None = None

    def at(self, indices: Tensor) -> Detections:
        """The detections with these numbers."""
        names = ("boxes", "scores", "angles", "points", "visibilities", "coefficients")
        rows = {name: getattr(self, name)[indices] for name in names if getattr(self, name) is not None}
        return replace(self, **rows)

    def visible(self, floor: float) -> Tensor:
        """Numbers of the boxes with a score above `floor`."""
        return (self.scores.amax(1) > floor).nonzero()[:, 0]


@dataclass(frozen=True)
class Difference:
    """How far two outputs are apart, at worst.

    Args:
        compared: number of boxes that were compared.
        box_px: largest difference of a coordinate of a box, or of a keypoint, in pixels of the letterboxed image.
        score: largest difference of a class score.
        overlap: smallest overlap of a box with its counterpart, 0..1: the IoU of the boxes or of the masks, or 1 minus
            the distance of two keypoints as a fraction of the box's diagonal, whichever is smaller.
    """

    compared: int = 0
    box_px: float = 0.0
    score: float = 0.0
    overlap: float = 1.0

    def and_(self, other: Difference) -> Difference:
        """The worse of both, in each respect."""
        return Difference(
            self.compared + other.compared,
            max(self.box_px, other.box_px),
            max(self.score, other.score),
            min(self.overlap, other.overlap),
        )


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)
    elif not isinstance(output, dict):
        yield torch.as_tensor(output).float()


def _further(output: Any, head: Head) -> int:
    """Number of values per box after the scores."""
    if head.task == "segment":
        maps = next((tensor for tensor in _tensors(output) if tensor.ndim == 4), None)
        return 0 if maps is None else int(maps.shape[1])
    if head.task == "pose":
        return head.points[0] * head.points[1]
    return int(head.task == "obb")


def read(output: Any, head: Head) -> Detections:
    """Read the output for one image of a model of Ultralytics, or of a file that it has exported.

    Raises:
        ValueError: if the output does not have the shape that this head gives, or has values that are not finite.
    """
    tensors = list(_tensors(output))
    first, further = tensors[0], _further(output, head)
    if not all(bool(tensor.isfinite().all()) for tensor in tensors[:2]):
        raise ValueError("the output has values that are not finite")
    if first.ndim != 3 or first.shape[0] != 1:
        raise ValueError(f"the output has the shape {tuple(first.shape)}; a batch of one image gives (1, ..., ...)")
    values = first[0]
    if values.shape[0] == 4 + head.classes + further:
        values = values.T
        boxes, by_place = _corners(values[:, :4]), True
        scores, rest = values[:, 4 : 4 + head.classes], values[:, 4 + head.classes :]
    elif head.normalised and values.shape[1] == 4 + head.classes and not _is_listed(values):
        boxes, scores, rest, by_place = _corners(values[:, :4]), values[:, 4:], values[:, :0], False
    elif values.shape[1] == 6 + further:
        scores = values.new_zeros(len(values), head.classes)
        classes = values[:, 5:6].long()
        if not bool(((classes >= 0) & (classes < head.classes)).all()):
            raise ValueError(f"the output has numbers of classes beyond the model's {head.classes}")
        scores.scatter_(1, classes, values[:, 4:5])
        boxes, rest, by_place = values[:, :4], values[:, 6:], False
        if head.normalised or head.task == "obb":
            boxes = _corners(boxes)
    else:
        raise ValueError(
            f"the output has the shape {tuple(first.shape)}, which is not that of a {head.task} head with "
            f"{head.classes} classes"
        )
    if head.normalised:
        boxes = boxes * boxes.new_tensor([*reversed(head.size)] * 2)
    found = Detections(boxes, scores, by_place)
    if head.task == "obb":
        return replace(found, angles=rest)
    if head.task == "pose":
        points = rest.reshape(-1, *head.points)
        seen = points[..., 2] if head.points[1] == 3 else None
        return replace(found, points=points[..., :2], visibilities=seen)
    if head.task == "segment":
        prototypes = next(tensor for tensor in tensors if tensor.ndim == 4)[0]
        return replace(found, coefficients=rest, prototypes=prototypes)
    return found


def _is_listed(values: Tensor) -> bool:
    """Whether six values per box are box, score and class, also if the model has two classes."""
    return values.shape[1] == 6 and bool((values[:, 5] == values[:, 5].round()).all())


def _corners(boxes: Tensor) -> Tensor:
    centre, half = boxes[:, :2], boxes[:, 2:4] / 2
    return torch.cat((centre - half, centre + half), 1)


# --- comparing --------------------------------------------------------------------------------------------------------


def difference(seen: Detections, expected: Detections, floor: float) -> Difference:
    """Compare all boxes whose score is above `floor` in either output.

    Boxes are compared place by place. Where the outputs are lists of the best boxes, whose order depends on the last
    digit, each is compared with the box of its class that it overlaps most; one that overlaps none by half counts as a
    difference of its whole score.
    """
    if seen.by_place and expected.by_place and len(seen.boxes) == len(expected.boxes):
        visible = torch.unique(torch.cat((seen.visible(floor), expected.visible(floor))))
        return _of_pairs(seen.at(visible), expected.at(visible))
    return _of_lists(seen, expected, floor).and_(replace(_of_lists(expected, seen, floor), compared=0))


def _of_pairs(seen: Detections, expected: Detections) -> Difference:
    if not len(seen.boxes):
        return Difference()
    corners = [part for part in (_rotated(seen), _rotated(expected)) if part is not None]
    if corners:
        moved = (corners[0] - corners[1]).abs().flatten(1).amax(1)
    else:
        moved = (seen.boxes - expected.boxes).abs().amax(1)
    score = (seen.scores - expected.scores).abs().amax(1)
    overlap = torch.where(moved < _SAME_PLACE, torch.ones_like(moved), _iou(seen, expected))
    if seen.points is not None and expected.points is not None:
        distance = (seen.points - expected.points).norm(dim=2).amax(1)
        diagonal = (expected.boxes[:, 2:] - expected.boxes[:, :2]).norm(dim=1).clamp(min=1)
        overlap = torch.minimum(overlap, 1 - distance / diagonal)
        moved = torch.maximum(moved, (seen.points - expected.points).abs().flatten(1).amax(1))
    if seen.visibilities is not None and expected.visibilities is not None:
        score = torch.maximum(score, (seen.visibilities - expected.visibilities).abs().amax(1))
    if seen.coefficients is not None:
        overlap = torch.minimum(overlap, _mask_overlap(seen, expected))
    return Difference(len(seen.boxes), float(moved.max()), float(score.max()), max(float(overlap.min()), 0.0))


def _iou(seen: Detections, expected: Detections) -> Tensor:
    """IoU of each box with its counterpart, (N,)."""
    from ultralytics.utils.metrics import bbox_iou, probiou

    if seen.angles is None or expected.angles is None:
        iou: Tensor = bbox_iou(seen.boxes, expected.boxes, xywh=False)
        return iou.flatten()
    iou = probiou(_xywhr(seen), _xywhr(expected))
    return iou.flatten()


def _xywhr(found: Detections) -> Tensor:
    assert found.angles is not None
    low, high = found.boxes[:, :2], found.boxes[:, 2:]
    return torch.cat(((low + high) / 2, high - low, found.angles), 1)


def _rotated(found: Detections) -> Tensor | None:
    """Corners of rotated boxes, (N, 4, 2); None for boxes that are not rotated."""
    if found.angles is None:
        return None
    from ultralytics.utils.ops import xywhr2xyxyxyxy

    corners: Tensor = xywhr2xyxyxyxy(_xywhr(found))
    return corners


def _mask_overlap(seen: Detections, expected: Detections) -> Tensor:
    """Soft IoU of each mask with its counterpart, (N,)."""
    overlaps = []
    for number in range(len(seen.boxes)):
        one, other = (_mask(found, number) for found in (seen, expected))
        together = torch.maximum(one, other).sum()
        overlaps.append(torch.minimum(one, other).sum() / together if together > 0 else together.new_ones(()))
    return torch.stack(overlaps)


def _mask(found: Detections, number: int) -> Tensor:
    """Probabilities of the pixels of one mask, (h * w,), at the resolution of the prototypes."""
    assert found.coefficients is not None
    assert found.prototypes is not None
    return (found.coefficients[number] @ found.prototypes.flatten(1)).sigmoid()


def _of_lists(some: Detections, others: Detections, floor: float) -> Difference:
    from ultralytics.utils.metrics import box_iou

    some = some.at(some.visible(floor))
    lost = 0.0
    pairs: list[tuple[int, int]] = []
    overlaps = box_iou(some.boxes, others.boxes)
    classes, lowest = others.scores.argmax(1), float(others.scores.amax(1).min()) if len(others.scores) else 0.0
    for number, scores in enumerate(some.scores):
        overlap = torch.where(classes == scores.argmax(), overlaps[number], overlaps.new_zeros(()))
        best = int(overlap.argmax()) if len(overlap) else -1
        if best >= 0 and float(overlap[best]) >= _SAME_OBJECT:
            pairs.append((number, best))
        else:  # a list ends with its lowest score, so a box with less may be missing
            lost = max(lost, float(scores.max()) - lowest)
    mine, theirs = (torch.tensor([pair[side] for pair in pairs], dtype=torch.long) for side in (0, 1))
    found = _of_pairs(some.at(mine), others.at(theirs))
    worst = max(found.score, lost)
    return replace(found, compared=len(some.boxes), score=0.0 if math.isnan(worst) else worst)

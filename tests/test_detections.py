"""Outputs of detectors, read as boxes, and the differences between two of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from ultralytics import YOLO

from yolo_lightbackbones.plugin import detections
from yolo_lightbackbones.plugin.detections import Detections, Difference, Head

DETECT = Head("detect", 2, (64, 96))


def row(box: list[float], *values: float) -> list[float]:
    return [*box, *values]


def by_place(*rows: list[float]) -> Tensor:
    """(1, values, N), as anchor-based heads give."""
    return torch.tensor(rows).T[None]


def compare(seen: Tensor, expected: Tensor, head: Head = DETECT, floor: float = 0.1) -> Difference:
    return detections.difference(detections.read(seen, head), detections.read(expected, head), floor)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_boxes_by_place() -> None:
    found = detections.read([by_place(row([10, 20, 4, 8], 0.3, 0.6), row([0, 0, 2, 2], 0, 0))], DETECT)
    torch.testing.assert_close(found.boxes, torch.tensor([[8.0, 16, 12, 24], [-1, -1, 1, 1]]))
    torch.testing.assert_close(found.scores, torch.tensor([[0.3, 0.6], [0, 0]]))
    assert found.by_place
    assert found.visible(0.5).tolist() == [0]


def test_lists_of_the_best_boxes() -> None:
    found = detections.read(torch.tensor([[row([8, 16, 12, 24], 0.6, 1), row([0, 0, 2, 2], 0.3, 0)]]), DETECT)
    torch.testing.assert_close(found.boxes, torch.tensor([[8.0, 16, 12, 24], [0, 0, 2, 2]]))
    torch.testing.assert_close(found.scores, torch.tensor([[0, 0.6], [0.3, 0]]))
    assert not found.by_place


@pytest.mark.parametrize("values", [(0.3, 0.6), (0.6, 1.0)], ids=["scores", "score and class"])
def test_fractions_of_the_image(values: tuple[float, float]) -> None:
    head = Head("detect", 2, (64, 96), normalised=True)
    rows = torch.tensor([[row([0.5, 0.5, 0.25, 0.5], *values)] * 3])
    found = detections.read(rows, head)
    torch.testing.assert_close(found.boxes[0], torch.tensor([36.0, 16, 60, 48]))
    torch.testing.assert_close(found.scores[0].amax(), torch.tensor(0.6))
    assert int(found.scores[0].argmax()) == 1


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(1, 5, 9), r"shape \(1, 5, 9\), which is not that of a detect head with 2 classes"),
        (torch.zeros(2, 6, 9), r"shape \(2, 6, 9\); a batch of one"),
        (torch.zeros(6, 9), r"shape \(6, 9\)"),
        (torch.full((1, 6, 9), math.inf), "not finite"),
        (torch.tensor([[row([0, 0, 1, 1], 0.5, 7)]]), "numbers of classes beyond the model's 2"),
    ],
)
def test_other_outputs_are_refused(output: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detections.read(output, DETECT)


@pytest.mark.parametrize(
    "name", ["yolo11n.yaml", "yolo11n-seg.yaml", "yolo11n-pose.yaml", "yolo11n-obb.yaml", "yolov10n.yaml"]
)
@pytest.mark.usefixtures("one_thread")
def test_heads_of_ultralytics(name: str) -> None:
    net = YOLO(name).model.eval()
    head = net.model[-1]
    task = net.task if hasattr(net, "task") else "detect"
    shape = tuple(getattr(head, "kpt_shape", (0, 0)))
    with torch.inference_mode():
        found = detections.read(net(torch.rand(1, 3, 64, 96)), Head(task, head.nc, (64, 96), (shape[0], shape[1])))
    count = len(found.boxes)
    assert count == 126 if found.by_place else count <= 300
    assert found.scores.shape == (count, head.nc)
    assert (found.angles is not None) == name.endswith("obb.yaml")
    assert (found.points is not None) == name.endswith("pose.yaml")
    assert (found.prototypes is not None) == name.endswith("seg.yaml")
    assert detections.difference(found, found, -1.0) == Difference(count, 0.0, 0.0, 1.0)


# --- comparing --------------------------------------------------------------------------------------------------------


def test_differences_by_place() -> None:
    expected = by_place(row([10, 20, 4, 8], 0.3, 0.6), row([50, 50, 10, 10], 0.05, 0.05), row([5, 5, 2, 2], 0.2, 0))
    seen = by_place(row([11, 20, 4, 8], 0.3, 0.5), row([90, 50, 10, 10], 0.05, 0.05), row([5, 5, 2, 2], 0.05, 0))
    found = compare(seen, expected)
    assert found.compared == 2, "the last box is visible in one output only; the second in none"
    assert found.box_px == pytest.approx(1)
    assert found.score == pytest.approx(0.15)
    assert found.overlap == pytest.approx(24 / 40, abs=1e-4)  # 3 x 8 of 5 x 8 pixels
    assert compare(seen, expected, floor=-1.0).box_px == pytest.approx(40)


def test_lists_in_another_order() -> None:
    first, second, third = row([0, 0, 10, 10], 0.9, 0), row([0, 0, 10, 10], 0.8, 1), row([40, 40, 60, 60], 0.7, 1)
    moved = row([40, 40, 60, 61], 0.65, 1)
    found = compare(torch.tensor([[second, first, moved]]), torch.tensor([[first, second, third]]))
    assert found.compared == 3
    assert found.box_px == pytest.approx(1)
    assert found.score == pytest.approx(0.05)
    assert found.overlap == pytest.approx(20 / 21, abs=1e-4)


@pytest.mark.parametrize("other", [[0, 0, 10, 10], [100, 100, 110, 110]])
def test_a_box_without_a_counterpart_counts_with_its_score(other: list[float]) -> None:
    """Of another class, or elsewhere; less the score with which a list ends, since a box below it is left out."""
    last = row([70, 70, 80, 80], 0.2, 0)
    expected = torch.tensor([[row([0, 0, 10, 10], 0.9, 0), last]])
    seen = torch.tensor([[row(other, 0.9, int(other[0] == 0)), last]])
    for found in (compare(seen, expected), compare(expected, seen)):
        assert found.score == pytest.approx(0.7)
    assert compare(expected[:, :1], expected).score == 0
    assert compare(torch.zeros(1, 1, 6), expected).score == pytest.approx(0.9)


def test_rotated_boxes() -> None:
    head = Head("obb", 1, (64, 64))
    expected, seen = (
        by_place(row([30, 30, 20, 10], 0.9, angle), row([0, 0, 2, 2], 0, 0)) for angle in (0, math.pi / 2)
    )
    found = compare(seen, expected, head)
    assert found.box_px == pytest.approx(15)  # the corner (20, 10) / 2 is now at (-10, 20) / 2
    assert found.overlap < 0.7
    assert compare(seen, seen, head).overlap == 1


def test_keypoints() -> None:
    head = Head("pose", 1, (64, 64), points=(2, 3))
    box = [30.0, 30, 30, 40]  # a diagonal of 50
    expected, seen = (by_place(row(box, 0.9, 20, 20, 1, x, 34, 0.5), row(box, *[0.0] * 7)) for x in (25, 30))
    found = compare(seen, expected, head)
    assert (found.box_px, found.overlap) == (pytest.approx(5), pytest.approx(0.9))
    unseen = by_place(row(box, 0.9, 20, 20, 0.75, 25, 34, 0.5), row(box, *[0.0] * 7))
    assert compare(unseen, expected, head).score == pytest.approx(0.25)


def test_masks() -> None:
    head = Head("segment", 1, (8, 8))
    prototypes = torch.full((1, 2, 2, 2), -50.0)
    prototypes[0, 0, 0] = prototypes[0, 1, :, 0] = 50  # the upper half; the left half
    expected, seen = (
        (by_place(row([4, 4, 8, 8], 0.9, *which), row([4, 4, 8, 8], 0, 0, 0)), prototypes) for which in ((1, 0), (0, 1))
    )
    found = detections.difference(detections.read(seen, head), detections.read(expected, head), 0.1)
    assert found.overlap == pytest.approx(1 / 3)
    assert found.box_px == 0


def test_the_worst_of_two() -> None:
    assert Difference(2, 1.0, 0.1, 0.9).and_(Difference(3, 0.5, 0.2, 0.8)) == Difference(5, 1.0, 0.2, 0.8)


def test_nothing_visible() -> None:
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0, 2), by_place=True)
    assert detections.difference(nothing, nothing, 0.1) == Difference()

"""The twelve numbers of the COCO detection challenge, by pycocotools itself."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from yolo_lightbackbones.coco.files import Tally
from yolo_lightbackbones.coco.ground_truth import GroundTruth
from yolo_lightbackbones.coco.masks import is_rle
from yolo_lightbackbones.coco.predictions import REGIONS, IouType, Prediction
from yolo_lightbackbones.messages import quoted


class Metric(NamedTuple):
    """One of the twelve numbers: its name, and the IoU thresholds, object areas and boxes per image that it covers."""

    name: str
    kind: str
    iou: str
    area: str
    max_detections: int


METRICS = (
    Metric("AP", "average precision", "0.50:0.95", "all", 100),
    Metric("AP50", "average precision", "0.50", "all", 100),
    Metric("AP75", "average precision", "0.75", "all", 100),
    Metric("APs", "average precision", "0.50:0.95", "small", 100),
    Metric("APm", "average precision", "0.50:0.95", "medium", 100),
    Metric("APl", "average precision", "0.50:0.95", "large", 100),
    Metric("AR1", "average recall", "0.50:0.95", "all", 1),
    Metric("AR10", "average recall", "0.50:0.95", "all", 10),
    Metric("AR100", "average recall", "0.50:0.95", "all", 100),
    Metric("ARs", "average recall", "0.50:0.95", "small", 100),
    Metric("ARm", "average recall", "0.50:0.95", "medium", 100),
    Metric("ARl", "average recall", "0.50:0.95", "large", 100),
)
"""The twelve numbers, in the order of pycocotools' `stats`."""

NOT_THERE = -1.0
"""What pycocotools gives for a number if there is no ground truth."""


@dataclass(frozen=True)
class ClassScore:
    """Average precision of one category; `NOT_THERE` if it has no objects."""

    name: str
    objects: int  # without crowd regions, as in every number
    AP: float
    AP50: float
    AP75: float


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation."""

    metrics: dict[str, float]  # by the names of METRICS; NOT_THERE if there is no ground truth
    classes: list[ClassScore]  # one per category
    recalls: NDArray[np.float64]  # (101,), 0 to 1
    curves: dict[str, NDArray[np.float64]]  # IoU threshold -> precision (101,), the mean over classes with objects
    images: int  # evaluated
    images_without_predictions: int
    objects: int
    crowds: int
    predictions: int


def evaluate(
    truth: GroundTruth,
    predictions: Sequence[Prediction],
    *,
    images: Collection[int] | None = None,
    iou_type: IouType = "bbox",
) -> Evaluation:
    """Evaluate predictions on `images`, or on all images of the annotations; their ids must be the annotations'.

    An image without annotations counts: predictions on it are false positives. An image without predictions counts:
    its objects were missed.

    Raises:
        ValueError: if masks have another size than their image, or do not cover it.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    chosen = sorted(truth.images if images is None else images)
    inside = set(chosen)
    evaluated = [p for p in predictions if p["image_id"] in inside]
    if iou_type == "segm":
        _check_masks(truth, evaluated)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a line per step
        reference = COCO()
        reference.dataset = {
            "info": {},  # pycocotools 2.0.9 and 2.0.10 copy it
            "images": list(truth.images.values()),
            "categories": [{"id": number, "name": name} for number, name in truth.categories.items()],
            # Numbered anew: pycocotools reads the id 0 as "matched nothing", and of two equal ids it keeps only one.
            "annotations": [{**annotation, "id": i} for i, annotation in enumerate(truth.annotations, 1)],
        }
        reference.createIndex()
        results = _results(reference, evaluated, iou_type) if evaluated else _none(reference)
        evaluator = COCOeval(reference, results, iou_type)
        evaluator.params.imgIds = chosen
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    precision = evaluator.eval["precision"][:, :, :, 0, -1]  # (IoU threshold, recall, class); all areas, most boxes
    annotations = [a for a in truth.annotations if a["image_id"] in inside]
    crowds = sum(bool(a["iscrowd"]) for a in annotations)
    return Evaluation(
        metrics=dict(zip((metric.name for metric in METRICS), map(float, evaluator.stats), strict=True)),
        classes=_class_scores(truth, annotations, evaluator.params.catIds, precision),
        recalls=np.asarray(evaluator.params.recThrs, np.float64),
        curves={
            "0.50": _mean_over_classes(precision[:1]),
            "0.75": _mean_over_classes(precision[5:6]),
            "0.50:0.95": _mean_over_classes(precision),
        },
        images=len(chosen),
        images_without_predictions=len(inside - {p["image_id"] for p in evaluated}),
        objects=len(annotations) - crowds,
        crowds=crowds,
        predictions=len(evaluated),
    )


def _results(reference: Any, predictions: list[Prediction], iou_type: IouType) -> Any:
    """Convert the predictions to pycocotools' form.

    Only the compared region is passed on: if a mask comes with a box, pycocotools would take its area from the box.
    """
    keys = ("image_id", "category_id", "score", REGIONS[iou_type])
    return reference.loadRes([{key: prediction[key] for key in keys} for prediction in predictions])


def _none(reference: Any) -> Any:
    """Results without any prediction, which `loadRes` cannot make."""
    from pycocotools.coco import COCO

    empty = COCO()
    empty.dataset = {**reference.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _check_masks(truth: GroundTruth, predictions: list[Prediction]) -> None:
    wrong, broken = Tally(), Tally()
    for prediction in predictions:
        image, mask = truth.images[prediction["image_id"]], prediction["segmentation"]
        size = [image["height"], image["width"]]
        if mask["size"] != size:
            wrong.add(f"image {prediction['image_id']}: {quoted(mask['size'])}, not {size}")
        elif not is_rle(mask, *size):
            broken.add(f"image {prediction['image_id']}: {quoted(mask['counts'], 20)}")
    if wrong.count:
        raise ValueError(f"{wrong.count} masks are not of their image's size [height, width]: {wrong}")
    if broken.count:
        raise ValueError(f"{broken.count} masks have counts that are no run lengths covering their image: {broken}")


def _mean(values: NDArray[np.float64]) -> float:
    there = values[values > NOT_THERE]
    return float(there.mean()) if there.size else NOT_THERE


def _mean_over_classes(precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """(thresholds, 101, classes) -> (101,); classes without objects hold NOT_THERE and are left out."""
    there = precision[:, :, (precision > NOT_THERE).any(axis=(0, 1))]
    if not there.size:
        return np.full(precision.shape[1], NOT_THERE)
    mean: NDArray[np.float64] = there.mean(axis=(0, 2))
    return mean


def _unique(categories: Mapping[int, str]) -> dict[int, str]:
    """Names by id; categories with the same name get their id in brackets."""
    times = Counter(categories.values())
    names = {number: f"{name} ({number})" if times[name] > 1 else name for number, name in categories.items()}
    if len(set(names.values())) < len(names):  # one is named like another with its id
        return {number: f"{name} ({number})" for number, name in categories.items()}
    return names


def _class_scores(
    truth: GroundTruth, annotations: list[dict[str, Any]], order: Sequence[int], precision: NDArray[np.float64]
) -> list[ClassScore]:
    objects = dict.fromkeys(truth.categories, 0)
    for annotation in annotations:
        objects[annotation["category_id"]] += not annotation["iscrowd"]
    names = _unique(truth.categories)
    return [
        ClassScore(
            name=names[number],
            objects=objects[number],
            AP=_mean(precision[:, :, k]),
            AP50=_mean(precision[0, :, k]),
            AP75=_mean(precision[5, :, k]),
        )
        for k, number in enumerate(map(int, order))
    ]

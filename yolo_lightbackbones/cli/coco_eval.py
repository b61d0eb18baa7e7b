"""`lightbackbones coco-eval`: the official COCO numbers of a predictions file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from yolo_lightbackbones.cli.common import (
    UserError,
    check_picture,
    errors_for_users,
    messages,
    printable_lines,
)
from yolo_lightbackbones.messages import flow

if TYPE_CHECKING:  # it imports numpy, which `lightbackbones --help` does without
    from yolo_lightbackbones.coco.evaluation import Evaluation
    from yolo_lightbackbones.coco.ground_truth import GroundTruth
    from yolo_lightbackbones.coco.predictions import Matched


class CategoryMap(str, Enum):
    """How the category ids of the predictions become COCO's, which run from 1 to 90 with gaps."""

    COCO80 = "coco80"
    COCO80_FROM_1 = "coco80-from-1"


class IouKind(str, Enum):
    """What to compare by intersection over union: boxes or masks."""

    BBOX = "bbox"
    SEGM = "segm"


def coco_eval(
    predictions: Annotated[Path, typer.Argument(help="predictions.json, as `yolo val save_json=True` writes it.")],
    *,
    annotations: Annotated[
        Path, typer.Option("--annotations", "-a", help="Annotations in COCO's format, such as instances_val2017.json.")
    ],
    category_map: Annotated[
        CategoryMap | None,
        typer.Option(
            help="Translate the category ids of the predictions into COCO's: coco80 takes class ids 0 to 79, "
            "coco80-from-1 takes 1 to 80, which `yolo val` writes if it does not recognise the data as COCO.",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Evaluate only on the images of this list: one path (or image id) per line."),
    ] = None,
    only_predicted: Annotated[
        bool,
        typer.Option("--only-predicted", help="Evaluate only on images that have predictions. Flattering."),
    ] = False,
    iou_type: Annotated[IouKind, typer.Option(help="Compare boxes or masks.")] = IouKind.BBOX,
    per_class: Annotated[bool, typer.Option("--per-class", help="Also show the numbers of every class.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw precision against recall into this .png, .svg or .pdf file.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite an existing plot.")] = False,
) -> None:
    """Evaluate detections as the COCO challenge does: twelve numbers, by pycocotools.

    All images of the annotations count, even those without objects or without predictions.
    """
    with errors_for_users():
        from yolo_lightbackbones.coco.evaluation import evaluate
        from yolo_lightbackbones.coco.ground_truth import read_ground_truth
        from yolo_lightbackbones.coco.selection import read_image_list

        _check_options(plot, force, images, only_predicted)
        truth = read_ground_truth(annotations, masks=iou_type is IouKind.SEGM)
        matched, doubts = _matched(predictions, truth, iou_type, category_map)
        chosen: set[int] | None = None
        if images is not None:
            chosen = read_image_list(images, truth)
        elif only_predicted:
            chosen = {detection["image_id"] for detection in matched.predictions}
        told = messages()
        with told.status(f"Evaluating {len(matched.predictions)} predictions"):
            result = evaluate(truth, matched.predictions, images=chosen, iou_type=iou_type.value)
        # The numbers go to stdout, and so does the summary of what was evaluated, but to stderr if stdout is JSON.
        report = told if as_json else Console(highlight=False, soft_wrap=True)
        summary = _summary(result, truth, len(matched.predictions), matched.by_name)
        report.print(printable_lines(summary), markup=False)
        for doubt in doubts:
            told.print(f"Note: {doubt}", markup=False)
        if as_json:
            typer.echo(json.dumps(_json(result, per_class), allow_nan=False))
        else:
            tables = Console(highlight=False)
            tables.print(_metrics_table(result))
            if per_class:
                tables.print(_class_table(result))
        if plot is not None:
            from yolo_lightbackbones.coco.plot import plot_curves

            plot_curves(result, plot, f"{predictions.name}, {result.images} images")
            report.print(printable_lines(f"Wrote {plot}."), markup=False)


def _check_options(plot: Path | None, force: bool, images: Path | None, only_predicted: bool) -> None:
    """Refuse, before any work is done, options that would fail after it."""
    if images is not None and only_predicted:
        raise UserError("--images and --only-predicted each choose the images to evaluate on. Give one of them.")
    if plot is not None:
        check_picture(plot, "plot", force)


def _matched(
    path: Path, truth: GroundTruth, iou_type: IouKind, category_map: CategoryMap | None
) -> tuple[Matched, list[str]]:
    """The predictions with the annotations' ids, and sentences on doubts about these ids."""
    from yolo_lightbackbones.coco import predictions

    detections = predictions.read_predictions(path, iou_type.value)
    if category_map is not None:
        table = _category_maps()[category_map.value]
        detections = predictions.map_categories(detections, table, f"--category-map {category_map.value}")
    predictions.check_categories(detections, truth, _category_maps)
    doubts = []
    if category_map is None and (others := predictions.may_be_numbered_otherwise(detections, truth, _category_maps)):
        options = " or ".join(f"--category-map {name}" for name in others)
        doubts.append(
            "COCO's category ids go up to 90, and no prediction has one above 80. If the detector's classes are "
            f"numbered without COCO's gaps, these numbers are wrong: add {options}."
        )
    if category_map is None and predictions.may_be_numbered_from_1(detections, truth):
        doubts.append(
            "The annotations number their classes from 0, and no prediction has class 0. `yolo val` numbers the "
            "classes of data other than COCO from 1: if it wrote these, number the annotations alike."
        )
    return predictions.match_images(detections, truth), doubts


def _category_maps() -> dict[str, Mapping[int, int]]:
    """The values of --category-map as tables, from Ultralytics' own list of COCO's ids."""
    from yolo_lightbackbones.cli.models import quiet_ultralytics

    with quiet_ultralytics():
        from ultralytics.data.converter import coco80_to_coco91_class

    ids = coco80_to_coco91_class()
    return {CategoryMap.COCO80.value: dict(enumerate(ids)), CategoryMap.COCO80_FROM_1.value: dict(enumerate(ids, 1))}


# --- output -----------------------------------------------------------------------------------------------------------


def _summary(result: Evaluation, truth: GroundTruth, predictions: int, by_name: int) -> str:
    lines = [
        f"Evaluated {result.images} of {len(truth.images)} images: {result.objects} objects, {result.crowds} crowd "
        f"regions, {result.predictions} predictions."
    ]
    if result.images_without_predictions:
        lines.append(f"{result.images_without_predictions} of these images have no predictions.")
    if predictions > result.predictions:
        lines.append(f"{predictions - result.predictions} predictions on other images were left out.")
    if truth.unlisted:
        lines.append(f"{truth.unlisted} annotations of images that {truth.path} does not list were left out.")
    if by_name:
        lines.append(f"{by_name} predictions were assigned to their images by file name.")
    return "\n".join(lines)


def _json(result: Evaluation, per_class: bool) -> dict[str, Any]:
    found: dict[str, Any] = dict(result.metrics)
    if per_class:
        scores = map(asdict, result.classes)
        found["per_class"] = {score.pop("name"): score for score in scores}
    return found


def _metrics_table(result: Evaluation) -> Table:
    from yolo_lightbackbones.coco.evaluation import METRICS

    table = Table("", "", "IoU", "area", "max. boxes", title="COCO metrics")
    table.add_column("value", justify="right")
    for metric in METRICS:
        value = _text(result.metrics[metric.name])
        table.add_row(metric.name, metric.kind, metric.iou, metric.area, str(metric.max_detections), value)
    return table


def _class_table(result: Evaluation) -> Table:
    table = Table("class", title="Average precision by class")
    for title in ("objects", "AP", "AP50", "AP75"):
        table.add_column(title, justify="right")
    for score in result.classes:
        table.add_row(escape(flow(score.name, 80)), str(score.objects), *map(_text, (score.AP, score.AP50, score.AP75)))
    return table


def _text(value: float) -> str:
    """A number, rounded as by the official tool; a dash if there is no ground truth for it."""
    return "-" if value < 0 else f"{value:.3f}"

"""A picture of precision against recall."""

from __future__ import annotations

from pathlib import Path

from yolo_lightbackbones.coco.evaluation import NOT_THERE, Evaluation
from yolo_lightbackbones.drawing import new_figure, save_figure
from yolo_lightbackbones.messages import printable


def plot_curves(evaluation: Evaluation, path: Path, title: str) -> None:
    """Draw precision at the 101 recalls, the mean over classes; the area under a curve is its AP.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    figure = new_figure(5.0, 4.0)
    axes = figure.add_subplot()
    for threshold, precision in evaluation.curves.items():
        if precision.min() <= NOT_THERE:
            continue  # no objects, no curve
        axes.plot(evaluation.recalls, precision, label=f"IoU {threshold}: AP {precision.mean():.3f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title(printable(title), parse_math=False)  # a file name may have dollar signs
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    save_figure(figure, path)

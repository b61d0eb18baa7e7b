"""A picture of precision against recall."""

from __future__ import annotations

import warnings
from pathlib import Path

from yolo_lightbackbones.coco.evaluation import NOT_THERE, Evaluation
from yolo_lightbackbones.messages import printable
from yolo_lightbackbones.writing import written_whole

FORMATS = (".png", ".svg", ".pdf")


def plot_curves(evaluation: Evaluation, path: Path, title: str) -> None:
    """Draw precision at the 101 recalls, the mean over classes; the area under a curve is its AP."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 4.0), layout="constrained")  # no pyplot: it would look for a screen
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
    with written_whole(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a file name in a script that the font lacks
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=120)

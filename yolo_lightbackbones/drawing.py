"""Draws pictures of results with matplotlib; only this module imports it."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from yolo_lightbackbones.writing import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
"""Suffixes of files that can be drawn."""


def check_matplotlib() -> None:
    """Check, without importing it, that matplotlib is installed.

    Raises:
        ModuleNotFoundError: with the command that installs it.
    """
    # Ultralytics asks for matplotlib, so an ordinary environment has it. An image that was cut down may not.
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            "Pictures are drawn by matplotlib, which is not installed. Run: pip install matplotlib, or, in a clone of "
            'yolo_lightbackbones, which has the extra plot for it: pip install ".[plot]"',
            name="matplotlib",
        )


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")  # no pyplot: it would look for a screen


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as its file's suffix says: one of `FORMATS`. A failure leaves no file behind."""
    with written_whole(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a file name in a script that the font lacks
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=120)

"""Compares candidates: first that they give the same results, then their times, which are taken in turns.

Nothing is timed before all outputs agree. A machine that slows down slows all candidates down, because every round runs
each of them once (A B A B ...) on the same image; the next round has another image.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolo_lightbackbones.measure import timing
from yolo_lightbackbones.writing import write_text

Array = np.ndarray[Any, Any]
Run = Callable[[Array], Sequence[Array]]
Row = dict[str, Any]
LEAST_ROUNDS = 5
KEY = ("kind", "model", "runtime", "size", "batch", "threads", "machine", "clock")
"""Keys of a row that identify it. A later run does not measure a row again that the file already has."""


class DifferentResultsError(ValueError):
    """Raised for candidates that do not compute the same: their times say nothing."""


def largest_error(name: str, found: Sequence[Array], expected: Sequence[Array], tolerance: float) -> float:
    """The largest error of an output, as a share of the largest value of its map.

    Raises:
        DifferentResultsError: if it is more than `tolerance`, or if shapes or values are not comparable.
    """
    shapes = [[list(out.shape) for out in outputs] for outputs in (found, expected)]
    if shapes[0] != shapes[1]:
        raise DifferentResultsError(f"{name} gives outputs of the shapes {shapes[0]} instead of {shapes[1]}.")
    largest = 0.0
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        scale = float(np.abs(other).max())
        if not math.isfinite(scale) or scale == 0:
            raise DifferentResultsError(f"Output {number} is {scale} everywhere at most, which proves nothing.")
        error = float(np.abs(one - other).max()) / scale
        if not error <= tolerance:  # NaN is not, either
            raise DifferentResultsError(
                f"{name} differs from PyTorch in output {number} by {error:.1e} of its largest value; at most "
                f"{tolerance:.0e} is allowed. Different results are not timed."
            )
        largest = max(largest, error)
    return largest


def race(
    runs: Mapping[str, Run],
    images: Sequence[Array],
    expected: Sequence[Sequence[Array]],
    *,
    tolerance: float,
    rounds: int,
    seconds: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> Row:
    """Compare the outputs of all candidates on all images with `expected`, then time the candidates in turns.

    Returns:
        errors, median times (ms) and their quartiles by candidate; the quartiles of the ratio of the first candidate
        to the second, round by round, if there are two; the number of rounds.

    Raises:
        DifferentResultsError: before anything is timed.
    """
    errors = {
        name: max(
            largest_error(name, run(image), wanted, tolerance) for image, wanted in zip(images, expected, strict=True)
        )
        for name, run in runs.items()
    }
    rotated = {name: _rotated(run, images) for name, run in runs.items()}
    return {"errors": errors, **in_turns(rotated, rounds, seconds, clock)}


def _rotated(run: Run, images: Sequence[Array]) -> Callable[[], object]:
    following = itertools.cycle(images)
    return lambda: run(next(following))


def in_turns(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    seconds: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> Row:
    """Time the candidates in turns: `rounds` rounds, or as many as fit into `seconds`, but at least five."""
    begin = clock()
    for run in runs.values():
        run()
    taken = max(clock() - begin, 1e-9)
    rounds = max(min(rounds, LEAST_ROUNDS), int(min(rounds, seconds / taken)))
    latencies = timing.interleaved(list(runs.values()), rounds, warm_up=1, clock=clock)
    row: Row = {
        "rounds": rounds,
        "ms": {name: round(found.median, 3) for name, found in zip(runs, latencies, strict=True)},
        "quartiles": {
            name: [round(found.low, 3), round(found.high, 3)] for name, found in zip(runs, latencies, strict=True)
        },
    }
    if len(latencies) > 1:
        row["ratio"] = [round(value, 4) for value in timing.ratio_quartiles(latencies[0], latencies[1])]
    return row


# --- rows -------------------------------------------------------------------------------------------------------------


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)


def read(file: Path) -> dict[tuple[Any, ...], Row]:
    """The rows of an earlier run."""
    rows: list[Row] = json.loads(file.read_text()) if file.is_file() else []
    return {key(row): row for row in rows}


def write(file: Path, rows: Iterable[Row], text: str) -> None:
    """Write rows as JSON, and `text` beside it as Markdown."""
    ordered = sorted(rows, key=key)
    write_text(file, json.dumps(ordered, indent=1) + "\n")
    write_text(file.with_suffix(".md"), text)


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def ratio_cell(row: Row) -> str:
    """`0.93 (0.91-0.95)`, median and quartiles; bold where even the lower quartile is above 1."""
    if "failed" in row:
        return " and ".join(row["failed"]) + " failed"
    low, median, high = row["ratio"]
    text = f"{median:.2f} ({low:.2f}-{high:.2f})"
    return f"**{text}**" if low > 1 else text


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *lines])

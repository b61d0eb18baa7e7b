"""Measures latencies that can be compared: the runs take turns, so a machine that slows down slows all of them down."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Latency:
    """The time that one run takes, in milliseconds.

    Args:
        median: median of the rounds.
        low: lower quartile.
        high: upper quartile.
        rounds: time of each round, in order.
    """

    median: float
    low: float
    high: float
    rounds: tuple[float, ...]


def interleaved(
    runs: Sequence[Callable[[], object]],
    repeats: int,
    *,
    warm_up: int = 3,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[], object] = lambda: None,
) -> list[Latency]:
    """Time each run `repeats` times in rounds: A B C A B C ...

    Args:
        runs: functions to time.
        repeats: number of measured rounds.
        warm_up: number of rounds before these, which are not measured.
        clock: gives the time in seconds.
        progress: called after every single run; it is not timed.

    Raises:
        ValueError: for fewer than one repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; it must be at least 1.")
    times: list[list[float]] = [[] for _ in runs]
    for number in range(-warm_up, repeats):
        for taken, run in zip(times, runs, strict=True):
            start = clock()
            run()
            end = clock()
            if number >= 0:
                taken.append(1e3 * (end - start))
            progress()
    return [summary(taken) for taken in times]


def summary(rounds: Sequence[float]) -> Latency:
    """Median and quartiles of one number per round, such as its time in milliseconds."""
    low, median, high = statistics.quantiles(rounds, n=4, method="inclusive") if len(rounds) > 1 else [*rounds] * 3
    return Latency(median, low, high, tuple(rounds))


def ratio(latency: Latency, reference: Latency) -> float:
    """Ratio of a latency to a reference: the median of the ratios of all rounds."""
    return ratio_quartiles(latency, reference)[1]


def ratio_quartiles(latency: Latency, reference: Latency) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the ratios of all rounds to a reference."""
    found = summary([a / b for a, b in zip(latency.rounds, reference.rounds, strict=True)])
    return found.low, found.median, found.high

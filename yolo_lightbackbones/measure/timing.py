"""Latencies that can be compared: runs that take turns, so that a machine which slows down slows all of them down."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Latency:
    """Of one run, in milliseconds.

    Args:
        median: half of the rounds took longer.
        low: the fastest quarter of the rounds took less.
        high: the slowest quarter of the rounds took more.
        rounds: each of them, in order.
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
        runs: what to time.
        repeats: rounds that count.
        warm_up: rounds before those.
        clock: gives seconds.
        progress: called after every single run, outside what is timed.

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
    """Median and quartiles of times in milliseconds."""
    low, median, high = statistics.quantiles(rounds, n=4, method="inclusive") if len(rounds) > 1 else [*rounds] * 3
    return Latency(median, low, high, tuple(rounds))


def ratio(latency: Latency, reference: Latency) -> float:
    """How many times as long as the reference it took: the median over the rounds, each compared with its own."""
    return statistics.median(a / b for a, b in zip(latency.rounds, reference.rounds, strict=True))

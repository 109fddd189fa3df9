"""Paired timings with their spread, and peak memory. It does not know what is measured."""

import gc
import os
import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

MIB = 2**20


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and range of repeated measurements."""

    median: float
    low: float
    high: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
        return cls(median, low, high, min(values), max(values))


def seconds(call: Callable[[], Any]) -> float:
    """Of one call, garbage collected before it."""
    gc.collect()
    start = perf_counter()
    call()
    return perf_counter() - start


def paired(first: Callable[[], Any], second: Callable[[], Any], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of two calls that take turns, after a warm-up of each; who begins changes with every pair.

    A machine that slows down slows both calls of a pair, so ratios of pairs hold still where seconds do not.
    """
    first()
    second()
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats):
        for index in (0, 1) if repeat % 2 == 0 else (1, 0):
            times[index].append(seconds((first, second)[index]))
    return times


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Pair by pair."""
    return [a / b for a, b in zip(above, below, strict=True)]


def resident() -> tuple[float, float]:
    """MiB of this process: now and at most.

    Linux counts in ru_maxrss what the parent had before it started this program, so VmHWM is read where there is one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text("utf-8").splitlines() if ":" in line)
        now, most = (int(lines[name].split()[0]) * 1024 / MIB for name in ("VmRSS", "VmHWM"))
        return now, most
    unit = 1 if sys.platform == "darwin" else 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB
    return most, most


def load() -> list[float]:
    """Processes that wanted a core in the last 1, 5 and 15 minutes: other people's work shows here."""
    return [round(value, 2) for value in os.getloadavg()]

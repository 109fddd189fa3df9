"""Paired timings, and peak memory."""

import gc
import os
import random
import resource
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

MIB = 2**20


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of one call, and processor seconds of all threads of this process."""

    seconds: float
    cpu_seconds: float


def timed(call: Callable[[], Any]) -> Timing:
    """Times one call, after a garbage collection and including pending work on an accelerator."""
    gc.collect()
    _finish()
    start, cpu_start = perf_counter(), process_time()
    call()
    _finish()
    return Timing(perf_counter() - start, process_time() - cpu_start)


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def paired(first: Callable[[], Any], second: Callable[[], Any], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of two calls that take turns, after a warm-up of each; the order alternates from pair to pair.

    A machine that slows down slows both calls of a pair, so ratios of pairs hold still where seconds do not.
    """
    first()
    second()
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats):
        for index in (0, 1) if repeat % 2 == 0 else (1, 0):
            times[index].append(timed((first, second)[index]).seconds)
    return times


def between(
    calls: Mapping[str, Callable[[], Any]], baseline: Callable[[], Any], repeats: int
) -> dict[str, list[tuple[Timing, Timing]]]:
    """Each call's timings, with the mean of the two calls of the baseline that it stood between.

    Drift that is linear over three calls cancels. The order of the calls rotates from repeat to repeat.
    """
    names = list(calls)
    found: dict[str, list[tuple[Timing, Timing]]] = {name: [] for name in names}
    for call in (*calls.values(), baseline):
        call()
    before = timed(baseline)
    for repeat in range(repeats):
        shift = repeat % len(names)
        for name in names[shift:] + names[:shift]:
            own, after = timed(calls[name]), timed(baseline)
            mean = Timing((before.seconds + after.seconds) / 2, (before.cpu_seconds + after.cpu_seconds) / 2)
            found[name].append((own, mean))
            before = after
    return found


def interval(values: Sequence[float], draws: int = 4000) -> tuple[float, float]:
    """95 % bootstrap interval of the median, from a fixed seed."""
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws) - 1]


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Ratios, pair by pair."""
    return [a / b for a, b in zip(above, below, strict=True)]


def resident() -> tuple[float, float]:
    """Resident memory of this process in MiB: now, and at its peak.

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
    """Load averages over 1, 5 and 15 minutes, which show other work on the machine."""
    return [round(value, 2) for value in os.getloadavg()]

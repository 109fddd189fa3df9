"""How cost grows: tokens per second along one axis at a time, step time with CPU threads, two processes under DDP.

One table and one picture per axis.
"""

import csv
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import models
from benchmarks.arms import BASELINE, Bench, Workload, equal
from benchmarks.measuring import paired
from benchmarks.options import Options
from benchmarks.pictures import curve
from benchmarks.reporting import Table, rate
from benchmarks.step import column, paired_steps
from benchmarks.turns import output

TITLE = "How cost grows"
PATIENCE = 300  # seconds for the few steps of a run
ENGINE, PEER = "engine", "transformers generate"


@dataclass(frozen=True)
class Point:
    """One place on an axis: the model (and its vocabulary, where that is not its own) and what it decodes."""

    at: int
    model: str
    workload: Workload
    vocabulary: int | None = None


def axes(quick: bool) -> dict[str, list[Point]]:
    """Axis -> points; every row runs to the limit."""
    sizes = {
        "rows decoded together": [Point(p * 8, "tiny", equal(32, p, 8)) for p in (1, 4, 16, 64)],
        "tokens of an answer": [Point(n, "tiny", equal(n, 8, 8)) for n in (16, 32, 64, 128, 256)],
        "answers per prompt (128 rows)": [Point(g, "tiny", equal(16, 128 // g, g)) for g in (1, 4, 16, 64)],
        "parameters": [Point(_parameters(name, 2048), name, equal(16, 4, 8), 2048) for name in ("nano", "5m", "50m")],
        "vocabulary": [Point(v, "5m", equal(16, 4, 8), v) for v in (1_024, 8_192, 32_768, 131_072)],
    }
    if not quick:
        return sizes
    return {"rows decoded together": [Point(p, "tiny", equal(4, p, 1)) for p in (1, 2)]}


def _parameters(name: str, vocabulary: int) -> int:
    layers, width, heads, key_heads, inner, _ = models.SHAPES[name]
    keys = width * key_heads // heads
    return layers * (2 * width * width + 2 * width * keys + 3 * width * inner) + vocabulary * width


def measure(options: Options) -> dict[str, list[dict[str, Any]]]:
    """Axis -> points, each with its timings per line of the picture."""
    repeats = 2 if options.quick else 5
    found = {axis: [_tokens(p, options, repeats) for p in points] for axis, points in axes(options.quick).items()}
    if options.quick:
        return found
    threads = sorted({1, options.threads})
    found["CPU threads"] = [_step(count) for count in threads]
    if options.threads > 1:
        found["processes (DDP, a thread each)"] = [_processes(count) for count in (1, 2)]
    return found


def _tokens(point: Point, options: Options, repeats: int) -> dict[str, Any]:
    bench = Bench.load(point.model, options.device, options.precision, point.vocabulary)
    ours = bench.ours(BASELINE, point.workload)
    times = paired(ours, bench.theirs(point.workload, ours()), repeats)
    work = point.workload.rows * point.workload.limit
    return {"at": point.at, "tokens": work, "seconds": {ENGINE: times[0], PEER: times[1]}}


def _step(threads: int) -> dict[str, Any]:
    """Seconds of whole steps, 32 prompts x 8 answers, of both trainers with so many threads."""
    given = {"prompts": 32, "group": 8, "limit": 96, "model": models.BUNDLED}
    with TemporaryDirectory() as folder:
        ours, theirs = paired_steps(Path(folder), threads, given, their_rows=64, pairs=5)
    return {"at": threads, "seconds": {"ngrpo": column(ours, "seconds"), "trl": column(theirs, "seconds")}}


def _processes(count: int) -> dict[str, Any]:
    """Seconds of whole steps of `train.py`, the 32 x 8 answers shared by so many processes of one thread each."""
    with TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        values = {"steps": 6, "evaluation.before": "false", "problems": 2, "n": 2}
        values |= {"benchmark": "story_math", "trainer": "cpu", "trainer.threads": 1, "hydra.run.dir": run}
        values |= {"trainer.strategy": "ddp", "trainer.devices": count} if count > 1 else {}
        output(["train.py", *(f"{name}={value}" for name, value in values.items())], 1, PATIENCE)
        with open(run / "timings.csv", newline="", encoding="utf-8") as file:
            seconds = [float(row["seconds"]) for row in csv.DictReader(file) if int(row["step"]) > 1]
    return {"at": count, "seconds": {"ngrpo": seconds}}


def lines(points: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[float], list[float], list[float]]]:
    """Name, median, lowest and highest of each line of a picture: tokens per second, or seconds of a step."""
    for name in points[0]["seconds"]:
        values = [sorted(p["tokens"] / s if "tokens" in p else s for s in p["seconds"][name]) for p in points]
        yield name, [statistics.median(v) for v in values], [v[0] for v in values], [v[-1] for v in values]


def pictures(measured: dict[str, list[dict[str, Any]]], folder: Path) -> list[str]:
    """A PNG per axis; returns their names."""
    names = []
    for axis, points in measured.items():
        name = f"growth-{axis.partition(' (')[0].replace(' ', '-').lower()}.png"
        unit = "generated tokens per second" if "tokens" in points[0] else "seconds of a step, 32 x 8 answers"
        curve(folder / name, axis, unit, [p["at"] for p in points], list(lines(points)))
        names.append(name)
    return names


def tables(measured: dict[str, list[dict[str, Any]]]) -> list[Table]:
    """One per axis."""
    return [_table(axis, points) for axis, points in measured.items()]


def _table(axis: str, points: Sequence[dict[str, Any]]) -> Table:
    names = list(points[0]["seconds"])
    if "tokens" in points[0]:
        rows = [[f"{p['at']:,}", *(rate(p["tokens"], p["seconds"][name]) for name in names)] for p in points]
        return Table(f"Generated tokens per second by {axis}", (axis, *names), rows)
    medians = [[statistics.median(p["seconds"][name]) for name in names] for p in points]
    rows = []
    for point, seconds in zip(points, medians, strict=True):
        share = [base / (own * point["at"]) for own, base in zip(seconds, medians[0], strict=True)]
        cells = [cell for own, part in zip(seconds, share, strict=True) for cell in (f"{own:.3f}", f"{part:.0%}")]
        rows.append([str(point["at"]), *cells])
    columns = [column for name in names for column in (f"{name} seconds", "efficiency")]
    return Table(f"Seconds of a step by {axis}", (axis, *columns), rows)

"""Generated tokens per second of the engine and of transformers `generate`: same model, prompts and lengths."""

from typing import Any

import torch

from benchmarks import models
from benchmarks.arms import BASELINE, Bench, Workload, equal, imposed, natural
from benchmarks.measuring import paired, ratios
from benchmarks.options import Options
from benchmarks.reporting import SPREAD, Table, figures, rate

TITLE = "Generation"
LARGE_LIMIT = 32  # tokens of an answer of the 50 M-parameter model, whose decode step takes a tenth of a second


def measure(options: Options) -> list[dict[str, Any]]:
    """One entry per model and workload, with every timing."""
    small = Bench.load(device=options.device, dtype=options.precision)
    limit, repeats = options.limit, options.repeats
    workloads = (natural(limit), equal(limit), equal(limit, prompts=256, group=1))
    rows = [_of("tiny", small, workload, repeats) for workload in workloads]
    name = "nano" if options.quick else options.model or "50m"
    limit = 8 if options.quick else LARGE_LIMIT if options.device == "cpu" else options.limit
    large = Bench.load(name, options.device, options.precision)
    workloads = (imposed(natural(limit, 8)), equal(limit, 8), equal(limit, 64, group=1))
    return rows + [_of(name, large, workload, max(2, repeats // 2)) for workload in workloads]


def _of(name: str, bench: Bench, workload: Workload, repeats: int) -> dict[str, Any]:
    ours = bench.ours(BASELINE, workload)
    lengths = ours()
    times = paired(ours, bench.theirs(workload, lengths), repeats)
    row = {"model": name, "workload": workload.name, "tokens": int(lengths.sum()), "lengths": _quartiles(lengths)}
    return row | {
        "imposed": models.is_random(name) or not workload.stops,
        "seconds": times[0],
        "generate_seconds": times[1],
    }


def _quartiles(lengths: torch.Tensor) -> list[int]:
    points = torch.tensor([0, 0.25, 0.5, 0.75, 1])
    return lengths.float().cpu().quantile(points).round().int().tolist()


def tables(measured: list[dict[str, Any]]) -> list[Table]:
    """Speed-ups over `generate`, pair by pair."""
    columns = ("model", "workload", "lengths (quartiles)", "generate tokens/s", "engine tokens/s")
    rows = []
    for row in measured:
        speed = ratios(row["generate_seconds"], row["seconds"])
        cells = [row["model"], row["workload"], " ".join(map(str, row["lengths"]))]
        cells += [rate(row["tokens"], row["generate_seconds"]), rate(row["tokens"], row["seconds"])]
        rows.append([*cells, *figures(speed, unit="x")])
    title = "Speed-up over transformers generate, same lengths"
    return [Table(title, (*columns, *SPREAD), rows)]

"""The memory that plan.py predicts beside the measured peak of whole steps of train.py, each run in its own processes."""

import json
from typing import Any

from benchmarks.options import Options
from benchmarks.reporting import Table
from benchmarks.turns import output

TITLE = "The plan's memory"
MODELS, LENGTHS = ("20m", "50m", "170m"), (64, 256)
SHARDED = "50m"  # the model of two processes
WORDS = ("prompts_per_step=2", "group_size=4", "trainer.micro_batch_rows=4")


def measure(options: Options) -> list[dict[str, Any]]:
    """Planned and peak MiB after two updates, for every size and length and, for one size, for two processes."""
    rows = []
    for length in LENGTHS[: 1 if options.quick else None]:
        for model in ("nano",) if options.quick else MODELS:
            rows.append({"model": model, "length": length, "processes": "one", **_peak(model, length, options.threads)})
        for name in () if options.quick else ("ddp", "fsdp"):
            found = _peak(SHARDED, length, options.threads, f"trainer.strategy={name}", "trainer.devices=2")
            rows.append({"model": SHARDED, "length": length, "processes": f"two, {name}", **found})
    return rows


def _peak(model: str, length: int, threads: int, *words: str) -> dict[str, int]:
    """Planned and peak MiB of the largest process, after its last update."""
    several = ["-m", "torch.distributed.run", "--nproc-per-node=2"] if words else []
    command = [*several, "-m", "benchmarks.sharding", model, f"max_new_tokens={length}", *WORDS, *words]
    # Freed blocks go back at once: the peak is what was in use, and not what the allocator kept.
    lines = output(command, threads, MALLOC_MMAP_THRESHOLD_="65536").splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    most = max(found, key=lambda line: (line["update"], line["peak"]))
    return {"planned_mib": most["planned"], "peak_mib": most["peak"]}


def tables(measured: list[dict[str, Any]]) -> list[Table]:
    """Planned, measured, and how far off the plan is."""
    cells = [
        [
            row["model"], str(row["length"]), row["processes"], f"{row['planned_mib']:,}", f"{row['peak_mib']:,}",
            f"{row['planned_mib'] / row['peak_mib'] - 1:+.1%}",
        ]
        for row in measured
    ]  # fmt: skip
    title = "Peak of a process beyond the libraries, 2 x 4 answers, 4 in a pass (MiB)"
    return [Table(title, ("model", "tokens", "processes", "planned", "measured", "plan"), cells)]

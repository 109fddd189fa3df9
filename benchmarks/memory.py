"""Peak resident memory of one batch, every arm in a process of its own.

python -m benchmarks.memory --arm NAME --threads N --limit N
"""

import argparse
import json
from typing import Any

import torch

from benchmarks.arms import STRATEGIES, Bench, equal
from benchmarks.measuring import resident
from benchmarks.options import Options
from benchmarks.reporting import Table
from benchmarks.turns import output

TITLE = "Memory of generation"
PEER = "transformers generate"


def measure(options: Options) -> list[dict[str, Any]]:
    """Resident MiB of each arm, before the batch and at the peak."""
    rows = []
    for name in (PEER, *list(STRATEGIES)[: 1 if options.quick else None]):
        command = [
            "-m",
            "benchmarks.memory",
            f"--arm={name}",
            f"--threads={options.threads}",
            f"--limit={options.limit}",
        ]
        rows.append({"arm": name, **json.loads(output(command, options.threads))})
    return rows


def of(arm: str, limit: int) -> dict[str, float]:
    """Resident MiB of one arm, before and at the peak of decoding a batch whose rows all run to `limit`."""
    bench, workload = Bench.load(), equal(limit)
    lengths = torch.full((workload.rows,), limit)
    warm_up, batch = (
        bench.theirs(w, lengths[: w.rows].clamp(max=w.limit)) if arm == PEER else bench.ours(arm, w)
        for w in (equal(2, prompts=1, group=1), workload)
    )
    warm_up()
    before = resident()[0]
    batch()
    return {"before_mib": before, "peak_mib": resident()[1]}


def tables(measured: list[dict[str, Any]]) -> list[Table]:
    """Before, peak, and the difference."""
    sizes = [(row["before_mib"], row["peak_mib"], row["peak_mib"] - row["before_mib"]) for row in measured]
    cells = [[row["arm"], *(f"{size:,.0f}" for size in three)] for row, three in zip(measured, sizes, strict=True)]
    title = "Resident memory of one batch, equal lengths, 32 x 8 (MiB)"
    return [Table(title, ("arm", "before", "peak", "added"), cells)]


def main() -> None:
    """One arm, its figures on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", required=True, choices=(PEER, *STRATEGIES))
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--limit", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(of(arguments.arm, arguments.limit)))


if __name__ == "__main__":
    main()

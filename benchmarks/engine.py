"""Speed and memory of the decoding engine: beside transformers, under each strategy, and as part of a training step.

    python benchmarks/engine.py [--quick] [--threads N] [--repeats N] [--out DIR]

It measures and knows no pass or fail; README.md beside it tells how to read the figures.
"""

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from arms import BASELINE, STRATEGIES, Bench, Workload, equal, natural
from measuring import load, paired, ratios, resident
from reporting import tables, write
from rich.console import Console
from transformers.utils import logging as transformers_logging

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
PEER = "transformers generate"
TRAINED = (BASELINE, "neighbor_mix")  # strategies whose training step is taken apart
Rows = list[dict[str, Any]]


def against_generate(bench: Bench, limit: int, repeats: int) -> Rows:
    """Generated tokens per second of this engine and of `generate`: same prompts, same lengths."""
    rows = []
    for workload in (natural(limit), equal(limit), equal(limit, prompts=256, group=1)):
        ours = bench.ours(BASELINE, workload)
        lengths = ours()
        times = paired(ours, bench.theirs(workload, lengths), repeats)
        rows.append({"workload": workload.name, "tokens": int(lengths.sum()), "lengths": _quartiles(lengths)})
        rows[-1] |= {"seconds": times[0], "generate_seconds": times[1], "ratios": ratios(times[1], times[0])}
    return rows


def of_strategies(bench: Bench, limit: int, repeats: int) -> Rows:
    """Seconds under each strategy over seconds of token sampling, for the same number of decode steps."""
    workload, rows = equal(limit), []
    baseline = bench.ours(BASELINE, workload)
    for name in STRATEGIES:
        times = paired(bench.ours(name, workload), baseline, repeats)
        overhead = [100 * (ratio - 1) for ratio in ratios(*times)]
        rows.append({"strategy": name, "tokens": workload.rows * limit, "seconds": times[0]})
        rows[-1] |= {"baseline_seconds": times[1], "overhead_percent": overhead}
    return rows


def of_training(threads: int, steps: int) -> tuple[Rows, dict[str, Any]]:
    """Seconds per phase of RL steps in a real run, the first left out, and what the run recorded of the machine."""
    rows, record = [], {}
    for name in TRAINED:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            values = {"exploration": name, "steps": steps + 1, "hydra.run.dir": run, "trainer.threads": threads}
            values |= {"benchmark": "story_math", "evaluation.problems": 2, "evaluation.n": 2}
            command = [sys.executable, "train.py", *(f"{key}={value}" for key, value in values.items())]
            _checked(command)
            with open(run / "timings.csv", newline="", encoding="utf-8") as file:
                timed = [row for row in csv.DictReader(file) if int(row["step"]) > 1]
            record = json.loads((run / "run.json").read_text("utf-8"))
        phases = {"whole step": "seconds"} | {c.removeprefix("seconds_"): c for c in timed[0] if "seconds_" in c}
        rows += [
            {"strategy": name, "phase": phase, "seconds": [float(row[column]) for row in timed]}
            for phase, column in phases.items()
        ]
    return rows, {key: record[key] for key in ("versions", "git_commit", "hardware")}


def of_memory(threads: int, limit: int) -> Rows:
    """Peak resident memory of one batch, every arm in a process of its own."""
    rows = []
    for name in (PEER, *STRATEGIES):
        options = [f"--memory-of={name}", f"--threads={threads}", f"--limit={limit}"]
        rows.append({"arm": name, **json.loads(_checked([sys.executable, __file__, *options]))})
    return rows


def one_memory(arm: str, limit: int) -> dict[str, float]:
    """MiB before and at most while one arm decodes the batch whose rows all run to `limit`."""
    bench, workload = Bench.load(), equal(limit)
    lengths = torch.full((workload.rows,), limit)
    small = Workload("warm-up", equal(2, prompts=1).task, 1, 2, stops=False)
    calls = [
        bench.theirs(w, lengths[: w.rows].clamp(max=w.limit)) if arm == PEER else bench.ours(arm, w)
        for w in (small, workload)
    ]
    calls[0]()
    before = resident()[0]
    calls[1]()
    return {"before_mib": before, "peak_mib": resident()[1]}


def _checked(command: list[str]) -> str:
    """The output of a command run in the repository; SystemExit with its last error lines where it fails."""
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = "\n".join(done.stderr.splitlines()[-5:])
        raise SystemExit(f"{shlex.join(map(str, command[1:]))} ended with status {done.returncode}:\n{last}")
    return done.stdout


def _quartiles(lengths: torch.Tensor) -> list[int]:
    points = torch.tensor([0, 0.25, 0.5, 0.75, 1])
    return lengths.float().quantile(points).round().int().tolist()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All four parts, one after the other."""
    threads, repeats, limit = arguments.threads, arguments.repeats, arguments.limit
    began, before = datetime.now(UTC).isoformat(timespec="seconds"), load()
    say = Console(stderr=True).print
    say("training steps ...")
    training, machine = of_training(threads, 1 if arguments.quick else 8)
    say("memory ...")
    memory = of_memory(threads, limit)
    bench = Bench.load()
    say("beside transformers ...")
    generate = against_generate(bench, limit, repeats)
    say("strategies ...")
    strategies = of_strategies(bench, limit, repeats)
    command = shlex.join(["python", "benchmarks/engine.py", *sys.argv[1:]])
    parts = {"generate": generate, "strategies": strategies, "training": training, "memory": memory}
    context = {"command": command, "date": began, "threads": threads, "repeats": repeats, "limit": limit}
    return {**context, "load_before": before, "load_after": load(), **machine, **parts}


def parse() -> argparse.Namespace:
    """Options; --quick only shows that everything runs, so it writes nothing unless told where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default: all cores)")
    parser.add_argument("--repeats", type=int, help="pairs of timings per comparison (default: 9, with --quick 2)")
    parser.add_argument("--limit", type=int, help="max_new_tokens (default: 96, with --quick 64)")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; not a measurement")
    parser.add_argument("--out", type=Path, help="where to write (default: benchmarks/results; with --quick nowhere)")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.repeats = arguments.repeats or (2 if arguments.quick else 9)
    arguments.limit = arguments.limit or (64 if arguments.quick else 96)
    arguments.out = arguments.out or (None if arguments.quick else RESULTS)
    return arguments


def main() -> None:
    """Measure, print, write."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    transformers_logging.disable_progress_bar()
    if arguments.memory_of:
        print(json.dumps(one_memory(arguments.memory_of, arguments.limit)))
        return
    measured, console = measure(arguments), Console()
    for table in tables(measured):
        console.print(table.rich())
    if arguments.out:
        print(write(measured, arguments.out))


if __name__ == "__main__":
    main()

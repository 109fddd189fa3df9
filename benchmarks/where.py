"""Where the time of one RL step of the default run goes: by phase, and within each by operation.

    python benchmarks/where.py --threads N

It does not know what would be faster.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from options import Options
from reporting import Table
from turns import REPOSITORY, environment

TITLE = "Profile of one step"
WATCHED = 3  # the RL step that is profiled, after two that warm up
SHOWN = 14  # operations per phase
PHASES = ("rollout", "update")


def measure(options: Options) -> dict[str, Any]:
    """Phases and operations of a step of `train.py`, in a process of its own."""
    command = [sys.executable, str(Path(__file__)), f"--threads={options.threads}"]
    command += ["--quick"] if options.quick else []
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment(options.threads), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit("\n".join(["the profiled run failed:", *done.stderr.splitlines()[-5:]]))
    return json.loads(done.stdout.splitlines()[-1])


def watched(policy: Any, found: dict[str, Any]) -> Any:
    """The policy, whose step WATCHED runs under torch's profiler and leaves its figures in `found`."""
    from torch.profiler import ProfilerActivity, profile, record_function

    step_of, phase_of = policy.rl_step, policy._phase

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        with record_function(f"phase {name}"), phase_of(name):
            yield

    def rl_step(step: int) -> Any:
        if step < WATCHED:
            outcome = step_of(step)
            found["seconds"] = dict(outcome.seconds)
            return outcome
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            outcome = step_of(step)
        found["profiled_seconds"] = dict(outcome.seconds)
        found["operations"] = operations(profiler.events())
        return outcome

    policy.rl_step, policy._phase = rl_step, phase
    return policy


def operations(events: Any) -> dict[str, list[dict[str, Any]]]:
    """Phase -> operations with their calls and the seconds spent in themselves, dearest first."""
    spans = [(e.name.removeprefix("phase "), e.time_range) for e in events if e.name.startswith("phase ")]
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0, 0.0]))
    for event in events:
        middle = (event.time_range.start + event.time_range.end) / 2
        phase = next((name for name, span in spans if span.start <= middle <= span.end), "between phases")
        entry = found[phase][event.name if not event.name.startswith("phase ") else "python and what is not traced"]
        entry[0] += 1
        entry[1] += event.self_cpu_time_total / 1e6
    return {
        phase: [
            {"name": name, "calls": int(calls), "seconds": seconds}
            for name, (calls, seconds) in sorted(entries.items(), key=lambda item: -item[1][1])
        ]
        for phase, entries in found.items()
    }


def tables(measured: dict[str, Any]) -> list[Table]:
    """Phases as they are without a profiler, then the operations of the long ones."""
    whole = sum(measured["seconds"].values())
    phases = [
        [name, f"{seconds:.3f}", f"{seconds / whole:.0%}", f"{measured['profiled_seconds'][name]:.3f}"]
        for name, seconds in measured["seconds"].items()
    ]
    columns = ("phase", "seconds", "share", "seconds under the profiler")
    shown = [Table("Phases of a step, 32 x 8 answers", columns, [*phases, ["all", f"{whole:.3f}", "100%", ""]])]
    return shown + [_operations(name, measured["operations"].get(name, [])) for name in PHASES]


def _operations(phase: str, entries: list[dict[str, Any]]) -> Table:
    whole = sum(entry["seconds"] for entry in entries)
    listed = [*entries[:SHOWN]]
    if rest := entries[SHOWN:]:
        calls, seconds = sum(e["calls"] for e in rest), sum(e["seconds"] for e in rest)
        listed.append({"name": f"{len(rest)} others", "calls": calls, "seconds": seconds})
    rows = [[e["name"], f"{e['calls']:,}", f"{e['seconds']:.3f}", f"{e['seconds'] / whole:.1%}"] for e in listed]
    return Table(
        f"Operations of the phase {phase}, without what they call", ("operation", "calls", "seconds", "share"), rows
    )


def main() -> None:
    """Runs train.py for three steps and prints the figures of the last as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    sys.path.insert(0, str(REPOSITORY))
    import train
    from ngrpo import cli

    found: dict[str, Any] = {}
    policy_of = train.build_policy
    train.build_policy = lambda *parts: watched(policy_of(*parts), found)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with TemporaryDirectory() as folder:
        values = {"trainer.threads": arguments.threads, "steps": WATCHED, "hydra.run.dir": Path(folder) / "run"}
        values |= {"evaluation.before": "false", "benchmark": "story_math"}
        values |= {"evaluation.problems": 1, "evaluation.n": 1}
        values |= {"prompts_per_step": 2, "group_size": 2, "max_new_tokens": 24} if arguments.quick else {}
        sys.argv = ["train.py", *(f"{name}={value}" for name, value in values.items())]
        cli.prepare("config")
        cli.run(train.main)
    print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()

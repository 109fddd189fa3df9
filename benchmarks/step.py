"""A whole GRPO step beside TRL's GRPOTrainer: rollout, reward, log-probabilities, update, logging; no KL, one update.

Each trainer has a process of its own, and they take turns step by step.
"""

import json
import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import models
from benchmarks.arms import BASELINE, Bench, Workload
from benchmarks.measuring import ratios
from benchmarks.options import Options
from benchmarks.reporting import SPREAD, Table, figures
from benchmarks.turns import TrainerProcess
from ngrpo.tasks.story_math import StoryMath

TITLE = "Whole GRPO step"
OURS, THEIRS = "benchmarks.step_ngrpo", "benchmarks.step_trl"
OUR_ROWS = 32  # trainer.micro_batch_rows, where it is not set
WARM_UP = 2  # steps of each that are left out
Steps = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """`prompts` x `group` answers under a model; `pairs` of steps; `their_rows`: rows per pass that TRL is tried with."""

    model: str
    prompts: int
    group: int
    limit: int
    pairs: int
    their_rows: tuple[int, ...]


# With 32 prompts the 50 M-parameter model takes minutes a step on two cores, so it gets eight.
CASES = (Case("tiny", 32, 8, 96, 15, (256, 64, 32)), Case("50m", 8, 8, 96, 4, (64, 16)))
QUICK = (Case("tiny", 4, 4, 40, 1, (16,)), Case("nano", 2, 4, 40, 1, (8,)))


def measure(options: Options) -> list[dict[str, Any]]:
    """One entry per case, with every single step."""
    return [_of(case, options) for case in (QUICK if options.quick else CASES)]


def _of(case: Case, options: Options) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        given: dict[str, Any] = {"prompts": case.prompts, "group": case.group, "limit": case.limit}
        given["model"] = stack.enter_context(models.directory(case.model))
        if models.is_random(case.model):
            given["lengths"] = folder / "lengths.json"
            given["lengths"].write_text(json.dumps(lengths(case)), encoding="utf-8")
        tried = {rows: _alone(folder / f"try-{rows}", options.threads, rows, given) for rows in case.their_rows}
        rows = min(tried, key=lambda rows: tried[rows]["seconds"])
        ours, theirs = paired_steps(folder, options.threads, given, rows, case.pairs)
    shape = {"model": case.model, "prompts": case.prompts, "group": case.group, "limit": case.limit}
    chosen = {"tried": {str(rows): step for rows, step in tried.items()}, "trl_rows": rows, "our_rows": OUR_ROWS}
    return {**shape, **chosen, "ngrpo": ours, "trl": theirs}


def lengths(case: Case) -> list[int]:
    """Lengths of the bundled model's answers to the same prompts, which are imposed on a random model."""
    task = StoryMath("train", [4], case.prompts)
    return Bench.load().ours(BASELINE, Workload("lengths", task, case.group, case.limit, stops=True))().tolist()


def _arm(module: str, place: Path, threads: int, rows: int, given: dict[str, Any]) -> TrainerProcess:
    place.mkdir()
    return TrainerProcess(module, place / "log", threads, rows=rows, place=place, **given)


def _alone(place: Path, threads: int, rows: int, given: dict[str, Any]) -> dict[str, Any]:
    """TRL's second step."""
    with _arm(THEIRS, place, threads, rows, given) as arm:
        return [arm.step() for _ in range(2)][1]


def paired_steps(folder: Path, threads: int, given: dict[str, Any], their_rows: int, pairs: int) -> tuple[Steps, Steps]:
    """Our steps and TRL's, taken in turns; the order alternates. given: `turns.parse` of both."""
    steps: tuple[Steps, Steps] = ([], [])
    with (
        _arm(OURS, folder / "ngrpo", threads, OUR_ROWS, given) as ours,
        _arm(THEIRS, folder / "trl", threads, their_rows, given) as theirs,
    ):
        for pair in range(WARM_UP + pairs):
            for index in (0, 1) if pair % 2 == 0 else (1, 0):
                steps[index].append((ours, theirs)[index].step())
    return steps[0][WARM_UP:], steps[1][WARM_UP:]


def column(steps: Steps, name: str) -> list[float]:
    """The figure of this name of every step."""
    return [step[name] for step in steps]


def speed_ups(case: dict[str, Any], clock: str) -> list[float]:
    """TRL's time per generated token over ours, pair by pair; clock: seconds, or cpu_seconds of all threads."""
    per_token = [[step[clock] / step["tokens"] for step in case[name]] for name in ("trl", "ngrpo")]
    return ratios(*per_token)


def tables(measured: list[dict[str, Any]]) -> list[Table]:
    """Ratios, seconds by phase, and memory."""
    return [_ratios(measured), _seconds(measured), _tried(measured)]


def _ratios(measured: list[dict[str, Any]]) -> Table:
    rows = []
    for case in measured:
        for clock, name in (("seconds", "time"), ("cpu_seconds", "processor time")):
            values = speed_ups(case, clock)
            rows.append([_name(case), name, *figures(values, unit="x")])
        peaks = [max(column(case[name], "peak_mib")) for name in ("trl", "ngrpo")]
        rows.append([_name(case), "peak memory", f"{peaks[0] / peaks[1]:.2f}x", "", "", ""])
    columns = ("step", "of", *SPREAD)
    return Table("TRL's GRPOTrainer over this trainer, per generated token", columns, rows)


def _seconds(measured: list[dict[str, Any]]) -> Table:
    rows = []
    for case in measured:
        for name in ("ngrpo", "trl"):
            steps = case[name]
            phases = steps[0]["phases"]
            spent = {phase: statistics.median(step["phases"][phase] for step in steps) for phase in phases}
            whole = statistics.median(column(steps, "seconds"))
            rollout, update = spent["rollout"], spent.get("update")
            rest = whole - rollout - (update or 0)
            tokens = statistics.mean(column(steps, "tokens"))
            cells = [f"{whole:.3f}", f"{rollout:.3f}", "" if update is None else f"{update:.3f}", f"{rest:.3f}"]
            cells += [f"{tokens:,.0f}", f"{1000 * whole / tokens:.3f}"]
            memory = [f"{max(column(steps, which)):,.0f}" for which in ("before_mib", "peak_mib")]
            rows.append([_name(case), name, *cells, *memory])
    columns = ("step", "trainer", "seconds", "rollout", "update", "the rest", "tokens", "seconds per 1,000 tokens")
    return Table("Median of a step", (*columns, "MiB before", "MiB at most"), rows)


def _tried(measured: list[dict[str, Any]]) -> Table:
    rows = []
    for case in measured:
        for size, step in case["tried"].items():
            mark = "taken" if int(size) == case["trl_rows"] else ""
            rows.append([_name(case), size, f"{step['seconds']:.3f}", f"{step['peak_mib']:,.0f}", mark])
    columns = ("step", "per_device_train_batch_size", "seconds", "MiB at most", "")
    return Table("TRL's settings that were tried first, alone", columns, rows)


def _name(case: dict[str, Any]) -> str:
    return f"{case['model']}, {case['prompts']} x {case['group']}"

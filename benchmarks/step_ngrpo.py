"""One side of the comparison of whole steps: a run as train.py makes it, whose steps wait for their turn.

Nothing of train.py is left out: grading, metrics, samples and timings are written.
"""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig

from benchmarks.arms import Ending
from benchmarks.turns import Turn, lengths_of, parse
from ngrpo import build, cli, loop
from ngrpo.loop import Parts
from ngrpo.rundir.directory import RunDirectory
from ngrpo.rundir.recorder import Recorder
from ngrpo.tasks.base import Problem, Score
from ngrpo.tasks.rewards import Rewarded


def overrides(options: Namespace) -> list[str]:
    """The command line of the run, which never reaches its last step and evaluates nothing first."""
    values = {
        "model": "tiny" if options.lengths is None else options.model,
        "prompts_per_step": options.prompts,
        "group_size": options.group,
        "max_new_tokens": options.limit,
        "trainer.threads": options.threads,
        "trainer.micro_batch_rows": options.rows,
        "evaluation.before": "false",
        "steps": 1_000_000,
        "checkpoint_every": 1_000_000,
        "hydra.run.dir": options.place / "run",
    }
    return [f"{name}={value}" for name, value in values.items()]


@dataclass(kw_only=True)
class Turns(Recorder):
    """Writes a step, reports its cost and waits for the next; everything that a run does is part of some turn."""

    turn: Turn

    def step(
        self,
        step: int,
        rows: list[dict[str, Any]],
        metrics: Mapping[str, float],
        seconds: Mapping[str, float],
        explored: list[dict[str, Any]],
    ) -> None:
        super().step(step, rows, metrics, seconds, explored)
        self.turn.done(tokens=sum(row["n_tokens"] for row in rows), phases=dict(seconds))
        self.turn.wait()


def letters(problem: Problem, completion: str, score: Score) -> float:
    """Random texts are graded as usual and all wrong, so the parity of their length stands in for a reward."""
    return float(len(completion) % 2)


def in_turns(parts: Parts, run: RunDirectory, turn: Turn, lengths: Sequence[int] | None) -> Parts:
    """The parts of the run with steps that wait; where lengths are given, with rows that end at them and are rewarded."""
    trackers = parts.recorder.trackers if parts.recorder else None
    parts = replace(parts, recorder=Turns(run, trackers, turn=turn))
    if lengths is None:
        return parts
    ending = Ending(torch.tensor(lengths))
    ending.bind(parts.sampler.strategy.vocabulary, parts.policy.model.table.detach())
    sampler, task = replace(parts.sampler, strategy=ending), Rewarded(parts.task, {"letters": letters})
    return replace(parts, sampler=sampler, task=task)


def main() -> None:
    """Runs train.py to its first step, then in turns until no other step is requested."""
    options, turn = parse(__doc__), Turn()
    lengths = lengths_of(options)

    def train(config: DictConfig) -> None:
        request = cli.training_request(config)
        with request.open() as run:
            parts = in_turns(build.training(request, run), run, turn, lengths)
            turn.wait()
            loop.run(parts, **{name: config.trainer[name] for name in ("accelerator", "devices", "strategy")})

    sys.argv = ["train.py", *overrides(options)]
    cli.prepare("config")
    cli.run(train)


if __name__ == "__main__":
    main()

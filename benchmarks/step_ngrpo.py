"""One side of the comparison of whole steps: a run of train.py whose steps wait for their turn.

It does not know the other side. Nothing of train.py is left out: grading, metrics, samples and timings are written.
"""

import csv
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from arms import Ending
from turns import REPOSITORY, Turn, lengths_of, parse

sys.path.insert(0, str(REPOSITORY))

import torch

import train
from ngrpo import cli
from ngrpo.tasks.base import Problem, Score
from ngrpo.tasks.story_math import StoryMath


def overrides(options: Namespace) -> list[str]:
    """The command line of the run; it never comes to its last step, and evaluates nothing before."""
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


def in_turns(policy: Any, turn: Turn, timings: Path) -> Any:
    """The policy, each of whose steps waits and tells what it took."""
    step_of = policy.training_step

    def training_step(batch: int, batch_idx: int) -> None:
        if int(batch) == 0:  # where a run stands before its first step
            return step_of(batch, batch_idx)
        turn.wait()
        step_of(batch, batch_idx)
        with open(timings, newline="", encoding="utf-8") as file:
            tokens = int(list(csv.DictReader(file))[-1]["tokens"])
        turn.done(tokens=tokens, phases=policy.seconds)

    policy.training_step = training_step
    return policy


def tell_apart() -> None:
    """Random texts are all wrong: graded as ever, they are rewarded by their length in letters."""
    graded = StoryMath.score

    def score(self: StoryMath, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        found = zip(graded(self, problems, completions), completions, strict=True)
        return [replace(score, reward=float(len(text) % 2)) for score, text in found]

    StoryMath.score = score


def main() -> None:
    """Runs train.py with a policy that waits and, where lengths are given, rows that end at them."""
    options, turn = parse(__doc__), Turn()
    lengths = lengths_of(options)
    sampler_of, policy_of = train.build_sampler, train.build_policy

    def build_sampler(config: Any, strategy: Any, task: Any, like: Any = None) -> Any:
        sampler = sampler_of(config, strategy, task, like)
        if lengths is None or like is not None:
            return sampler
        ending = Ending(torch.tensor(lengths))
        ending.bind(sampler.strategy.vocabulary, sampler.model.table.detach())
        return replace(sampler, strategy=ending)

    def build_policy(*parts: Any) -> Any:
        return in_turns(policy_of(*parts), turn, options.place / "run" / "timings.csv")

    train.build_sampler, train.build_policy = build_sampler, build_policy
    if lengths is not None:
        tell_apart()
    sys.argv = ["train.py", *overrides(options)]
    cli.prepare("config")
    cli.run(train.main)


if __name__ == "__main__":
    main()

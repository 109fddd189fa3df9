"""Which prompts an RL step answers, which of the answers enter its loss, and which wait for the next step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ngrpo.algorithm.algorithm import Algorithm
from ngrpo.ranks import Ranks
from ngrpo.rollout.join import join
from ngrpo.rollout.keys import row_key
from ngrpo.rollout.records import NotFinite
from ngrpo.rollout.sampling import Answers, Sampler, answer, groups_of
from ngrpo.tasks.base import Problem, Task


@dataclass(frozen=True)
class TrainingConfig:
    """The sizes of a run: steps, prompts_per_step and group_size count RL steps, prompts and completions; eval_every 0:
    only before the first and after the last RL step."""

    steps: int
    prompts_per_step: int
    group_size: int
    learning_rate: float
    seed: int
    micro_batch_rows: int
    weight_decay: float
    betas: tuple[float, float]
    max_grad_norm: float
    schedule: str
    warmup_steps: int
    eval_every: int = 0
    evaluate_before: bool = True
    checkpoint_every: int = 10


@dataclass(frozen=True)
class Collected:
    """A rank's share of an RL step: whole groups, figures of the group filter, and (B,) bool which rows enter the loss and
    which the step before has drawn (None: no row). `surplus` are groups for the next step."""

    answers: Answers
    counted: Tensor
    figures: dict[str, float]
    carried: Tensor | None = None
    surplus: Answers | None = None


def problems_of(task: Task, config: TrainingConfig, step: int, draw: int = 0) -> list[Problem]:
    """The prompts of RL step `step` (from 1): the task in an order shuffled anew for every pass through it.

    A function of seed, step and draw alone, so the data position needs no state of its own. Draws after the first, which
    replace groups that were not kept, walk through the task in orders of their own.
    """
    size, wanted = len(task.problems), config.prompts_per_step
    if size < wanted:
        raise ValueError(f"prompts_per_step={wanted}: {task.name} has {size} problems only")
    per_pass = size // wanted
    epoch, position = divmod(step - 1, per_pass)
    identity = ("order", config.seed, epoch, *([draw] if draw else []))
    generator = torch.Generator().manual_seed(row_key(*identity) % 2**63)
    order = torch.randperm(size, generator=generator)[position * wanted : (position + 1) * wanted]
    return [task.problems[i] for i in order.tolist()]


def collect(
    sampler: Sampler, task: Task, algorithm: Algorithm, config: TrainingConfig, step: int, ranks: Ranks,
    waiting: Answers | None = None,
) -> Collected:  # fmt: skip
    """Draws this rank's share of a step's groups; those that wait from the step before come first.

    Groups that the filter refuses are replaced by whole groups of other prompts, at most `max_resamples` times; where
    that does not suffice, refused groups fill the batch and enter no loss. What the last draw kept beyond a full batch is
    the surplus, always less than a batch: each step draws at least once, at a position that knows nothing of it.
    """
    share, draws = config.prompts_per_step // ranks.world, [] if waiting is None else [waiting]
    kept, before = [algorithm.keeps(groups_of(draw, sampler)) for draw in draws], len(draws)
    while len(draws) == before or (
        len(draws) - before <= algorithm.max_resamples and int(torch.cat(kept).sum()) < share
    ):
        draws.append(_draw(sampler, task, config, step, len(draws) - before, ranks))
        kept.append(algorithm.keeps(groups_of(draws[-1], sampler)))
    keeps = torch.cat(kept)
    order = torch.cat((keeps.nonzero().squeeze(1), (~keeps).nonzero().squeeze(1)))
    beyond = order[share : int(keeps.sum())]
    answers = draws[0] if len(draws) == 1 else join(draws, order[:share].sort().values)
    counted = algorithm.counts(groups_of(answers, sampler)).flatten()
    if algorithm.group_filter is None:
        return Collected(answers, counted, {})
    fresh = torch.cat(kept[before:]).double().mean().item()
    figures = {"draws": float(len(draws) - before), "kept": fresh, "surplus": float(len(beyond))}
    surplus = join(draws, beyond) if algorithm.carry_surplus and len(beyond) else None
    carried = None if waiting is None else torch.arange(len(counted), device=counted.device) < len(waiting.completions)
    return Collected(answers, counted, figures, carried, surplus)


def _draw(sampler: Sampler, task: Task, config: TrainingConfig, step: int, draw: int, ranks: Ranks) -> Answers:
    """Answers to this rank's share of the prompts; whole groups stay together."""
    problems = problems_of(task, config, step, draw)
    share = len(problems) // ranks.world
    problems = problems[ranks.rank * share : (ranks.rank + 1) * share]
    identities = [(config.seed, step, draw, p.id, i) for p in problems for i in range(config.group_size)]
    try:
        return answer(sampler, task, problems, identities)
    except NotFinite as error:
        raise NotFinite(f"RL step {step}: {error}") from error

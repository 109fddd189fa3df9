"""Which problems an RL step samples, which it retries, which answers enter its loss, and which groups are left for the next
step."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ngrpo.algorithm.algorithm import Algorithm
from ngrpo.algorithm.retry import Retry, rescuers
from ngrpo.ranks import Ranks
from ngrpo.rollout.join import exchanged, join
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

    def checkpoint_due(self, step: int) -> bool:
        """Whether RL step `step` is saved whatever else happens at it."""
        return step == self.steps or step % self.checkpoint_every == 0

    def evaluation_due(self, step: int) -> bool:
        """Whether benchmarks are sampled after RL step `step`; 0 is before the first."""
        regular = self.evaluate_before if step == 0 else self.eval_every > 0 and step % self.eval_every == 0
        return regular or step == self.steps


@dataclass(frozen=True)
class Collected:
    """A rank's share of an RL step, in whole groups.

    counted     (B,) bool, rows that enter the loss
    figures     of resampling and retries
    off_policy  (B,) bool, rows that the step before drew, or that answered another prompt; None: no row
    surplus     groups for the next step
    """

    answers: Answers
    counted: Tensor
    figures: dict[str, float]
    off_policy: Tensor | None = None
    surplus: Answers | None = None


def problems_of(task: Task, config: TrainingConfig, step: int, draw: int = 0) -> list[Problem]:
    """The prompts of RL step `step` (from 1): the task in an order shuffled anew for every pass through it.

    A function of seed, step and draw alone, so the data position needs no state of its own. Draws after the first, which
    replace groups that were not kept, walk through the task in orders of their own.
    """
    size, count = len(task.problems), config.prompts_per_step
    if size < count:
        raise ValueError(f"prompts_per_step={count}: {task.name} has {size} problems only")
    per_pass = size // count
    epoch, position = divmod(step - 1, per_pass)
    identity = ("order", config.seed, epoch, *([draw] if draw else []))
    generator = torch.Generator().manual_seed(row_key(*identity) % 2**63)
    order = torch.randperm(size, generator=generator)[position * count : (position + 1) * count]
    return [task.problems[i] for i in order.tolist()]


def collect(
    sampler: Sampler, task: Task, algorithm: Algorithm, config: TrainingConfig, step: int, ranks: Ranks,
    carried: Answers | None = None,
) -> Collected:  # fmt: skip
    """Draws this rank's share of a step's groups, after those that were carried over from the step before.

    Where the algorithm retries, each draw retries its all-wrong groups, before a filter sees them. Groups that the filter
    refuses are replaced by whole groups of other prompts, at most `max_resamples` times; where that does not suffice, refused
    groups fill the batch and enter no loss. What the last draw kept beyond a full batch is the surplus, always less than a
    batch: each step draws at least once, at a position that knows nothing of it.
    """
    share, draws = config.prompts_per_step // ranks.world, [] if carried is None else [carried]
    kept, retries = [algorithm.keeps(groups_of(answers, sampler)) for answers in draws], []
    fresh = len(draws)  # the first draw of this step
    for number in range(1 + algorithm.max_resamples):
        if number and int(torch.cat(kept).sum()) >= share:
            break
        place = (config.seed, step, number)
        answers = _draw(sampler, task, config, place, ranks)
        if algorithm.retry is not None:
            answers, counts = _retried(sampler, task, algorithm.retry, answers, place)
            retries.append(counts)
        draws.append(answers)
        kept.append(algorithm.keeps(groups_of(answers, sampler)))
    keeps = torch.cat(kept)
    order = torch.cat((keeps.nonzero().squeeze(1), (~keeps).nonzero().squeeze(1)))
    beyond = order[share : int(keeps.sum())]
    answers = draws[0] if len(draws) == 1 else join(draws, order[:share].sort().values)
    counted = algorithm.rows_in_loss(groups_of(answers, sampler)).flatten()
    figures = _retry_figures(retries, ranks)
    if algorithm.group_filter is not None:
        share_kept = torch.cat(kept[fresh:]).double().mean().item()
        figures |= {"draws": float(len(draws) - fresh), "kept": share_kept, "surplus": float(len(beyond))}
    surplus = join(draws, beyond) if algorithm.group_filter and algorithm.carry_surplus and len(beyond) else None
    return Collected(answers, counted, figures, _off_policy(answers, carried), surplus)


def _draw(sampler: Sampler, task: Task, config: TrainingConfig, place: tuple[int, int, int], ranks: Ranks) -> Answers:
    """Answers to this rank's share of the prompts; whole groups stay together. place: seed, RL step, draw."""
    problems = problems_of(task, config, *place[1:])
    share = len(problems) // ranks.world
    problems = problems[ranks.rank * share : (ranks.rank + 1) * share]
    return _answered(sampler, task, problems, [(*place, p.id, i) for p in problems for i in range(config.group_size)])


def _answered(sampler: Sampler, task: Task, problems: list[Problem], identities: list[tuple], prompts=None) -> Answers:
    try:
        return answer(sampler, task, problems, identities, prompts)
    except NotFinite as error:
        raise NotFinite(f"RL step {identities[0][1]}: {error}") from error


def _retried(
    sampler: Sampler, task: Task, retry: Retry, drawn: Answers, place: tuple[int, int, int]
) -> tuple[Answers, tuple[float, float, float]]:
    """A draw whose all-wrong groups were retried, right answers in the place of wrong ones; and the shares of its groups that
    were retried and that were rescued, and the tokens that it took.

    As many answers as the draw has are in memory at a time, or one group's.
    """
    assert sampler.perturbed is not None
    size, each, groups = drawn.rollouts.group_size, retry.each, len(drawn.problems)
    wrong = (~groups_of(drawn, sampler).correct.any(dim=1)).nonzero().squeeze(1)
    rescued, tokens, answers = 0, 0, drawn
    for part in wrong.split(max(1, len(drawn.completions) // each)) if len(wrong) else ():
        tries = [(drawn.problems[group], number) for group in part.tolist() for number in range(retry.prompts)]
        prompts = [sampler.perturbed.prompt(p, row_key(*place, p.id, "filler", number)) for p, number in tries]
        identities = [(*place, p.id, "retry", number, i) for p, number in tries for i in range(retry.answers)]
        others = _answered(sampler, task, [problem for problem, _ in tries], identities, prompts)
        found = groups_of(others, sampler)
        taken = rescuers(found.correct.view(-1, each), found.keys.view(-1, each), size)
        source = taken.new_full((groups, size), -1)
        source[part] = (taken + each * torch.arange(len(part), device=taken.device)[:, None]).where(taken >= 0, -1)
        answers = exchanged(answers, others, source.flatten())
        rescued, tokens = rescued + int((taken >= 0).any(dim=1).sum()), tokens + int(found.lengths.sum())
    return answers, (len(wrong) / groups, rescued / groups, float(tokens))


def _retry_figures(retries: list[tuple[float, float, float]], ranks: Ranks) -> dict[str, float]:
    """Means over draws; of the tokens the sum over draws and, as ranks are much alike, over ranks."""
    if not retries:
        return {}
    retried, rescued, tokens = zip(*retries, strict=True)
    means = {"asked_again": sum(retried) / len(retried), "rescued": sum(rescued) / len(rescued)}
    return means | {"retry_tokens": sum(tokens) * ranks.world}


def _off_policy(answers: Answers, carried: Answers | None) -> Tensor | None:
    """(B,) bool: rows that were carried over, which come first, and those that answered another prompt than the problem's."""
    if carried is None and answers.prompt_overrides is None:
        return None
    own = replace(answers, prompt_overrides=None).prompts
    other = torch.tensor([prompt != plain for prompt, plain in zip(answers.prompts, own, strict=True)])
    early = torch.arange(len(other)) < (0 if carried is None else len(carried.completions))
    return (other | early).to(answers.rollouts.mask.device)

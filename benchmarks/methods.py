"""What each method that is compared with GRPO adds to one of its steps: to rollouts, advantages or the update."""

from collections.abc import Callable, Mapping
from functools import partial
from statistics import mean
from time import process_time
from typing import Any

import torch
from torch import Tensor

from benchmarks.arms import Bench, Workload, equal
from benchmarks.measuring import between, timed
from benchmarks.options import Options
from benchmarks.reporting import Table, figures
from ngrpo.algorithm import advantages, groups
from ngrpo.algorithm.bonus import elliptical
from ngrpo.algorithm.inputs import AnswerTokens, Groups
from ngrpo.exploration.base import Exploration
from ngrpo.exploration.param_noise import ParameterNoise
from ngrpo.exploration.rollout_dropout import RolloutDropout
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.models.causal import CausalModel
from ngrpo.rollout.records import Rollouts
from ngrpo.training.reference import Reference
from ngrpo.training.replay import micro_batches, replay

TITLE = "What a method adds to a step"
ROWS = 32  # of a micro-batch
SUCCESS = 0.4  # of an answer, drawn: some groups are then all wrong
CALLS = 100  # of what takes a millisecond
STRATEGIES: Mapping[str, Callable[[], Exploration]] = {
    "rollout_dropout": partial(RolloutDropout, 0.1),
    "param_noise": partial(ParameterNoise, 0, 0.001),
    "token_sampling, beside itself": TokenSampling,
}
WEIGHTS = {
    "f_grpo": partial(groups.focal, gamma=0.5),
    "max_rl": groups.over_success_rate,
    "ucpo": partial(groups.uniform_correct, tau=0.2),
    "boundary_gate": groups.boundary,
}


def measure(options: Options) -> dict[str, Any]:
    """Percent of a step's processor time, of every repeat. Whole steps are paired for what acts on the model; the rest is
    timed by itself in each repeat, beside a step of token sampling."""
    shape = (2, 4) if options.quick else (8, 8)
    work, name = equal(min(options.limit, 64), *shape), "nano" if options.quick else options.model or "50m"
    bench = Bench.load(name, peer=False)
    baseline = _step(bench, TokenSampling(), work)
    calls = {arm: _step(bench, build(), work) for arm, build in STRATEGIES.items()}
    found = between(calls, baseline, options.repeats)
    extra = {arm: [100 * (own.cpu_seconds / base.cpu_seconds - 1) for own, base in found[arm]] for arm in calls}
    bases = [base.cpu_seconds for pairs in found.values() for _, base in pairs]
    rollouts = bench.rollouts(bench.ready(TokenSampling(), work), work)()
    answers = _groups(rollouts, shape, work.limit)
    for arm, call in _alone(bench, rollouts, answers).items():
        repeats = [_seconds(call) for _ in range(options.repeats)]
        extra[arm] = [100 * seconds / mean(bases) for seconds in repeats]
    return {"extra": extra, "seconds": bases, "tokens": int(rollouts.lengths.sum()), "model": name, "shape": shape}


def _step(bench: Bench, strategy: Exploration, work: Workload) -> Callable[[], None]:
    """Rollout, replay, backward pass, AdamW, with a rate of 0, so that all steps draw the same."""
    adam = torch.optim.AdamW(bench.model.parameters(), lr=0.0)
    draw = bench.rollouts(bench.ready(strategy, work), work)

    def call() -> None:
        bench.engine.sync(bench.model, 0, strategy)
        with strategy.perturbed(bench.model):
            rollouts = draw()
        adam.zero_grad()
        for index in micro_batches(rollouts, ROWS):
            part = rollouts.rows(index)
            (replay(bench.model, strategy, part).log_probs * part.loss_mask).mean().backward()
        adam.step()

    return call


def _groups(rollouts: Rollouts, shape: tuple[int, int], limit: int) -> Groups:
    correct = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < SUCCESS
    sums = (rollouts.log_probs * rollouts.loss_mask).sum(dim=1).double().view(shape)
    every = torch.ones_like(correct)
    return Groups(
        correct.double(), correct, rollouts.lengths.view(shape), ~every, sums, every, rollouts.keys.view(shape), limit
    )


def _alone(bench: Bench, rollouts: Rollouts, answers: Groups) -> dict[str, Callable[[], Any]]:
    """What each method computes in addition to a GRPO step, as calls of their own."""
    shaped = advantages.group_normalized(answers.rewards)
    wide = shaped.view(-1, 1).expand(rollouts.loss_mask.shape)
    tokens = AnswerTokens(wide, torch.rand(wide.shape, dtype=wide.dtype), rollouts.loss_mask, answers)
    model: CausalModel = bench.model
    reference, strategy = Reference(model), bench.ready(TokenSampling(), equal(answers.limit, *answers.rewards.shape))

    def bonus() -> Tensor:
        read = answers.correct.any(dim=1, keepdim=True).expand_as(answers.correct).flatten()
        features = reference.features(strategy, rollouts, ROWS, read)
        return elliptical(answers, features.view(*answers.rewards.shape, -1), 0)

    weighed = {arm: partial(reweigh, shaped, answers) for arm, reweigh in WEIGHTS.items()}
    return {**weighed, "rl_zvp": partial(advantages.zero_variance, tokens), "rep_exp": bonus}


def _seconds(call: Callable[[], Any]) -> float:
    """Processor seconds of a call, averaged over many if it is short."""
    once = timed(call).cpu_seconds
    if once > 0.5:
        return once
    began = process_time()
    for _ in range(CALLS):
        call()
    return (process_time() - began) / CALLS


def tables(measured: dict[str, Any]) -> list[Table]:
    """The extra cost of each method."""
    (prompts, group), seconds = measured["shape"], mean(measured["seconds"])
    size = f"{measured['model']}, {prompts} x {group} answers, {measured['tokens']:,} tokens"
    title = f"Processor time beyond a step of grpo with token_sampling ({size}; {seconds:.1f} s)"
    rows = [[name, *figures(values, "+.3f", " %")] for name, values in measured["extra"].items()]
    return [Table(title, ("method", "median", "95 % of it", "middle half", "range"), rows)]

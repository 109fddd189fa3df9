"""Rollouts of two engines side by side: where they differ, and whether they may."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ngrpo.exploration.base import Exploration
from ngrpo.models.causal import CausalModel
from ngrpo.rollout.engines.base import Engine
from ngrpo.rollout.engines.transformers import generate
from ngrpo.rollout.records import DIRICHLET, GAUSSIAN, TOKEN, Rollouts
from ngrpo.training.replay import replay, states

DIFFERING = 16  # one row in so many may have a token that the reference would not draw, where a draw lies at an edge;
DRIFTING = 8  # and one in so many a text that parts from the reference's, as what differs in fed vectors adds up
TOKEN_GAP, DENSITY_GAP = 1e-4, 2e-5  # nats of one step, the second times the square root of the width: 1.3e-5 was seen


@dataclass
class Compared:
    """Rows, those that part from the reference's, tokens up to there, and the largest difference of a log-probability."""

    rows: int
    parted: int
    tokens: int
    gap: float


def compare(ours: Rollouts, theirs: Rollouts) -> Compared:
    """Row by row, up to where the two part."""
    found = Compared(len(theirs.mask), 0, 0, 0.0)
    for row in range(found.rows):
        mine, yours = (r.steps.tokens[row][r.mask[row]].tolist() for r in (ours, theirs))
        same = next(
            (i for i, (a, b) in enumerate(zip(mine, yours, strict=False)) if a != b), min(len(mine), len(yours))
        )
        found.parted += mine != yours
        found.tokens += same
        there = slice(0, same)
        found.gap = max([found.gap, *(ours.log_probs[row, there] - theirs.log_probs[row, there]).abs().tolist()])
        assert torch.equal(ours.steps.role[row, there], theirs.steps.role[row, there])
        assert torch.equal(ours.steps.explored[row, there], theirs.steps.explored[row, there])
    return found


def gaps(model: CausalModel, strategy: Exploration, rollouts: Rollouts) -> tuple[float, float]:
    """The largest |replayed - rollout| of tokens and Gumbel terms, and that of densities."""
    replayed = replay(model, strategy, rollouts, entropy=True)
    assert rollouts.entropy is not None and replayed.entropy is not None
    torch.testing.assert_close(replayed.entropy, rollouts.entropy * rollouts.loss_mask, rtol=0, atol=TOKEN_GAP)
    off = (replayed.log_probs.detach() - rollouts.log_probs).abs()
    dense = torch.isin(rollouts.steps.role, torch.tensor([GAUSSIAN, DIRICHLET]))
    return off.masked_fill(dense, 0).max().item(), off.masked_fill(~dense, 0).max().item()


@torch.no_grad()
def redrawn(model: CausalModel, strategy: Exploration, rollouts: Rollouts) -> Tensor:
    """(B,) bool: rows in which the strategy, shown what the reference model makes of the recorded history, draws another
    token than was recorded at some step."""
    every = replace(rollouts, steps=replace(rollouts.steps, role=torch.full_like(rollouts.steps.role, TOKEN)))
    row, time, before = states(model, strategy, every, model.table)
    logits = model.logits(before)
    state, other = strategy.start(len(rollouts.keys), before.device), torch.zeros(len(rollouts.keys), dtype=torch.bool)
    for position in range(rollouts.mask.shape[1]):
        here, rows = time == position, row[time == position]
        at = {name: value[rows] for name, value in state.items()}
        step, after = strategy.sample(logits[here], at, rollouts.draws[rows, position], model.table)
        other[rows] |= step.tokens != rollouts.steps.tokens[rows, position]
        state = {name: value.index_copy(0, rows, after[name]) for name, value in state.items()}
    return other


def parity(
    engine: Engine, strategy: Exploration, model: CausalModel, prompts, mask, keys, limit: int
) -> tuple[Compared, Rollouts]:
    """The engine, given these weights, held against the reference engine and the replay of what it recorded. Fails where
    they differ by more than they may."""
    engine.sync(model, 0, strategy)
    ours = engine.generate(strategy, prompts, mask, keys, limit)
    with model.gathered():
        theirs = generate(model, strategy, prompts, mask, keys, limit)
    found = compare(ours, theirs)
    assert found.parted <= found.rows / DRIFTING, found
    assert redrawn(model, strategy, ours).sum() <= found.rows / DIFFERING
    token, density = gaps(model, strategy, ours)
    assert token <= TOKEN_GAP and density <= DENSITY_GAP * model.table.shape[1] ** 0.5, (token, density)
    return found, ours

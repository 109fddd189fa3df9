"""What an engine is held against: the reference engine under the same keys, and the replay of what it recorded."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ngrpo.exploration.base import Exploration
from ngrpo.models.causal import CausalModel
from ngrpo.rollout.engines.transformers import generate
from ngrpo.rollout.records import DIRICHLET, GAUSSIAN, TOKEN, Rollouts
from ngrpo.training.replay import replay, states


@dataclass(frozen=True)
class Parity:
    """How far an engine's rollouts are from the reference's.

    rows, tokens  that were drawn, and how many of the steps explored
    parted        rows whose text is another than the reference engine's
    redrawn       rows with a token that the strategy would not draw from what the reference model makes of the same
                  history; fewer than `parted` where what differs in fed vectors adds up over a text
    between       the largest difference of a log-probability to the reference engine's, in rows that did not part
    token_gap     the largest |replayed - rollout| of tokens and Gumbel terms, nats of one step
    density_gap   the same of Gaussian and Dirichlet densities, reference_density_gap that of the reference engine, whose
                  sums over a vector's entries are no more exact
    entropy_gap   the same of the entropy
    """

    rows: int
    tokens: int
    explored: int
    parted: int
    redrawn: int
    between: float
    token_gap: float
    density_gap: float
    reference_density_gap: float
    entropy_gap: float


def parity(
    model: CausalModel, strategy: Exploration, ours: Rollouts, prompts: Tensor, mask: Tensor, limit: int
) -> Parity:
    """Of rollouts that an engine made for these prompts (P, S), of a strategy that is prepared for these weights."""
    theirs = generate(model, strategy, prompts, mask, ours.keys, limit)
    pairs = zip(ours.answer_ids(), theirs.answer_ids(), strict=True)
    parted = torch.tensor([mine != reference for mine, reference in pairs])
    width = min(ours.mask.shape[1], theirs.mask.shape[1])
    off = (ours.log_probs[:, :width] - theirs.log_probs[:, :width]).abs()[~parted]
    token, density, entropy = gaps(model, strategy, ours)
    return Parity(
        rows=len(ours.keys),
        tokens=int(ours.mask.sum()),
        explored=int(ours.steps.explored.sum()),
        parted=int(parted.sum()),
        redrawn=int(redrawn(model, strategy, ours).sum()),
        between=off.max().item() if off.numel() else 0.0,
        token_gap=token,
        density_gap=density,
        reference_density_gap=gaps(model, strategy, theirs)[1],
        entropy_gap=entropy,
    )


def gaps(model: CausalModel, strategy: Exploration, rollouts: Rollouts) -> tuple[float, float, float]:
    """The largest |replayed - rollout| of tokens and Gumbel terms, of densities, and of the entropy, 0 without one."""
    with torch.no_grad():
        replayed = replay(model, strategy, rollouts, entropy=True)
    off, entropy = (replayed.log_probs - rollouts.log_probs).abs(), torch.zeros(1)
    if rollouts.entropy is not None and replayed.entropy is not None:
        entropy = (replayed.entropy - rollouts.entropy * rollouts.loss_mask).abs()
    dense = torch.isin(rollouts.steps.role, torch.tensor([GAUSSIAN, DIRICHLET], device=off.device))
    found = (off.masked_fill(dense, 0), off.masked_fill(~dense, 0), entropy)
    return tuple(values.max().item() for values in found)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def redrawn(model: CausalModel, strategy: Exploration, rollouts: Rollouts) -> Tensor:
    """(B,) bool: rows in which the strategy, shown what this model makes of the recorded history, draws another token
    than was recorded at some step."""
    every = replace(rollouts, steps=replace(rollouts.steps, role=torch.full_like(rollouts.steps.role, TOKEN)))
    row, time, before = states(model, strategy, every, model.table)
    logits, device = model.logits(before), before.device
    state = strategy.start(len(rollouts.keys), device)
    other = torch.zeros(len(rollouts.keys), dtype=torch.bool, device=device)
    for position in range(rollouts.mask.shape[1]):
        here, rows = time == position, row[time == position]
        at = {name: value[rows] for name, value in state.items()}
        step, after = strategy.sample(logits[here], at, rollouts.draws[rows, position], model.table)
        other[rows] |= step.tokens != rollouts.steps.tokens[rows, position]
        state = {name: value.index_copy(0, rows, after[name]) for name, value in state.items()}
    return other

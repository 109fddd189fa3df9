"""How an engine is checked: against the reference engine with the same keys, and against the replay of its rollouts."""

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
    """How far an engine's rollouts are from the reference engine's.

    rows, tokens  that were sampled; explored: how many of the steps explored
    parted        rows whose text differs from the reference engine's
    redrawn       rows with a token that the strategy would not draw given the reference model's logits for the recorded
                  history; fewer than `parted` where small differences in fed vectors add up over a text
    between       largest difference to the reference engine's log-probabilities, in rows that did not part
    token_gap     largest |replayed - rollout| of tokens and Gumbel terms, nats of one step
    density_gap   the same for Gaussian and Dirichlet densities; reference_density_gap that of the reference engine, whose
                  sums over a vector's entries are no more exact
    entropy_gap   the same for the entropy
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
    """Of `ours`, an engine's rollouts for these prompts (P, S); the strategy must be prepared for these weights."""
    theirs = generate(model, strategy, prompts, mask, ours.keys, limit)
    pairs = zip(ours.answer_ids(), theirs.answer_ids(), strict=True)
    parted = torch.tensor([mine != reference for mine, reference in pairs])
    width = min(ours.mask.shape[1], theirs.mask.shape[1])
    between = (ours.log_probs[:, :width] - theirs.log_probs[:, :width]).abs()[~parted]
    token, density, entropy = gaps(model, strategy, ours)
    return Parity(
        rows=len(ours.keys),
        tokens=int(ours.mask.sum()),
        explored=int(ours.steps.explored.sum()),
        parted=int(parted.sum()),
        redrawn=int(redrawn(model, strategy, ours).sum()),
        between=between.max().item() if between.numel() else 0.0,
        token_gap=token,
        density_gap=density,
        reference_density_gap=gaps(model, strategy, theirs)[1],
        entropy_gap=entropy,
    )


def gaps(model: CausalModel, strategy: Exploration, rollouts: Rollouts) -> tuple[float, float, float]:
    """The largest |replayed - rollout| of tokens and Gumbel terms, of densities, and of the entropy (0 without one)."""
    with torch.no_grad():
        replayed = replay(model, strategy, rollouts, entropy=True)
    gap, entropy = (replayed.log_probs - rollouts.log_probs).abs(), torch.zeros(1)
    if rollouts.entropy is not None and replayed.entropy is not None:
        entropy = (replayed.entropy - rollouts.entropy * rollouts.loss_mask).abs()
    dense = torch.isin(rollouts.steps.role, torch.tensor([GAUSSIAN, DIRICHLET], device=gap.device))
    return gap.masked_fill(dense, 0).max().item(), gap.masked_fill(~dense, 0).max().item(), entropy.max().item()


@torch.no_grad()
def redrawn(model: CausalModel, strategy: Exploration, rollouts: Rollouts) -> Tensor:
    """(B,) bool: rows in which the strategy, given this model's logits for the recorded history, draws another token than
    the recorded one at some step."""
    role = torch.full_like(rollouts.steps.role, TOKEN)  # so that inserted text has logits too
    everything = replace(rollouts, steps=replace(rollouts.steps, role=role))
    row, time, before = states(model, strategy, everything, model.table)
    logits, device = model.logits(before), before.device
    state = strategy.start(len(rollouts.keys), device)
    differs = torch.zeros(len(rollouts.keys), dtype=torch.bool, device=device)
    for position in range(rollouts.mask.shape[1]):
        here, rows = time == position, row[time == position]
        at = {name: value[rows] for name, value in state.items()}
        step, after = strategy.sample(logits[here], at, rollouts.draws[rows, position], model.table)
        differs[rows] |= step.tokens != rollouts.steps.tokens[rows, position]
        state = {name: value.index_copy(0, rows, after[name]) for name, value in state.items()}
    return differs

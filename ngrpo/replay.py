"""Log-probabilities of recorded steps under a model's current weights, differentiable, without a (B, T, V) tensor.

It does not know where the records came from. Rows are laid out without left padding, so plain causal attention is all
they need; only real tokens reach the head, in chunks that are recomputed in the backward pass.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ngrpo.exploration.base import Exploration
from ngrpo.models.causal import CausalModel
from ngrpo.rollouts import Rollouts

HEAD_ELEMENTS = 2**24  # logits of one chunk: tokens x vocabulary


def replay(model: CausalModel, strategy: Exploration, rollouts: Rollouts) -> Tensor:
    """(B, T) float32 log-probabilities of the rollouts' steps; 0 where the loss mask is false.

    The fed vectors are rebuilt with this model's own embedding table. Gradients flow into the model and the strategy.
    """
    with model.autocast():
        return _replay(model, strategy, rollouts)


def _replay(model: CausalModel, strategy: Exploration, rollouts: Rollouts) -> Tensor:
    starts = rollouts.prompt_mask.sum(dim=1)
    embeddings = _fed(model, strategy, rollouts, starts)
    positions = torch.arange(embeddings.shape[1], device=embeddings.device).expand(embeddings.shape[:2])
    hidden = model.hidden(embeddings, positions)
    row, time = rollouts.loss_mask.nonzero(as_tuple=True)
    steps = rollouts.steps[row, time]
    before = hidden[row, starts[row] + time - 1]  # the state that a step was drawn from: one column earlier
    chunk = max(1, HEAD_ELEMENTS // len(model.table))

    def log_prob(states: Tensor, start: int) -> Tensor:
        return strategy.log_prob(steps[start : start + chunk], model.logits(states), model.table)

    parts = []
    for start in range(0, max(len(row), 1), chunk):  # an empty batch still runs once: every parameter gets a gradient
        states = before[start : start + chunk]
        recompute = torch.is_grad_enabled() and len(row) > chunk
        parts.append(checkpoint(log_prob, states, start, use_reentrant=False) if recompute else log_prob(states, start))
    flat = torch.cat(parts)
    return flat.new_zeros(rollouts.mask.shape).index_put((row, time), flat)


def _fed(model: CausalModel, strategy: Exploration, rollouts: Rollouts, starts: Tensor) -> Tensor:
    """(B, L, D) fed vectors, each row beginning with its first prompt token; the last token of a row is never fed."""
    row, column = rollouts.prompt_mask.nonzero(as_tuple=True)
    prompt = F.embedding(rollouts.prompts[row, column], model.table)
    column = column - (rollouts.prompt_mask.shape[1] - starts[row])
    answer_row, time = rollouts.mask[:, 1:].nonzero(as_tuple=True)
    answer = strategy.embed(rollouts.steps[answer_row, time], model.table, rollouts.draws[answer_row, time])
    length = int((starts + rollouts.lengths).max()) - 1
    empty = prompt.new_zeros(len(starts), length, prompt.shape[-1])
    empty = empty.index_put((row, column), prompt)
    return empty.index_put((answer_row, starts[answer_row] + time), answer.to(prompt.dtype))


def parts(rollouts: Rollouts, rows: int) -> list[Tensor]:
    """Row indices in micro-batches of at most `rows`, alike in length so that little padding is computed."""
    length = rollouts.lengths + rollouts.prompt_mask.sum(dim=1)
    return list(length.sort(stable=True).indices.split(rows))


@torch.no_grad()
def replay_in_parts(model: CausalModel, strategy: Exploration, rollouts: Rollouts, rows: int) -> Tensor:
    """`replay` without gradient, `rows` at a time."""
    dtype = torch.promote_types(model.table.dtype, torch.float32)
    whole = torch.zeros(rollouts.mask.shape, dtype=dtype, device=rollouts.mask.device)
    for index in parts(rollouts, rows):
        part = rollouts.rows(index)
        whole[index, : part.mask.shape[1]] = replay(model, strategy, part)
    return whole

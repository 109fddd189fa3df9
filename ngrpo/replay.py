"""Log-probabilities of recorded steps under a model's current weights, differentiable, without a (B, T, V) tensor.

It does not know where the records came from. Rows are laid out without left padding, so plain causal attention is all
they need; only real tokens reach the head, in chunks that are recomputed in the backward pass.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ngrpo.exploration import scores
from ngrpo.exploration.base import Exploration
from ngrpo.models.causal import CausalModel
from ngrpo.rollouts import Rollouts

HEAD_ELEMENTS = 2**24  # logits of one chunk: tokens x vocabulary


class Replayed(NamedTuple):
    """What a replay gives, 0 where the loss mask is false; fields that were not asked for are None.

    log_probs      (B, T) of the recorded steps
    entropy        (B, T) nats of softmax(logits), before temperature and filters
    top_log_probs  (B, T, K) log softmax(logits) of the K likeliest tokens
    greedy         (B, T) bool, the realised token is the likeliest
    """

    log_probs: Tensor
    entropy: Tensor | None = None
    top_log_probs: Tensor | None = None
    greedy: Tensor | None = None


def replay(model: CausalModel, strategy: Exploration, rollouts: Rollouts) -> Tensor:
    """(B, T) log-probabilities, float32 at least, of the rollouts' steps; 0 where the loss mask is false."""
    return replay_more(model, strategy, rollouts).log_probs


def replay_more(
    model: CausalModel, strategy: Exploration, rollouts: Rollouts, *, entropy: bool = False, top_k: int = 0
) -> Replayed:
    """Log-probabilities of the rollouts' steps, and what else is asked for.

    The fed vectors are rebuilt with this model's own embedding table. Gradients flow into the model and the strategy.
    """
    with model.autocast():
        row, time, before = states(model, strategy, rollouts)
        steps = rollouts.steps[row, time]
        chunk = max(1, HEAD_ELEMENTS // len(model.table))

        def head(part: Tensor, start: int) -> tuple[Tensor, ...]:
            logits = model.logits(part)
            here = steps[start : start + chunk]
            found = [strategy.log_prob(here, logits, model.table)]
            if entropy:
                found.append(scores.entropy(logits))
            if top_k:
                top = logits.log_softmax(dim=-1).topk(top_k, dim=-1)
                found += [top.values, top.indices[:, 0] == here.tokens]
            return tuple(found)

        pieces = []
        # An empty batch still runs once, so that every parameter gets a gradient.
        for start in range(0, max(len(row), 1), chunk):
            part = before[start : start + chunk]
            recompute = torch.is_grad_enabled() and len(row) > chunk
            pieces.append(checkpoint(head, part, start, use_reentrant=False) if recompute else head(part, start))
    flat = [torch.cat(column) for column in zip(*pieces, strict=True)]
    log_probs, *rest = (v.new_zeros(*rollouts.mask.shape, *v.shape[1:]).index_put((row, time), v) for v in flat)
    return Replayed(log_probs, rest.pop(0) if entropy else None, *rest)


def states(
    model: CausalModel, strategy: Exploration, rollouts: Rollouts, *, learn_fed: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and times (N,) of the steps that count, and the hidden states (N, D) that they were drawn from.

    learn_fed=False keeps gradients out of the embedding table and the strategy.
    """
    starts = rollouts.prompt_mask.sum(dim=1)
    with torch.set_grad_enabled(learn_fed and torch.is_grad_enabled()):
        embeddings = _fed(model, strategy, rollouts, starts)
    positions = torch.arange(embeddings.shape[1], device=embeddings.device).expand(embeddings.shape[:2])
    hidden = model.hidden(embeddings, positions)
    row, time = rollouts.loss_mask.nonzero(as_tuple=True)
    return row, time, hidden[row, starts[row] + time - 1]  # one column earlier: the state before the step


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

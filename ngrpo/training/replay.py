"""Log-probabilities of recorded steps under a model's current weights, differentiable, without a (B, T, V) tensor.

Every token is read once, without padding, and rows of one prompt share it;
only tokens that count reach the head, in chunks that are recomputed in the backward pass.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ngrpo.exploration import scores
from ngrpo.exploration.base import Exploration
from ngrpo.models.attention import Masks, PackedRows, common_prefix
from ngrpo.models.causal import CausalModel, chunk_tokens, read_logits
from ngrpo.rollout.records import GAUSSIAN, Rollouts


class Replayed(NamedTuple):
    """What a replay gives, 0 where the loss mask is false; fields that were not asked for are None.

    log_probs      (B, T) of the recorded steps
    entropy        (B, T) nats of softmax(logits), or, where that is asked for, of softmax(logits / temperature)
    top_log_probs  (B, T, K) its logarithm at the K likeliest tokens
    greedy         (B, T) bool, the text token is the likeliest
    hidden         (B, T, D) the states that the steps were drawn from
    """

    log_probs: Tensor
    entropy: Tensor | None = None
    top_log_probs: Tensor | None = None
    greedy: Tensor | None = None
    hidden: Tensor | None = None


def replay(
    model: CausalModel,
    strategy: Exploration,
    rollouts: Rollouts,
    *,
    entropy: bool = False,
    top_k: int = 0,
    hidden: bool = False,
    tempered: bool = False,
) -> Replayed:
    """Log-probabilities, float32 at least, of the rollouts' steps, and what else is asked for.

    The fed vectors are rebuilt with this model's own embedding table. Gradients flow into the model and the strategy.
    tempered: entropy and likeliest tokens at the temperature that text tokens are drawn at, without their filters.
    """
    with model.autocast():
        table = model.table
        row, time, before = states(model, strategy, rollouts, table)
        steps = rollouts.steps[row, time]
        chunk = chunk_tokens(len(table), table.device.type)

        def reading(logits: Tensor, start: int) -> tuple[Tensor, ...]:
            here = steps[start : start + chunk]
            found = [strategy.log_prob(here, logits, table)]
            if tempered and (entropy or top_k):
                logits = logits / strategy.temperature_of(here)
            if entropy:
                found.append(scores.entropy(logits))
            if top_k:
                top = logits.log_softmax(dim=-1).topk(top_k, dim=-1)
                found += [top.values, top.indices[:, 0] == here.tokens]
            return tuple(found)

        learners = [table] if GAUSSIAN in steps.role else []  # a density around the expected embedding
        flat = read_logits(model, before, chunk, reading, [*learners, *strategy.parameters()])
    flat = (*flat, before) if hidden else flat
    log_probs, *rest = (v.new_zeros(*rollouts.mask.shape, *v.shape[1:]).index_put((row, time), v) for v in flat)
    names = ["entropy"] * entropy + ["top_log_probs", "greedy"] * bool(top_k) + ["hidden"] * hidden
    return Replayed(log_probs, **dict(zip(names, rest, strict=True)))


def states(
    model: CausalModel, strategy: Exploration, rollouts: Rollouts, table: Tensor, *, learn_fed: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and times (N,) of the steps that count, and the hidden states (N, D) that they were drawn from.

    table: the model's (V, D), read by the caller. learn_fed=False keeps gradients out of the embedding table and the strategy.
    """
    line = PackedBatch.of(rollouts)
    with torch.set_grad_enabled(learn_fed and torch.is_grad_enabled()):
        prompt = F.embedding(line.prompt_ids, table)
        steps, draws = rollouts.steps[line.row, line.time], rollouts.draws[line.row, line.time]
        fed = torch.cat((prompt, strategy.embed(steps, table, draws).to(prompt.dtype)))
    layout, masks = line.layout, strategy.masks(rollouts.keys, *model.attended)
    if masks is not None:
        layout = replace(layout, masks=Masks.of_answers(masks, line.row, len(line.prompt_ids)))
    hidden = model.hidden(fed[None], line.positions[None], layout)[0]
    row, time = rollouts.loss_mask.nonzero(as_tuple=True)
    return row, time, hidden[line.layout.tokens[row, line.starts[row] + time - 1]]  # the state before the step


@dataclass(frozen=True)
class PackedBatch:
    """All that a model must read to replay rollouts, each token once: what all prompts begin with, what follows in each
    distinct one, then all fed answer tokens.

    prompt_ids  (M,) the prompts' tokens
    row, time   (A,) where the fed answer tokens stand in the rollouts; the last of a row is never fed
    positions   (M + A,) of each token in its row
    starts      (B,) prompt lengths: the column of each row's first answer token
    layout      the rows that these tokens make
    """

    prompt_ids: Tensor
    row: Tensor
    time: Tensor
    positions: Tensor
    starts: Tensor
    layout: PackedRows

    @classmethod
    def of(cls, rollouts: Rollouts) -> "PackedBatch":
        """Neighboring rows with the same prompt share it."""
        starts, prompt_of = rollouts.prompt_mask.sum(dim=1), prompts_of(rollouts)
        first = F.pad(prompt_of[1:] != prompt_of[:-1], (1, 0), value=True)  # rows whose prompt is read
        shared = common_prefix(rollouts.prompts[first], rollouts.prompt_mask[first])
        owner, column = (rollouts.prompt_mask & first[:, None]).nonzero(as_tuple=True)
        place = column - (rollouts.prompt_mask.shape[1] - starts[owner])
        read = (owner == 0) | (place >= shared)  # the first row's prompt stands for all where they are the same
        owner, column, place = owner[read], column[read], place[read]
        row, time = rollouts.mask[:, 1:].nonzero(as_tuple=True)
        answers = rollouts.lengths - 1
        own = starts[first] - shared
        prompt_at = (own.cumsum(dim=0) - own)[prompt_of]
        answer_at = len(owner) + answers.cumsum(dim=0) - answers
        columns = torch.arange(int((starts + answers).max()), device=starts.device)
        in_prompt, beyond = columns < starts[:, None], columns - starts[:, None]
        prompt_at = torch.where(columns < shared, 0, prompt_at[:, None])
        tokens = torch.where(in_prompt, prompt_at + columns, answer_at[:, None] + beyond)
        tokens = tokens.where(beyond < answers[:, None], 0)
        positions = torch.cat((place, starts[row] + time))
        places = torch.cat((owner, row)) * len(columns) + positions
        ids = rollouts.prompts[owner, column]
        return cls(ids, row, time, positions, starts, PackedRows(tokens, places, shared))


def prompts_of(rollouts: Rollouts) -> Tensor:
    """(B,) int64: rows with the same number have the same prompt and stand together."""
    ids = rollouts.prompts.masked_fill(~rollouts.prompt_mask, -1)
    return F.pad((ids[1:] != ids[:-1]).any(dim=1).cumsum(dim=0), (1, 0))


def micro_batches(rollouts: Rollouts, rows: int) -> list[Tensor]:
    """Row indices in micro-batches of at most `rows`: rows of one prompt together, prompts with answers alike in length."""
    length, prompt = rollouts.lengths + rollouts.prompt_mask.sum(dim=1), prompts_of(rollouts)
    longest = length.new_zeros(len(length)).scatter_reduce(0, prompt, length, "amax")[prompt]
    return list(longest.sort(stable=True).indices.split(rows))


@torch.no_grad()
def replay_in_micro_batches(
    model: CausalModel, strategy: Exploration, rollouts: Rollouts, rows: int, *, entropy: bool = False, **options: bool
) -> Replayed:
    """Log-probabilities, and entropy where it is asked for, without gradient, `rows` at a time; options of `replay`."""
    dtype, names = torch.promote_types(model.head.dtype, torch.float32), ["log_probs"] + ["entropy"] * entropy
    results = {name: torch.zeros(rollouts.mask.shape, dtype=dtype, device=rollouts.mask.device) for name in names}
    for index in micro_batches(rollouts, rows):
        part = rollouts.rows(index)
        found = replay(model, strategy, part, entropy=entropy, **options)
        for name, values in results.items():
            values[index, : part.mask.shape[1]] = getattr(found, name)
    return Replayed(**results)

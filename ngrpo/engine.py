"""Decoding with fed vectors over an unmodified model: prefill once per prompt, fan out to the group, decode, compact.

It knows neither strategy names nor text nor rewards. Four functions in reading order: `prefill`, `decode_step`,
`generate`, and `assemble`, which turns the recorded steps into Rollouts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from ngrpo.exploration.base import Exploration, State
from ngrpo.exploration.scores import entropy
from ngrpo.keys import Draws
from ngrpo.models.causal import CausalModel
from ngrpo.rollouts import FORCED, Rollouts, Step, neutral, stack_steps

BUCKET = 32  # keys seen by a decode step: rounded up to a multiple, so that shapes repeat
COMPACT_BELOW = 0.75  # finished rows leave once fewer than this share of the batch is unfinished
DRAW_BLOCK = 256  # decode steps whose uniforms are made in one go
SYNC_EVERY = 16  # decode steps between two looks at unfinished rows on an accelerator; a CPU looks at every one


class _Layer(CacheLayerMixin):
    """Keys and values of one layer in a buffer of fixed capacity, of which `window` columns are shown to attention."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self.length, self.window = capacity, 0, capacity

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads, _, width = key_states.shape
        self.keys = key_states.new_zeros(rows, heads, self.capacity, width)
        self.values = value_states.new_zeros(rows, heads, self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, : self.window], self.values[:, :, : self.window]

    def select(self, rows: Tensor) -> None:
        """Keep `rows` (a row may be named several times) in a fresh buffer."""
        assert self.keys is not None and self.values is not None
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(len(rows), *old.shape[1:])
            new[:, :, : self.length] = old[:, :, : self.length].index_select(0, rows)
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.window, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity


class KeyValueCache(Cache):
    """The model's cache: one preallocated buffer per layer, and which of its columns each row may look at."""

    def __init__(self, layers: int, prompt_mask: Tensor, new_tokens: int):
        width = prompt_mask.shape[1]
        capacity = -(-(width + new_tokens) // BUCKET) * BUCKET
        super().__init__(layers=[_Layer(capacity) for _ in range(layers)])
        self.visible = torch.zeros(len(prompt_mask), capacity, dtype=torch.bool, device=prompt_mask.device)
        self.visible[:, :width] = prompt_mask
        self.visible[:, width:] = True  # answer columns; those not yet written are cut off by the window and `open`
        self.positions = prompt_mask.sum(dim=1)  # of the next token, per row

    def open(self, tokens: int) -> Tensor:
        """Make room for `tokens` more columns and return their mask (rows, 1, tokens, window)."""
        length = self.get_seq_length()
        window = min(-(-(length + tokens) // BUCKET) * BUCKET, self.visible.shape[1])
        for layer in self.layers:
            layer.window = window  # pyright: ignore[reportAttributeAccessIssue]
        columns = torch.arange(window, device=self.visible.device)
        queries = length + torch.arange(tokens, device=self.visible.device)
        causal = columns[None] <= queries[:, None]
        own = columns[None] == queries[:, None]  # padding looks at itself, so that no row of attention is empty
        return ((self.visible[:, None, :window] & causal) | own)[:, None]

    def select(self, rows: Tensor) -> None:
        for layer in self.layers:
            layer.select(rows)  # pyright: ignore[reportAttributeAccessIssue]
        self.visible, self.positions = self.visible[rows], self.positions[rows]


def prefill(model: CausalModel, prompts: Tensor, prompt_mask: Tensor, new_tokens: int) -> tuple[Tensor, KeyValueCache]:
    """Logits (P, V) after the prompts (P, S) and the cache that holds them, with room for `new_tokens`."""
    cache = KeyValueCache(model.model.config.num_hidden_layers, prompt_mask, new_tokens)
    positions = (prompt_mask.cumsum(dim=1) - 1).clamp(min=0)
    embeddings = torch.nn.functional.embedding(prompts, model.table)
    hidden = model.hidden(embeddings, positions, cache.open(prompts.shape[1]), cache)
    return model.logits(hidden[:, -1]), cache


def decode_step(model: CausalModel, fed: Tensor, cache: KeyValueCache) -> Tensor:
    """Logits (B, V) after feeding one vector (B, D) per row."""
    hidden = model.hidden(fed[:, None], cache.positions[:, None], cache.open(1), cache)
    cache.positions = cache.positions + 1
    return model.logits(hidden[:, -1])


@torch.no_grad()
def generate(
    model: CausalModel,
    strategy: Exploration,
    prompts: Tensor,
    prompt_mask: Tensor,
    keys: Tensor,
    max_new_tokens: int,
) -> Rollouts:
    """Rollouts of B = len(keys) rows for P prompts (P, S), left-padded; rows of one prompt stand together.

    Every row ends with a stop token of the strategy's vocabulary or at max_new_tokens. The model should be in eval mode.
    Raises rollouts.NotFinite where logits were not finite.
    """
    with model.autocast():
        logits, cache = prefill(model, prompts, prompt_mask, max_new_tokens)
        fan = torch.arange(len(prompts), device=prompts.device).repeat_interleave(len(keys) // len(prompts))
        cache.select(fan)
        batch = _decode(model, strategy, logits[fan], cache, keys, max_new_tokens)
    return assemble(batch, prompts[fan], prompt_mask[fan], keys, len(keys) // len(prompts))


def _decode(
    model: CausalModel, strategy: Exploration, logits: Tensor, cache: KeyValueCache, keys: Tensor, limit: int
) -> "_Batch":
    """The loop of `generate`, from the first logits (B, V) on."""
    device = logits.device
    batch = _Batch(len(keys), strategy.start(len(keys), device), device)
    stops = torch.tensor(strategy.vocabulary.stops, device=device)
    sync_every = 1 if device.type == "cpu" else SYNC_EVERY
    block = draws_from(keys, 0)
    for position in range(limit):
        if position and position % DRAW_BLOCK == 0:
            block = draws_from(keys, position)
        draws = block[batch.rows, position % DRAW_BLOCK]
        step, batch.state = strategy.sample(logits, batch.state, draws, model.table)
        batch.record(step, strategy.log_prob(step, logits, model.table), entropy(logits), stops)
        if position + 1 == limit:
            break
        fed = strategy.embed(step, model.table, draws)
        keep = batch.shrink() if (position + 1) % sync_every == 0 else None
        if keep is not None:
            if not len(keep):
                break
            fed = fed[keep]
            cache.select(keep)
        logits = decode_step(model, fed, cache)
    return batch


def draws_from(keys: Tensor, position: int) -> Draws:
    """The random numbers (B, DRAW_BLOCK) of every row from one decode position on, uniforms made in one go."""
    steps = torch.arange(position, position + DRAW_BLOCK, device=keys.device)
    return Draws(keys[:, None], steps[None]).made()


class _Batch:
    """The rows still being decoded, and what was recorded since rows last left."""

    def __init__(self, rows: int, state: State, device: torch.device):
        self.rows = torch.arange(rows, device=device)
        self.finished = torch.zeros(rows, dtype=torch.bool, device=device)
        self.state = state
        self.segments: list[tuple[Tensor, list[tuple[Step, Tensor, Tensor, Tensor]]]] = [(self.rows, [])]

    def record(self, step: Step, log_prob: Tensor, entropies: Tensor, stops: Tensor) -> None:
        log_prob = log_prob.masked_fill(step.role == FORCED, 0)
        self.segments[-1][1].append((step, log_prob, entropies, ~self.finished))
        self.finished = self.finished | torch.isin(step.tokens, stops)

    def shrink(self) -> Tensor | None:
        """Indices of the rows to keep, if it is time for the finished ones to leave."""
        keep = (~self.finished).nonzero().squeeze(-1)
        if len(keep) and len(keep) > COMPACT_BELOW * len(self.rows):
            return None
        self.rows, self.finished = self.rows[keep], self.finished[keep]
        self.state = {name: value[keep] for name, value in self.state.items()}
        self.segments.append((self.rows, []))
        return keep


def assemble(batch: _Batch, prompts: Tensor, prompt_mask: Tensor, keys: Tensor, group: int) -> Rollouts:
    """One (B, T) record from the segments between which rows left the batch."""
    segments = [(rows, steps) for rows, steps in batch.segments if steps]
    length = sum(len(steps) for _, steps in segments)
    parts = [stack_steps([step for step, *_ in steps]) for _, steps in segments]
    others = [[torch.stack(column, dim=1) for column in list(zip(*steps, strict=True))[1:]] for _, steps in segments]
    rows = [rows for rows, _ in segments]

    def place(name: str, values: Sequence[Tensor | None]) -> Tensor | None:
        like = next((value for value in values if value is not None), None)
        if like is None:
            return None
        whole = like.new_zeros(len(keys), length, *like.shape[2:])
        start = 0
        for index, part, value, mask in zip(rows, parts, values, masks, strict=True):
            value = neutral(name, part, like) if value is None else value
            whole[index, start : start + mask.shape[1]] = value * mask.view(*mask.shape, *[1] * (value.dim() - 2))
            start += mask.shape[1]
        return whole

    log_probs, entropies, masks = ([columns[i] for columns in others] for i in range(3))
    fields = Step.__dataclass_fields__
    steps = Step(**{name: place(name, [getattr(part, name) for part in parts]) for name in fields})  # pyright: ignore
    mask, log_probs, entropy = place("mask", masks), place("log_probs", log_probs), place("entropy", entropies)
    assert mask is not None and log_probs is not None and entropy is not None
    return Rollouts(prompts, prompt_mask, steps, mask, log_probs, entropy, keys, group)

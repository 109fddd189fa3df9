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
from ngrpo.models.attention import Kernel
from ngrpo.models.causal import CausalModel
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import FORCED, Rollouts, Step, neutral, stack_steps

COMPACT_BELOW = 0.95  # finished rows leave once fewer than this share of the batch is unfinished
DRAW_BLOCK = 64  # decode steps whose uniforms are made in one go
SYNC_EVERY = 16  # decode steps between two looks at unfinished rows on an accelerator; a CPU looks at every one


class _Layer(CacheLayerMixin):
    """Keys and values of one layer: those of the prompts, once per prompt, and those of the answers so far.

    prompt_keys, prompt_values (P, H', S, d), padded on the right; keys, values (B, H', capacity, d), of which `length`
    columns are filled.
    """

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self.length = capacity, 0
        self.prompt_keys: Tensor | None = None
        self.prompt_values: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Room for the answers, at the first of their tokens."""
        self.keys, self.values = (
            states.new_zeros(*states.shape[:2], self.capacity, states.shape[3]) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if self.prompt_keys is None:
            self.prompt_keys, self.prompt_values = key_states.contiguous(), value_states.contiguous()
            return key_states, value_states
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        rows, end = len(key_states), self.length + 1
        self.keys[:rows, :, self.length : end] = key_states
        self.values[:rows, :, self.length : end] = value_states
        self.length = end
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    def select(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was. Only rows that move are copied: none may be read after it was written."""
        if self.keys is None or self.values is None:
            return
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero().squeeze(-1)
        for states in (self.keys, self.values):
            states[moved, :, : self.length] = states[rows[moved], :, : self.length]

    def select_prompts(self, prompts: Tensor) -> None:
        assert self.prompt_keys is not None and self.prompt_values is not None
        self.prompt_keys, self.prompt_values = self.prompt_keys[prompts], self.prompt_values[prompts]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity


class KeyValueCache(Cache):
    """The model's cache, and the layout of a decode step: every row sees its prompt, held once, and its own answer.

    slots (B,) says which place of the grid (P, G) of prompts and their rows each row has; None: row after row, all there.
    """

    def __init__(self, layers: int, prompt_mask: Tensor, new_tokens: int):
        super().__init__(layers=[_Layer(new_tokens) for _ in range(layers)])
        self.lengths = prompt_mask.sum(dim=1)
        self.fan_out(1)

    def fan_out(self, group: int) -> None:
        """From now on `group` rows stand for each prompt, side by side."""
        self.group = group
        self.slots: Tensor | None = None
        self.positions = self.lengths.repeat_interleave(group)  # of the next token, per row
        columns = torch.arange(int(self.lengths.max()), device=self.lengths.device)
        self.hidden_columns = (columns >= self.lengths[:, None])[:, None, None]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, whole: Kernel) -> Tensor:
        """One softmax over the prompt's keys, multiplied for all rows of a prompt at once, and the row's own.

        Query heads that share keys are rows of one matrix, so nothing is repeated for them either.
        """
        prompt = self.layers[layer]
        assert isinstance(prompt, _Layer) and prompt.prompt_keys is not None and prompt.prompt_values is not None
        rows, heads, _, width = query.shape
        query = query.view(rows, key.shape[1], heads // key.shape[1], width)
        shared = self._grid(query) @ prompt.prompt_keys.mT
        shared = self._rows(shared.masked_fill_(self.hidden_columns, -torch.inf), query.shape[2])
        scores = torch.cat((shared, query @ key.mT), dim=-1)
        # In float32 whatever the model runs in: the weights of long answers are small.
        weights = (scores.float() if scores.dtype.itemsize < 4 else scores).mul_(scale).softmax(dim=-1).to(value.dtype)
        length = shared.shape[-1]
        mixed = self._rows(self._grid(weights[..., :length]) @ prompt.prompt_values, query.shape[2])
        return (mixed + weights[..., length:] @ value).reshape(rows, heads, 1, width)

    def _grid(self, rows: Tensor) -> Tensor:
        """(P, H', G * h, x) of (B, H', h, x): all that is multiplied with the same prompt as one matrix."""
        if self.slots is not None:
            places = len(self.lengths) * self.group
            rows = rows.new_zeros(places, *rows.shape[1:]).index_copy(0, self.slots, rows)
        return rows.view(-1, self.group, *rows.shape[1:]).transpose(1, 2).flatten(2, 3)

    def _rows(self, grid: Tensor, shared: int) -> Tensor:
        """(B, H', h, x) of (P, H', G * h, x), with h = shared."""
        rows = grid.unflatten(2, (self.group, shared)).transpose(1, 2).flatten(0, 1)
        return rows if self.slots is None else rows.index_select(0, self.slots)

    def select(self, rows: Tensor) -> None:
        """Keep `rows`: those below len(rows) in their places, the others in the gaps. Prompts without rows leave too."""
        for layer in self.layers:
            layer.select(rows)  # pyright: ignore[reportAttributeAccessIssue]
        slots = torch.arange(len(self.positions), device=rows.device) if self.slots is None else self.slots
        self.slots, self.positions = slots[rows], self.positions[rows]
        live, prompt = (self.slots // self.group).unique(return_inverse=True)
        if len(live) <= COMPACT_BELOW * len(self.lengths):
            self.lengths, self.hidden_columns = self.lengths[live], self.hidden_columns[live]
            self.slots = prompt * self.group + self.slots % self.group
            for layer in self.layers:
                layer.select_prompts(live)  # pyright: ignore[reportAttributeAccessIssue]


def prefill(model: CausalModel, prompts: Tensor, prompt_mask: Tensor, new_tokens: int) -> tuple[Tensor, KeyValueCache]:
    """Logits (P, V) after the left-padded prompts (P, S) and the cache that holds them, with room for `new_tokens`."""
    cache = KeyValueCache(model.model.config.num_hidden_layers, prompt_mask, new_tokens)
    columns = torch.arange(int(cache.lengths.max()), device=prompts.device).expand(len(prompts), -1)
    source = columns + (prompts.shape[1] - cache.lengths)[:, None]  # padded on the right, where no query looks
    ids = prompts.gather(1, source.clamp(max=prompts.shape[1] - 1))
    hidden = model.hidden(torch.nn.functional.embedding(ids, model.table), columns, None, cache)
    return model.logits(hidden[torch.arange(len(prompts), device=prompts.device), cache.lengths - 1]), cache


def decode_step(model: CausalModel, fed: Tensor, cache: KeyValueCache) -> Tensor:
    """Logits (B, V) after feeding one vector (B, D) per row."""
    hidden = model.hidden(fed[:, None], cache.positions[:, None], cache, cache)
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
        cache.fan_out(len(keys) // len(prompts))
        fan = torch.arange(len(prompts), device=prompts.device).repeat_interleave(cache.group)
        batch = _decode(model, strategy, logits[fan], cache, keys, max_new_tokens)
    return assemble(batch, prompts[fan], prompt_mask[fan], keys, cache.group)


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
        step, log_prob, batch.state = strategy.sample_and_log_prob(logits, batch.state, draws, model.table)
        batch.record(step, log_prob, entropy(logits), stops)
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
        """Indices of the rows to keep, if it is time for the finished ones to leave: the last rows fill their gaps."""
        alive = (~self.finished).nonzero().squeeze(-1)
        if len(alive) and len(alive) > COMPACT_BELOW * len(self.rows):
            return None
        keep = torch.arange(len(alive), device=alive.device)
        keep[self.finished[: len(alive)]] = alive[alive >= len(alive)]
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

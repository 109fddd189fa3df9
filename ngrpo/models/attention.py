"""Attention for a stock model whose rows share prompts: linear layers see each token once, attention sees whole rows.

A layout says which tokens see each other. It is handed through the model, as an argument that transformers passes on to
the attention function, and arrives here. There are two: `PackedRows`, whole rows in one pass, and `KeyValueCache`, rows
that grow by one token at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

# Causal attention of whole rows: queries (B, H, L, d), keys and values (B, H', L, d) with H a multiple of H'.
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


SPARSE = 0.95  # prompts without rows leave once fewer than this share of them have any


class Layout(Protocol):
    """Which queries look at which keys, where that is more than one plain row after another."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, whole: Kernel) -> Tensor:
        """(B, H, L, d) for the queries (B, H, L, d) of a layer and the keys and values (B, H', L', d) that it has made."""
        ...


@dataclass(frozen=True)
class PackedRows:
    """N tokens in one line that make B rows of at most L tokens; a token may stand in several rows, which share it.

    tokens  (B, L) int64: which token stands at each place of a row; padding on the right names any
    places  (N,) int64: one place of each token, counted through the flattened rows
    """

    tokens: Tensor
    places: Tensor

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, whole: Kernel) -> Tensor:
        mixed = whole(self._rows(query), self._rows(key), self._rows(value)).transpose(1, 2)
        return mixed.flatten(0, 1).index_select(0, self.places).transpose(0, 1)[None]

    def _rows(self, packed: Tensor) -> Tensor:
        """(B, H, L, d) of (1, H, N, d)."""
        line = packed[0].transpose(0, 1).index_select(0, self.tokens.flatten())
        return line.view(*self.tokens.shape, *line.shape[1:]).transpose(1, 2)


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
        self.padding_mask = (columns >= self.lengths[:, None])[:, None, None]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, whole: Kernel) -> Tensor:
        """One softmax over the prompt's keys, multiplied for all rows of a prompt at once, and the row's own.

        Query heads that share keys are rows of one matrix, so nothing is repeated for them either.
        """
        prompt = self.layers[layer]
        assert isinstance(prompt, _Layer) and prompt.prompt_keys is not None and prompt.prompt_values is not None
        rows, heads, _, width = query.shape
        query = query.view(rows, key.shape[1], heads // key.shape[1], width)
        shared = self._grid(query) @ prompt.prompt_keys.mT
        shared = self._rows(shared.masked_fill_(self.padding_mask, -torch.inf), query.shape[2])
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
        if len(live) <= SPARSE * len(self.lengths):
            self.lengths, self.padding_mask = self.lengths[live], self.padding_mask[live]
            self.slots = prompt * self.group + self.slots % self.group
            for layer in self.layers:
                layer.select_prompts(live)  # pyright: ignore[reportAttributeAccessIssue]


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    layout: Layout | None = None,
    **ignored: object,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer; without a layout, rows are plain and padded on the right."""

    def whole(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shared = query.shape[1] != key.shape[1]  # keys and values are never copied for the query heads that share them
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=shared)

    if layout is None:  # noqa: SIM108
        mixed = whole(query, key, value)
    else:
        mixed = layout.attend(module.layer_idx, query, key, value, scaling, whole)
    return mixed.transpose(1, 2), None


NAME = "ngrpo"  # under which transformers knows it; it makes no masks for such names, and none are needed
AttentionInterface.register(NAME, attention)

"""Attention for a transformers model whose rows share prompts: linear layers see each token once, attention whole rows.

A layout says which tokens see each other. It is passed to the model as a keyword argument, which transformers passes on to
the attention function here. There are two: `PackedRows`, whole rows in one forward pass, and `KeyValueCache`, rows that grow
by one token at a time.

With a sliding window of w tokens a query sees its own token and the w - 1 before it, counted in the row. `PackedRows` masks
the others; `KeyValueCache` leaves out early columns of the answers and masks those of the prompts. Rows of at most w tokens
are computed as without a window.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.cache_utils import Cache

SPARSE = 0.95  # prompts without rows are dropped once fewer than this share of the prompts have any
# Tokens from which on a prefix that all prompts share (worked examples, an instruction) is held once: what chat templates
# write before the first message is shorter, and sharing that would change the rounding of runs for no gain.
SHARED_FROM = 32


@dataclass(frozen=True)
class LayerAttention:
    """How one layer attends: softmax(cap(scale * query @ key)) over the keys of a window.

    window   tokens that a query sees, its own included; None: all before it
    softcap  c of c * tanh(score / c), with which Gemma 2 bounds its scores; None: they are not bounded
    """

    layer: int
    scale: float
    window: int | None = None
    softcap: float | None = None

    def whole_rows(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, H, M, d) for the queries (B, H, M, d) of the last M tokens, keys and values (B, H', L, d) of all L tokens; rows
        are padded on the right."""
        last, length = query.shape[2], key.shape[2]
        if self.softcap is not None:
            return self._capped_rows(query, key, value)
        # Keys and values are never copied for the query heads that share them.
        options: dict[str, Any] = {"scale": self.scale, "enable_gqa": query.shape[1] != key.shape[1]}
        if last == length and (self.window is None or length <= self.window):
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, **options)
        mask = self._visible(last, length, query.device)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)

    def capped(self, scores: Tensor) -> Tensor:
        """Unscaled scores after the soft cap, unscaled again; the same shape."""
        if self.softcap is None:
            return scores
        return (scores * (self.scale / self.softcap)).tanh() * (self.softcap / self.scale)

    def weights(self, scores: Tensor) -> Tensor:
        """Softmax of unscaled scores, in float32 whatever the model's dtype: the weights of long answers are small."""
        return (scores.float() if scores.dtype.itemsize < 4 else scores).mul_(self.scale).softmax(dim=-1)

    def _visible(self, last: int, length: int, device: torch.device) -> Tensor:
        """(M, L) bool: which of L keys each of the last M queries sees."""
        causal = torch.ones(last, length, dtype=torch.bool, device=device).tril(length - last)
        return causal if self.window is None else causal.triu(length - last + 1 - self.window)

    def _capped_rows(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # No kernel of torch has a soft cap, so the scores (M, L) are materialized.
        groups = query.unflatten(1, (key.shape[1], -1))
        scores = self.capped(groups @ key[:, :, None].mT)
        visible = self._visible(query.shape[2], key.shape[2], query.device)
        weights = self.weights(scores.masked_fill(~visible, -torch.inf))
        return (weights.to(value.dtype) @ value[:, :, None]).flatten(1, 2)


@dataclass(frozen=True)
class Masks:
    """Factors for the output of attention, applied before it is projected.

    values  (R, layers, H * d)
    rows    (N,) int64: which of the R values each token takes; None: there is one for each token, in order
    """

    values: Tensor
    rows: Tensor | None = None

    @classmethod
    def of_answers(cls, values: Tensor, rows: Tensor, prompt: int) -> "Masks":
        """For `prompt` tokens, which stay as they are, and a token after them for each of `rows`."""
        ones = torch.ones_like(values[:1])
        return cls(torch.cat((ones, values)), F.pad(rows + 1, (prompt, 0)))

    def apply(self, layer: int, output: Tensor) -> Tensor:
        """The output of attention (B, L, H, d), N tokens in all, times their values; in its dtype."""
        values = self.values[:, layer] if self.rows is None else self.values[:, layer].index_select(0, self.rows)
        return output * values.to(output.dtype).view_as(output)


def common_prefix(prompts: Tensor, mask: Tensor) -> int:
    """Number of tokens that all left-padded prompts (P, S) begin with, a prompt's last token excepted; 0 where they are few.

    mask: (P, S) bool, true on the prompts' tokens.
    """
    lengths = mask.sum(dim=1)
    columns = torch.arange(int(lengths.min()) - 1, device=prompts.device)
    ids = prompts.gather(1, columns + (prompts.shape[1] - lengths)[:, None])
    shared = int((ids == ids[0]).all(dim=0).cumprod(dim=0).sum())
    return shared if shared >= SHARED_FROM and len(prompts) > 1 else 0


@dataclass(frozen=True)
class PackedRows:
    """N packed tokens that make up B rows of at most L tokens; several rows may share a token.

    tokens  (B, L) int64: which packed token stands at each place of a row; any one in the padding on the right
    places  (N,) int64: one place of each token, an index into the flattened rows
    shared  C: all rows begin with the first C packed tokens, whose attention is computed once and not in every row
    masks   of the tokens
    """

    tokens: Tensor
    places: Tensor
    shared: int = 0
    masks: Masks | None = None

    @classmethod
    def of_prompts(cls, prompts: int, length: int, shared: int, device: torch.device) -> "PackedRows":
        """Prompts (P, L) whose first `shared` tokens are the same: these once, then the rest of each prompt."""
        grid = torch.arange(prompts * length, device=device).view(prompts, length)
        places = torch.cat((grid[0, :shared], grid[:, shared:].flatten()))
        own = torch.arange(shared, len(places), device=device).view(prompts, -1)
        return cls(torch.cat((grid[:1, :shared].expand(prompts, -1), own), dim=1), places, shared)

    def attend(self, layer: LayerAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(1, H, N, d) for a layer's queries (1, H, N, d), keys and values (1, H', N, d)."""
        own = layer.whole_rows(self._rows(query, self.shared), self._rows(key), self._rows(value)).transpose(1, 2)
        output = own.flatten(0, 1).index_select(0, self._own).transpose(0, 1)[None]
        if not self.shared:
            return output
        first = layer.whole_rows(*(states[:, :, : self.shared] for states in (query, key, value)))
        return torch.cat((first, output), dim=2)

    @cached_property
    def _own(self) -> Tensor:
        """(N - C,) places of the tokens after the shared ones, as indices into flattened rows that begin after those."""
        places = self.places[self.shared :]
        return places - (places // self.tokens.shape[1] + 1) * self.shared if self.shared else places

    def _rows(self, packed: Tensor, start: int = 0) -> Tensor:
        """(B, H, L - start, d) of (1, H, N, d): the rows from a column on."""
        tokens = self.tokens[:, start:]
        states = packed[0].transpose(0, 1).index_select(0, tokens.flatten())
        return states.view(*tokens.shape, *states.shape[1:]).transpose(1, 2)


class KeyValueCache(Cache):
    """The model's cache, and the layout of a decode step: every row sees its prompt, which is held once, and its answer.

    prefix   keys and values of each layer, (1, H', C, d), of the C tokens that all prompts begin with
    prompts  keys and values of each layer, (P, H', S - C, d), of what follows, padded on the right
    answers  keys and values of each layer, (B, H', capacity, d), of which `length` columns are filled
    slots    (B,) the place of each row in the flattened grid (P, G) of prompts and rows; None: all rows are there, in order
    masks    of the rows, for tokens after their prompts
    """

    masks: Masks | None = None

    def __init__(self, prompt_mask: Tensor, new_tokens: int, shared: int = 0):
        """shared: C. The first keys and values that arrive are those of packed prompts, see PackedRows.of_prompts."""
        super().__init__(layers=[])  # a model that is given positions calls `update` only
        self.shared = shared
        self.prefix: list[tuple[Tensor, Tensor]] = []
        self.prompts: list[tuple[Tensor, Tensor]] = []
        self.answers: list[tuple[Tensor, Tensor]] = []
        self.capacity, self.length = new_tokens, 0
        self.lengths = prompt_mask.sum(dim=1)
        self.fan_out(1)

    def fan_out(self, group: int) -> None:
        """From now on each prompt has `group` rows, side by side."""
        self.group = group
        self.slots: Tensor | None = None
        self.positions = self.lengths.repeat_interleave(group)  # of the next token, per row
        columns = torch.arange(self.shared, int(self.lengths.max()), device=self.lengths.device)
        self.padding_mask = (columns >= self.lengths[:, None])[:, None, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Stores a layer's keys and values, of the prompts in the first call and of a token per row in later ones; returns
        those of the answers."""
        if layer_idx == len(self.prompts):
            first, own = zip(*(self._parts(states) for states in (key_states, value_states)), strict=True)
            self.prefix.append(first)
            self.prompts.append(own)
            return key_states, value_states
        if layer_idx == len(self.answers):  # the first token of the answers
            room = (*key_states.shape[:2], self.capacity)
            new = (states.new_zeros(*room, states.shape[3]) for states in (key_states, value_states))
            self.answers.append((next(new), next(new)))
        self.length += layer_idx == 0
        keys, values = (states[: len(key_states), :, : self.length] for states in self.answers[layer_idx])
        keys[:, :, -1:], values[:, :, -1:] = key_states, value_states
        return keys, values

    def attend(self, layer: LayerAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, H, 1, d) for the queries (B, H, 1, d) of a layer and the keys and values (B, H', length, d) of the answers: one
        softmax over the prefix's keys, multiplied for all rows at once, the prompt's, for all rows of a prompt at once, and
        the row's own.

        Query heads that share keys are rows of one matrix, so keys are not repeated for them either. All rows have the same
        number of answer tokens, so a window drops the same columns from each; how far it reaches into a prompt differs.
        """
        prompt_keys, prompt_values = self.prompts[layer.layer]
        window = layer.window
        if window is not None:
            key, value = key[:, :, -window:], value[:, :, -window:]
        rows, heads, _, width = query.shape
        query = query.view(rows, key.shape[1], heads // key.shape[1], width)
        shared = layer.capped(self._grid(query) @ prompt_keys.mT)
        shared = self._rows(shared.masked_fill_(self.padding_mask, -torch.inf), query.shape[2])
        if self.shared:
            prefix = layer.capped(_all_rows_matmul(query, self.prefix[layer.layer][0].mT))
            shared = torch.cat((prefix, shared), dim=-1)
        length = shared.shape[-1]
        if window is not None and length + self.length > window:
            outside = torch.arange(length, device=query.device) <= self.positions[:, None] - window
            shared = shared.masked_fill(outside[:, None, None], -torch.inf)
        weights = layer.weights(torch.cat((shared, layer.capped(query @ key.mT)), dim=-1)).to(value.dtype)
        output = self._rows(self._grid(weights[..., self.shared : length]) @ prompt_values, query.shape[2])
        if self.shared:
            output = output + _all_rows_matmul(weights[..., : self.shared], self.prefix[layer.layer][1])
        return (output + weights[..., length:] @ value).reshape(rows, heads, 1, width)

    def _parts(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """(1, H', C, d) of the prefix and (P, H', S - C, d) of the prompts, from (1, H', N, d) of all tokens."""
        own = packed[0, :, self.shared :].unflatten(1, (len(self.lengths), -1))
        return packed[:, :, : self.shared].contiguous(), own.transpose(0, 1).contiguous()

    def _grid(self, rows: Tensor) -> Tensor:
        """(P, H', G * h, x) of (B, H', h, x): one matrix for all that is multiplied with the same prompt."""
        if self.slots is not None:
            places = len(self.lengths) * self.group
            rows = rows.new_zeros(places, *rows.shape[1:]).index_copy(0, self.slots, rows)
        return rows.view(-1, self.group, *rows.shape[1:]).transpose(1, 2).flatten(2, 3)

    def _rows(self, grid: Tensor, shared: int) -> Tensor:
        """(B, H', h, x) of (P, H', G * h, x), with h = shared."""
        rows = grid.unflatten(2, (self.group, shared)).transpose(1, 2).flatten(0, 1)
        return rows if self.slots is None else rows.index_select(0, self.slots)

    def select(self, rows: Tensor) -> None:
        """Keep `rows`: those below len(rows) stay in their places, the others fill the gaps. Drops prompts without rows."""
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero().squeeze(-1)
        for states in (states for pair in self.answers for states in pair):
            # Only rows that move are copied, so that none is read after it was overwritten.
            states[moved, :, : self.length] = states[rows[moved], :, : self.length]
        slots = torch.arange(len(self.positions), device=rows.device) if self.slots is None else self.slots
        self.slots, self.positions = slots[rows], self.positions[rows]
        self.masks = None if self.masks is None else Masks(self.masks.values[rows])
        live, prompt = (self.slots // self.group).unique(return_inverse=True)
        if len(live) <= SPARSE * len(self.lengths):
            self.lengths, self.padding_mask = self.lengths[live], self.padding_mask[live]
            self.slots = prompt * self.group + self.slots % self.group
            self.prompts = [(keys[live], values[live]) for keys, values in self.prompts]


Layout = PackedRows | KeyValueCache


def _all_rows_matmul(rows: Tensor, states: Tensor) -> Tensor:
    """(B, H', h, y) of (B, H', h, x) times (1, H', x, y): all rows are multiplied with one matrix per head."""
    merged = rows.transpose(0, 1).flatten(1, 2)
    return (merged @ states[0]).unflatten(1, (len(rows), -1)).transpose(0, 1)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **ignored: object,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls in every layer; without a layout, rows are padded on the right."""
    layer = LayerAttention(module.layer_idx, scaling, sliding_window, softcap)
    if layout is None:
        return layer.whole_rows(query, key, value).transpose(1, 2), None
    output = layout.attend(layer, query, key, value).transpose(1, 2)
    return output if layout.masks is None else layout.masks.apply(layer.layer, output), None


NAME = "ngrpo"  # in transformers, which makes no attention masks for names of others, and none are needed
AttentionInterface.register(NAME, attention)

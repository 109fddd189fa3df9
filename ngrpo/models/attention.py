"""Attention for a stock model whose rows share prompts: linear layers see each token once, attention sees whole rows.

A layout says which tokens belong together. It is handed through the model, as an argument that transformers passes on to
the attention function, and arrives here. This room does not know what the tokens are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# Causal attention of whole rows: queries (B, H, L, d), keys and values (B, H', L, d) with H a multiple of H'.
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


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


def grouped(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Scaled dot-product attention that never copies keys and values for the query heads that share them."""
    shared = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=shared)


def stock(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The implementation of transformers, which repeats keys and values for all query heads."""
    return sdpa_attention_forward(module, query, key, value, None, scaling=scale, is_causal=True)[0].transpose(1, 2)


KERNELS: Mapping[str, Callable[..., Tensor]] = {"grouped": grouped, "sdpa": stock}


def attention(
    kernel: Callable[..., Tensor],
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
    whole = partial(kernel, module, scale=scaling)
    if layout is None:  # noqa: SIM108
        mixed = whole(query, key, value)
    else:
        mixed = layout.attend(module.layer_idx, query, key, value, scaling, whole)
    return mixed.transpose(1, 2), None


def registered(name: str) -> str:
    """The name under which transformers knows a kernel of KERNELS. It makes no masks for such names: none are needed."""
    return f"ngrpo_{name}"


for _name, _kernel in KERNELS.items():
    AttentionInterface.register(registered(_name), partial(attention, _kernel))

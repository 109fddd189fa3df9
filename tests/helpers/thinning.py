"""Masks on the attention of a stock model, put there by hooks on its projections."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor


@contextmanager
def _thinned(stock: Any, values: Tensor, prompt: int) -> Iterator[None]:
    def thin(value: Tensor):
        def change(module: Any, given: tuple[Tensor]) -> tuple[Tensor]:
            return (torch.cat((given[0][:, :prompt], given[0][:, prompt:] * value), dim=1),)

        return change

    layers = stock.base_model.layers
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(thin(value))
        for layer, value in zip(layers, values, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def thinned(stock: Any, masks: Tensor | None, row: int, prompt: int) -> Any:
    """A context in which what the stock model's attention gives is multiplied by the masks (B, layers, H * d) of a row, after
    a prompt of so many tokens; None: it is as it is."""
    return nullcontext() if masks is None else _thinned(stock, masks[row], prompt)

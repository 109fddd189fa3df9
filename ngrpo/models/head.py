"""The output embedding on many hidden states, a chunk of logits at a time, in the backward pass too.

No chunk's logits outlive it, and the head's gradient is one buffer that all chunks add to: autograd alone would make a
gradient as large as the vocabulary for every chunk. It does not know what is computed from logits.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ngrpo.models.causal import CausalModel

GRADIENT_ROWS = 2**14  # rows of the head whose gradient is computed in one go
# Logits of one chunk. What is larger than 32 MiB, a CPU's allocator gives back at once and has to be made anew.
CHUNK = {"cpu": 2**22, "cuda": 2**24}
CHUNK_TOKENS = 96  # at least: every chunk reads the whole head

# What is wanted of the logits (n, V) of the states that begin at a place: tensors with one entry per state.
Reading = Callable[[Tensor, int], tuple[Tensor, ...]]


def chunk_tokens(vocabulary: int, device: str) -> int:
    """Tokens whose logits are in memory at a time; device: its type."""
    return max(CHUNK_TOKENS, CHUNK.get(device, 2**24) // vocabulary)


def read_logits(
    model: CausalModel, hidden: Tensor, chunk: int, reading: Reading, learners: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """`reading` of the logits of hidden states (N, D), `chunk` at a time, put together.

    Gradients flow into the states, the head and `learners`: all else that `reading` depends on.
    """
    if torch.is_grad_enabled() and len(hidden) > chunk and isinstance(model.model.get_output_embeddings(), nn.Linear):
        learners = [learner for learner in learners if learner.requires_grad]
        return _InChunks.apply(model, chunk, reading, hidden, model.head, *learners)  # pyright: ignore
    # An empty batch still runs once, so that every parameter gets a gradient.
    starts = range(0, max(len(hidden), 1), chunk)
    return _joined([reading(model.logits(hidden[start : start + chunk]), start) for start in starts])


def _joined(pieces: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(column) for column in zip(*pieces, strict=True))


class _InChunks(torch.autograd.Function):
    """Forward keeps nothing but its inputs; backward computes each chunk of logits again and its gradient by hand."""

    @staticmethod
    def forward(
        ctx: Any, model: CausalModel, chunk: int, reading: Reading, hidden: Tensor, head: Tensor, *learners: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.model, ctx.chunk, ctx.reading = model, chunk, reading
        ctx.save_for_backward(hidden, head, *learners)
        starts = range(0, len(hidden), chunk)
        made = _joined([reading(model.logits(hidden[start : start + chunk]), start) for start in starts])
        ctx.mark_non_differentiable(*(value for value in made if not value.is_floating_point()))
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, head, *learners = ctx.saved_tensors
        of_hidden, of_learners = torch.empty_like(hidden), [torch.zeros_like(learner) for learner in learners]
        of_head = torch.zeros_like(head) if head.requires_grad else None
        with ctx.model.autocast():
            for start in range(0, len(hidden), ctx.chunk):
                part = hidden[start : start + ctx.chunk]
                wanted = [None if g is None else g[start : start + ctx.chunk] for g in gradients]
                of_logits, more = _of_chunk(ctx.model, part, ctx.reading, start, wanted, learners)
                with torch.autocast(part.device.type, enabled=False):
                    of_hidden[start : start + ctx.chunk] = of_logits @ head.to(of_logits.dtype)
                    if of_head is not None:
                        _add_products(of_head, of_logits, part.to(of_logits.dtype))
                for total, gradient in zip(of_learners, more, strict=True):
                    if gradient is not None:
                        total += gradient
        return None, None, None, of_hidden, of_head, *of_learners


def _of_chunk(
    model: CausalModel, part: Tensor, reading: Reading, start: int, wanted: Sequence[Tensor | None], learners: Sequence
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """The gradient of one chunk's logits, in the precision that the head computes in, and those of the learners."""
    raw = model.model.get_output_embeddings()(part).detach().requires_grad_()  # pyright: ignore
    with torch.enable_grad():
        made = reading(raw.to(torch.promote_types(raw.dtype, torch.float32)), start)
    pairs = [(value, g) for value, g in zip(made, wanted, strict=True) if value.requires_grad and g is not None]
    values, given = zip(*pairs, strict=True)
    of_logits, *more = torch.autograd.grad(values, [raw, *learners], given, allow_unused=True)
    return of_logits, more


def _add_products(total: Tensor, of_logits: Tensor, part: Tensor) -> None:
    """total (V, D) += of_logits (n, V) transposed times part (n, D), without a second tensor of that size."""
    if total.dtype == part.dtype:
        total.addmm_(of_logits.T, part)
        return
    for rows, columns in zip(total.split(GRADIENT_ROWS), of_logits.split(GRADIENT_ROWS, dim=1), strict=True):
        rows += columns.T @ part

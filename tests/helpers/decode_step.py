"""A vocabulary of 64 tokens with traps in it, and what tests of strategies do with one decode step."""

import torch
from torch.nn import functional as F

from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import DecodeStep, Vocabulary

V, D = 64, 16
VOCABULARY = Vocabulary(60, (0, 1, 2), (1, 3), (10, 11), (12, 13))
TRAPS = [0, 1, 2, 3, 60, 61, 62, 63]


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trapped_table() -> torch.Tensor:
    """(V, D). Reserved, stop and padded rows are copies of ordinary ones, so they would be everyone's nearest neighbors."""
    rows = random(V, D, seed=5)
    rows[TRAPS] = rows[20:28].clone()
    return rows


def bound(strategy, table, vocabulary: Vocabulary = VOCABULARY):
    strategy.bind(vocabulary, table)
    strategy.prepare(table, 0)
    return strategy


def draws_of(rows: int, step: int = 0, seed: int = 0) -> Draws:
    return Draws(torch.arange(rows) + 1000 * seed, torch.full((rows,), step))


def one_step(strategy, logits, table, step: int = 0, seed: int = 0) -> DecodeStep:
    draws = draws_of(len(logits), step, seed)
    return strategy.sample(logits, strategy.start(len(logits), logits.device), draws, table)[0]


def recipe(step: DecodeStep) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates and weights (..., K) of steps that have them."""
    assert step.mix_ids is not None and step.mix_weights is not None
    return step.mix_ids, step.mix_weights


def towards(tokens: torch.Tensor | list[int]) -> torch.Tensor:
    """Logits (B, V) that leave no choice but `tokens`."""
    return F.one_hot(torch.as_tensor(tokens), V) * 200.0 + random(len(tokens), V)


def ordinary_logits(rows: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    """Logits whose argmax is an ordinary token and no part of the delimiter."""
    logits = random(rows, V, seed=seed, scale=scale)
    logits[:, [*TRAPS, 10, 11]] -= 40
    return logits


def thinking_part(tokens: list[int], vocabulary: Vocabulary) -> list[int]:
    """Up to and with the delimiter, or all of it."""
    a, b = vocabulary.answer_start
    ends = [i + 2 for i in range(len(tokens) - 1) if tokens[i : i + 2] == [a, b]]
    return tokens[: ends[0]] if ends else tokens

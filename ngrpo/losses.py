"""Policy losses, KL estimators and token aggregations: pure functions, one per published formula.

Everything is (B, T) and masked (true on the tokens that count). An aggregation gives each token's weight within the
whole mini-batch, so that the loss of any split into micro-batches or ranks sums to the same number. Nothing here knows
models or configuration.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0  # exp() of more than this overflows long before it means anything (verl uses the same bound)


class TokenLoss(NamedTuple):
    """Per-token loss (B, T), to be minimised, and where clipping cut the gradient (B, T) bool."""

    loss: Tensor
    clipped: Tensor


class Counts(NamedTuple):
    """Sizes of a whole mini-batch over all micro-batches and ranks: tokens that count, sequences that have any, and the
    longest answer that is allowed."""

    tokens: Tensor
    sequences: Tensor
    length: int


def clipped_surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> TokenLoss:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) with r = exp(log_probs - old_log_probs).

    Sources: PPO, arXiv 1707.06347, equation 7; GRPO, arXiv 2402.03300, equation 3; clip_high > clip_low: DAPO, arXiv
    2503.14476, equation 10; dual_clip caps the loss of a negative advantage at -dual_clip * A (arXiv 1912.09729,
    equation 5; verl's default 3, absent from the GRPO papers).
    """
    ratio = (log_probs - old_log_probs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    plain = -ratio * advantages
    bounded = -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    loss = torch.maximum(plain, bounded)
    clipped = bounded > plain
    if dual_clip is not None:
        ceiling = -dual_clip * advantages
        capped = (advantages < 0) & (loss > ceiling)
        loss, clipped = torch.where(capped, ceiling, loss), clipped | capped
    return TokenLoss(loss, clipped & mask)


def reinforce(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> TokenLoss:
    """-A log pi: the score-function estimator, no ratio and no clip (Williams, 1992). One update per rollout."""
    return TokenLoss(-advantages * log_probs, torch.zeros_like(mask))


def kl_k1(log_probs: Tensor, reference: Tensor) -> Tensor:
    """log pi - log ref on the realised token: unbiased, high variance. Source: Schulman, 2020, "Approximating KL"."""
    return log_probs - reference


def kl_k2(log_probs: Tensor, reference: Tensor) -> Tensor:
    """(log pi - log ref)^2 / 2: biased, low variance, and as a loss it has the gradient of the KL."""
    return (log_probs - reference).square() / 2


def kl_k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """exp(x) - x - 1 with x = log ref - log pi: unbiased and never negative; GRPO, arXiv 2402.03300, equation 4.

    As a loss its gradient is not that of the KL. x is clamped to +-20.
    """
    x = (reference - log_probs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return x.exp() - x - 1


KL_ESTIMATORS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def token_mean(mask: Tensor, counts: Counts) -> Tensor:
    """Every token weighs the same: 1 / number of tokens. Source: DAPO, arXiv 2503.14476, equation 12."""
    return mask / counts.tokens.clamp(min=1)


def sequence_mean_token_mean(mask: Tensor, counts: Counts) -> Tensor:
    """Every sequence weighs the same, and its tokens share: 1 / (L_i n). Source: GRPO, arXiv 2402.03300, equation 3."""
    return mask / (mask.sum(dim=1, keepdim=True).clamp(min=1) * counts.sequences.clamp(min=1))


def sequence_mean_token_sum(mask: Tensor, counts: Counts) -> Tensor:
    """Sum over a sequence, mean over sequences: 1 / n. Source: RLOO, arXiv 2402.14740; STHT, arXiv 2509.19170."""
    return mask / counts.sequences.clamp(min=1)


def sequence_mean_token_sum_norm(mask: Tensor, counts: Counts) -> Tensor:
    """Sum over a sequence divided by the longest answer allowed, mean over sequences: 1 / (length n).

    Source: Dr. GRPO, arXiv 2503.20783, section 3.2; verl's seq-mean-token-sum-norm divides by the padded length and not
    by the number of sequences.
    """
    return mask / (counts.length * counts.sequences.clamp(min=1))


AGGREGATIONS: Mapping[str, Callable[[Tensor, Counts], Tensor]] = {
    function.__name__: function
    for function in (token_mean, sequence_mean_token_mean, sequence_mean_token_sum, sequence_mean_token_sum_norm)
}

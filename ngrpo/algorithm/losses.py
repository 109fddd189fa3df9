"""Policy losses, KL estimators and token aggregations: pure functions, one per published formula.

A loss maps LossInputs to a TokenLoss. An aggregation gives each token's weight within the whole mini-batch, so that the
loss of any split into micro-batches or ranks sums to the same number.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ngrpo.algorithm.combinations import requires
from ngrpo.algorithm.inputs import Counts, LossInputs, TokenLoss

LOG_RATIO_LIMIT = 20.0  # exp() of anything larger has no meaning and soon overflows (verl uses the same bound)
Loss = Callable[..., TokenLoss]


def asks(*names: str) -> Callable[[Loss], Loss]:
    """Declares which optional fields of LossInputs a loss needs; without it a loss gets none of them."""

    def declare(loss: Loss) -> Loss:
        loss.asks = frozenset(names)  # pyright: ignore[reportFunctionMemberAccess]
        return loss

    return declare


def clipped_surrogate(
    inputs: LossInputs, *, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = None
) -> TokenLoss:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) with r = exp(log_probs - old).

    Sources: PPO, arXiv 1707.06347, equation 7; GRPO, arXiv 2402.03300, equation 3; clip_high > clip_low: DAPO, arXiv
    2503.14476, equation 10; dual_clip caps the loss of a negative advantage at -dual_clip * A (arXiv 1912.09729,
    equation 5; verl's default 3, absent from the GRPO papers).
    """
    return surrogate(inputs, log_ratio(inputs).exp(), clip_low, clip_high, dual_clip)


def sequence_surrogate(
    inputs: LossInputs, *, clip_low: float = 3e-4, clip_high: float = 4e-4, dual_clip: float | None = None
) -> TokenLoss:
    """The clipped surrogate of one ratio per answer, s = exp(mean over its tokens of log pi - log pi_old).

    Every token carries the loss of its answer, so sequence_mean_token_mean is the mean over answers.
    Source: GSPO, arXiv 2507.18071, equations 5 to 7.
    """
    ratio = _row_mean(log_ratio(inputs), inputs.mask).exp().expand_as(inputs.log_probs)
    return surrogate(inputs, ratio, clip_low, clip_high, dual_clip)


def sequence_token_surrogate(
    inputs: LossInputs, *, clip_low: float = 3e-4, clip_high: float = 4e-4, dual_clip: float | None = None
) -> TokenLoss:
    """sequence_surrogate with s_t = sg[s] pi_t / sg[pi_t]: the value of the answer's ratio, the gradient of the token's.

    With equal advantages within an answer it has the gradient of `sequence_surrogate`. Source: GSPO-token, arXiv
    2507.18071, equations 13 and 14.
    """
    value = _row_mean(log_ratio(inputs), inputs.mask).detach()
    ratio = (value + inputs.log_probs - inputs.log_probs.detach()).exp()
    return surrogate(inputs, ratio, clip_low, clip_high, dual_clip)


def geometric_surrogate(inputs: LossInputs, *, clip: float = 0.4) -> TokenLoss:
    """-A times the geometric mean of the answer's ratios, each clipped in log space on the side that A rewards.

    log r is capped at clip where A > 0 and floored at -clip where A < 0; A is the answer's mean advantage. Every token
    carries the loss of its answer. Source: GMPO, arXiv 2507.20673.
    """
    value = _row_mean(inputs.advantages, inputs.mask)
    change = log_ratio(inputs)
    bounded = torch.where(value > 0, change.clamp(max=clip), change.clamp(min=-clip))
    loss = (-value * _row_mean(bounded, inputs.mask).exp()).expand_as(inputs.log_probs)
    return TokenLoss(loss, (bounded != change) & (value != 0) & inputs.mask)


def clipped_weight(inputs: LossInputs, *, clip_low: float = 1.0, clip_high: float = 4.0) -> TokenLoss:
    """-sg[clip(r, 1 - clip_low, 1 + clip_high)] A log pi: the ratio is a bounded weight, so every token keeps its gradient.

    Source: CISPO, arXiv 2506.13585, equation 4; ScaleRL, arXiv 2510.13786, bounds r by 5 and not from below. `clipped`
    is true where the weight was bounded.
    """
    ratio = log_ratio(inputs).exp().detach()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    return TokenLoss(-weight * inputs.advantages * inputs.log_probs, (weight != ratio) & inputs.mask)


@requires(no_other_prompt="the loss has no ratio to an answer's probability under the prompt that it was sampled with")
def reinforce(inputs: LossInputs) -> TokenLoss:
    """-A log pi: the score-function estimator, no ratio and no clip (Williams, 1992). One update per rollout."""
    return TokenLoss(-inputs.advantages * inputs.log_probs, torch.zeros_like(inputs.mask))


def log_ratio(inputs: LossInputs) -> Tensor:
    """(B, T) log pi - log pi_old, within +-20."""
    return (inputs.log_probs - inputs.old).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def _row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(B, 1): mean over the tokens that count of each answer."""
    return (values * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def surrogate(
    inputs: LossInputs, ratio: Tensor, clip_low: float, clip_high: float, dual_clip: float | None
) -> TokenLoss:
    """The clipped surrogate of any ratio (B, T)."""
    advantages = inputs.advantages
    plain = -ratio * advantages
    bounded = -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    loss = torch.maximum(plain, bounded)
    clipped = bounded > plain
    if dual_clip is not None:
        ceiling = -dual_clip * advantages
        capped = (advantages < 0) & (loss > ceiling)
        loss, clipped = torch.where(capped, ceiling, loss), clipped | capped
    return TokenLoss(loss, clipped & inputs.mask)


def kl_k1(log_probs: Tensor, reference: Tensor) -> Tensor:
    """log pi - log ref on the text token: unbiased, high variance. Source: Schulman, 2020, "Approximating KL"."""
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
    """Every token has the same weight, 1 / number of tokens of the whole batch. Source: DAPO, arXiv 2503.14476, equation 12;
    verl's token-mean today."""
    return mask / counts.tokens.clamp(min=1)


def token_mean_of_micro_batches(mask: Tensor, counts: Counts) -> Tensor:
    """The mean over micro-batches of the mean over their tokens: tokens of micro-batches with short answers weigh more, and
    trainer.micro_batch_rows changes the result. Source: verl of early 2025 and its forks, such as N-GRPO's."""
    return mask / (mask.sum().clamp(min=1) * counts.micro_batches)


def sequence_mean_token_mean(mask: Tensor, counts: Counts) -> Tensor:
    """Every sequence has the same weight, split over its tokens: 1 / (L_i n). Source: GRPO, arXiv 2402.03300, equation 3."""
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
    for function in (
        token_mean,
        token_mean_of_micro_batches,
        sequence_mean_token_mean,
        sequence_mean_token_sum,
        sequence_mean_token_sum_norm,
    )
}

"""Which tokens a loss treats differently, and the losses that do: pure functions, one per published rule.

A selection sees all tokens of an RL step in its process (with select_per="update", of an update), never a micro-batch.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ngrpo.algorithm.inputs import LossInputs, TokenLoss, Tokens
from ngrpo.algorithm.losses import asks, clipped_surrogate, log_ratio, surrogate


def high_entropy(tokens: Tokens, *, share: float = 0.2) -> Tensor:
    """(B, T) bool: the `share` of the batch's tokens with the highest entropy, ties at the threshold included.

    Source: "Beyond the 80/20 Rule", arXiv 2506.01939.
    """
    values = tokens.entropy[tokens.mask]
    if not len(values):
        return tokens.mask
    count = min(len(values), max(1, round(share * len(values))))
    threshold = values.sort(descending=True).values[count - 1]
    return tokens.mask & (tokens.entropy >= threshold)


def high_entropy_of_row(tokens: Tokens, *, quantile: float = 0.8) -> Tensor:
    """(B, T) bool: tokens whose entropy exceeds that quantile of their own answer. Source: SimKO, arXiv 2510.14807."""
    values = tokens.entropy.double().masked_fill(~tokens.mask, torch.nan)
    threshold = torch.nanquantile(values, quantile, dim=1, keepdim=True).nan_to_num(torch.inf)
    return tokens.mask & (tokens.entropy.double() > threshold)


def covariance(tokens: Tokens) -> Tensor:
    """(B, T) float64: (A - mean A)(log pi - mean log pi), means over the tokens that count; 0 elsewhere.

    Source: "The Entropy Mechanism", arXiv 2505.22617.
    """
    centered = []
    for values in (tokens.advantages, tokens.log_probs):
        mean = values.double().where(tokens.mask, 0).sum() / tokens.mask.sum().clamp(min=1)
        centered.append(values.double() - mean)
    return (centered[0] * centered[1]).where(tokens.mask, 0)


def covariance_band(
    tokens: Tokens,
    *,
    share: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Tensor:
    """(B, T) bool: of the tokens with a covariance between low and high a random `share` of all, at least one.

    Tokens that a clip at 1 - clip_low or 1 + clip_high leaves without gradient anyway are never chosen; before the first
    update there are none. Chosen by the tokens' own uniforms, so a rerun chooses the same. Source: Clip-Cov, arXiv
    2505.22617. verl (compute_policy_loss_clip_cov) chooses at every update, from the current log-probabilities, within
    each micro-batch: select_per="update" does so within the mini-batch.
    """
    value, ratio = covariance(tokens), (tokens.log_probs - tokens.old).exp()
    cut = ((tokens.advantages > 0) & (ratio > 1 + clip_high)) | ((tokens.advantages < 0) & (ratio < 1 - clip_low))
    return _highest(tokens.uniform, tokens.mask & ~cut & (value > low) & (value < high), share, tokens.mask)


def covariance_top(tokens: Tokens, *, share: float = 2e-4) -> Tensor:
    """(B, T) bool: the `share` of tokens with the highest covariance, at least one; of equal ones the first.

    Source: KL-Cov, arXiv 2505.22617. verl (compute_policy_loss_kl_cov) chooses at every update, from the current
    log-probabilities, within each micro-batch: select_per="update" does so within the mini-batch.
    """
    return _highest(covariance(tokens), tokens.mask, share, tokens.mask)


def _highest(values: Tensor, eligible: Tensor, share: float, mask: Tensor) -> Tensor:
    """(B, T) bool: the max(1, floor(share * tokens that count)) highest `values` of the eligible tokens."""
    count = min(max(1, int(share * int(mask.sum()))), int(eligible.sum()))
    order = values.double().masked_fill(~eligible, -torch.inf).flatten().sort(descending=True, stable=True).indices
    chosen = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    chosen[order[:count]] = True
    return chosen.view(values.shape)


# --- losses of the selected tokens --------------------------------------------------------------------------------------


@asks("selected")
def selected_only(inputs: LossInputs, *, clip_low: float = 0.2, clip_high: float = 0.2) -> TokenLoss:
    """The clipped surrogate on the selected tokens (B, T), 0 on the others, which still count in denominators.

    Source: "Beyond the 80/20 Rule", arXiv 2506.01939, which selects the tokens of highest entropy.
    """
    selected, whole = inputs.chosen, clipped_surrogate(inputs, clip_low=clip_low, clip_high=clip_high)
    return TokenLoss(whole.loss * selected, whole.clipped & selected)


@asks("selected")
def selected_clipped(inputs: LossInputs, *, clip_low: float = 0.2, clip_high: float = 0.2) -> TokenLoss:
    """The clipped surrogate without gradient on the selected tokens. Source: Clip-Cov, arXiv 2505.22617."""
    selected, whole = inputs.chosen, clipped_surrogate(inputs, clip_low=clip_low, clip_high=clip_high)
    return TokenLoss(whole.loss * ~selected, whole.clipped | (selected & inputs.mask))


@asks("selected")
def selected_penalized(inputs: LossInputs, *, coefficient: float = 1.0) -> TokenLoss:
    """-r A, plus coefficient |log r| on the selected tokens; no clip. Source: KL-Cov, arXiv 2505.22617.

    At the first update |log r| is 0, where torch's gradient is 0 too, so the penalty acts from the second update on.
    """
    change = log_ratio(inputs)
    loss = -change.exp() * inputs.advantages + coefficient * change.abs() * inputs.chosen
    return TokenLoss(loss, torch.zeros_like(inputs.mask))


@asks("selected", "top_log_probs", "greedy")
def top_smoothed(
    inputs: LossInputs, *, smoothing: float = 0.01, penalty: float = 1.1, clip_low: float = 0.2, clip_high: float = 0.2
) -> TokenLoss:
    """The clipped surrogate; at selected tokens of right answers the gradient is spread over the K likeliest tokens.

    A > 0: r becomes (1 - a) r + a/K sum_k r~_k, a = smoothing, where r~_k has the value of r and the gradient of the k-th
    likeliest token's log-probability (top_log_probs (B, T, K)), at the temperature of r as in the released code
    (CLR-Lab/SimKO). A < 0: A is multiplied by `penalty` where the text token is the likeliest (`greedy` (B, T)). Source:
    SimKO, arXiv 2510.14807.
    """
    assert inputs.top_log_probs is not None and inputs.greedy is not None
    ratio, top, advantages, selected = log_ratio(inputs).exp(), inputs.top_log_probs, inputs.advantages, inputs.chosen
    spread = ratio.detach() * (top - top.detach()).exp().mean(dim=-1)
    ratio = torch.where(selected & (advantages > 0), (1 - smoothing) * ratio + smoothing * spread, ratio)
    advantages = torch.where(selected & inputs.greedy & (advantages < 0), penalty * advantages, advantages)
    return surrogate(replace(inputs, advantages=advantages), ratio, clip_low, clip_high, None)

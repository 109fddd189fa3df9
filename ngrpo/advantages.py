"""Advantages from the rewards of a group: pure functions, one per published formula.

Rewards come as (P, G) float64, advantages leave as (P, G) float64. Nothing here knows models or configuration.
"""

from torch import Tensor

TIE = 1e-9  # rewards of a group closer than this, relative to their size, count as equal: float error is no signal


def homogeneous(rewards: Tensor) -> Tensor:
    """(P,) bool: groups whose rewards are all the same, so that they carry no preference."""
    spread = rewards.amax(dim=1) - rewards.amin(dim=1)
    return spread <= TIE * rewards.abs().amax(dim=1).clamp(min=1)


def group_normalised(rewards: Tensor, *, ddof: int = 1, eps: float = 1e-6) -> Tensor:
    """(r - mean) / (std + eps) within each group; exactly 0 in a homogeneous one.

    Source: GRPO, arXiv 2402.03300, section 4.1.2. The paper does not say which standard deviation: ddof 1 is the sample
    one, which verl uses, 0 the population one. Raises ValueError for groups of one.
    """
    _require_groups(rewards)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    deviation = rewards.std(dim=1, keepdim=True, correction=ddof)
    return (centred / (deviation + eps)).masked_fill(homogeneous(rewards)[:, None], 0)


def group_centred(rewards: Tensor) -> Tensor:
    """r - mean within each group; exactly 0 in a homogeneous one. Source: Dr. GRPO, arXiv 2503.20783, section 3.2."""
    return (rewards - rewards.mean(dim=1, keepdim=True)).masked_fill(homogeneous(rewards)[:, None], 0)


def leave_one_out(rewards: Tensor) -> Tensor:
    """r_i minus the mean of the others = G / (G - 1) (r_i - mean). Source: RLOO, arXiv 2402.14740, equation 8.

    Raises ValueError for groups of one.
    """
    _require_groups(rewards)
    size = rewards.shape[1]
    return group_centred(rewards) * size / (size - 1)


def _require_groups(rewards: Tensor) -> None:
    if rewards.shape[1] < 2:
        raise ValueError("group_size=1: a group of one has no baseline; use group_size=2 or more")

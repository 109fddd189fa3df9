"""Algorithms with a critic: advantages of tokens from values (GAE), their whitening, and the loss of the values.

Pure functions, one per published formula.
"""

from collections.abc import Callable

import torch
from torch import Tensor

WHITENING = 1e-8  # added to the variance of advantages, as verl does, so that they stay small without a signal


def generalized(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both (B, T), from token rewards, values and mask (B, T); 0 where the mask is false.

    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}, return = A + V; the value after the last token
    is 0, and tokens that do not count are skipped. Source: GAE, arXiv 1506.02438, equations 11 to 16.
    """
    advantages = torch.zeros_like(values)
    next_value, running = values.new_zeros(len(values)), values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(here, delta + gamma * lam * running, running)
        next_value = torch.where(here, values[:, t], next_value)
        advantages[:, t] = running * here
    return advantages, (advantages + values) * mask


def whitened(
    advantage: Callable[..., tuple[Tensor, Tensor]],
    rewards: Tensor,
    penalty: Tensor | float,
    values: Tensor,
    mask: Tensor,
    total: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Advantages, whitened over all tokens that count, and returns, both (B, T) float32; `total` sums over ranks.

    advantage: token rewards, values and mask, all (B, T) -> advantages and returns. The reward (P, G) of an answer goes to
    its last token that counts; penalties are per token (B, T).
    """
    last = mask & (mask.flip(1).cumsum(dim=1).flip(1) == 1)
    token_rewards = last * rewards.view(-1, 1).to(values.dtype) - penalty * mask
    advantages, returns = advantage(token_rewards, values, mask)
    counted = advantages[mask].double()
    count, added, squares = total(torch.stack((mask.sum().double(), counted.sum(), counted.square().sum())))
    mean = added / count.clamp(min=1)
    variance = (squares - count * mean.square()).clamp(min=0) / (count - 1).clamp(min=1)
    return ((advantages - mean) / (variance + WHITENING).sqrt() * mask).float(), returns.float()


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None = 0.5) -> Tensor:
    """0.5 max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2), (B, T); clip None: 0.5 (V - R)^2.

    Source: value function clipping of PPO implementations, arXiv 2005.12729, section 3.
    """
    plain = (values - returns).square()
    if clip is None:
        return 0.5 * plain
    bounded = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum(plain, (bounded - returns).square())

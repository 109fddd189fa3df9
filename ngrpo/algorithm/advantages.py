"""Advantages: pure functions, one per published formula.

Most take the rewards of groups (P, G) float64 and give (P, G) float64; the last two shape advantages of tokens (B, T).
"""

from math import comb, sqrt

import torch
from torch import Tensor

from ngrpo.algorithm.combinations import requires
from ngrpo.algorithm.inputs import AnswerTokens

TIE = 1e-9  # rewards of a group closer than this, relative to their size, count as equal: float error is no signal


def homogeneous(rewards: Tensor) -> Tensor:
    """(P,) bool: groups whose rewards are all equal, so that they carry no preference."""
    spread = rewards.amax(dim=1) - rewards.amin(dim=1)
    return spread <= TIE * rewards.abs().amax(dim=1).clamp(min=1)


def group_normalized(rewards: Tensor, *, ddof: int = 1, eps: float = 1e-6) -> Tensor:
    """(r - mean) / (std + eps) within each group; exactly 0 in a homogeneous one.

    Source: GRPO, arXiv 2402.03300, section 4.1.2. The paper does not say which standard deviation: ddof 1 is that of a
    sample, as in verl, 0 that of a population. Raises ValueError for groups of one.
    """
    _require_groups(rewards)
    centered = rewards - rewards.mean(dim=1, keepdim=True)
    deviation = rewards.std(dim=1, keepdim=True, correction=ddof)
    return (centered / (deviation + eps)).masked_fill(homogeneous(rewards)[:, None], 0)


def group_centered(rewards: Tensor) -> Tensor:
    """r - mean within each group; exactly 0 in a homogeneous one. Source: Dr. GRPO, arXiv 2503.20783, section 3.2."""
    return (rewards - rewards.mean(dim=1, keepdim=True)).masked_fill(homogeneous(rewards)[:, None], 0)


def leave_one_out(rewards: Tensor) -> Tensor:
    """r_i minus the mean of the others = G / (G - 1) (r_i - mean). Source: RLOO, arXiv 2402.14740, equation 8.

    Raises ValueError for groups of one.
    """
    _require_groups(rewards)
    size = rewards.shape[1]
    return group_centered(rewards) * size / (size - 1)


def with_virtual_samples(
    rewards: Tensor, *, virtual: int = 1, maximum: float = 1.0, ddof: int = 1, eps: float = 1e-6
) -> Tensor:
    """(r - mean) / (std + eps) with the statistics of the group plus `virtual` samples that earned `maximum`.

    The virtual samples have no tokens, so a group in which every answer is wrong gets the same negative advantage
    everywhere instead of none; virtual 0 is GRPO. Source: NGRPO, arXiv 2509.18851, equation 6, which prints ddof 0,
    while the released code and the paper's numbers use 1. Raises ValueError for groups of one and for a maximum below a
    reward, which would flip the sign of a right answer.
    """
    _require_groups(rewards)
    if virtual and rewards.numel() and (most := float(rewards.max())) > maximum + TIE:
        raise ValueError(
            f"algorithm.advantage.maximum={maximum}: a reward is {most}, and a virtual sample must earn at least that; "
            f"algorithm.advantage.maximum={most}"
        )
    whole = torch.cat((rewards, rewards.new_full((len(rewards), virtual), maximum)), dim=1)
    mean, deviation = whole.mean(dim=1, keepdim=True), whole.std(dim=1, keepdim=True, correction=ddof)
    return ((rewards - mean) / (deviation + eps)).masked_fill(homogeneous(whole)[:, None], 0)


def signed(rewards: Tensor, *, correct: float = 1.0, wrong: float = -1.0) -> Tensor:
    """`correct` for answers with a positive reward, `wrong` for the others; no group statistics.

    Sources: REINFORCE with +-1; W-REINFORCE, arXiv 2506.01347 (correct 0.1); with a row filter, PSR and NSR of the same
    paper. Raises ValueError for rewards that are not 0 or 1.
    """
    _require_binary(rewards)
    return torch.where(rewards > 0, rewards.new_tensor(correct), rewards.new_tensor(wrong))


def pass_at_k(rewards: Tensor, *, pass_k: int, eps: float = 1e-6) -> Tensor:
    """The analytic advantage of pass@k training in a group of N answers, c of them right.

    rho = 1 - C(N-c, k) / C(N, k) and sd = sqrt(rho (1 - rho)) are mean and deviation of the reward of k random answers;
    right answers get (1 - rho) / (sd + eps), wrong ones (1 - rho - C(N-c-1, k-1) / C(N-1, k-1)) / (sd + eps). k = 1 is
    GRPO with the population deviation. Source: arXiv 2508.10751. Raises ValueError for rewards that are not
    0 or 1 and for pass_k outside 1..N.
    """
    _require_groups(rewards)
    _require_binary(rewards)
    size = rewards.shape[1]
    _require_pass_k(pass_k, 1, size)
    table = torch.zeros(size + 1, 2, dtype=rewards.dtype, device=rewards.device)  # by c: (wrong, right)
    for c in range(1, size + 1):
        rho = 1 - comb(size - c, pass_k) / comb(size, pass_k)
        if rho < 1:
            deviation = sqrt(rho * (1 - rho)) + eps
            missed = comb(size - c - 1, pass_k - 1) / comb(size - 1, pass_k - 1)
            table[c] = table.new_tensor([(1 - rho - missed) / deviation, (1 - rho) / deviation])
    correct = (rewards > 0).long()
    return table[correct.sum(dim=1, keepdim=True).expand_as(correct), correct]


def policy_at_k(rewards: Tensor, *, pass_k: int) -> Tensor:
    """G times the weights s_i - b_i of an unbiased gradient of the best reward of k answers ("loo - 1" baseline).

    s_i - b_i = 1 / C(N, k) sum over subsets I of size k with i of (max g(I) - max g(I without i)); the factor G turns the
    paper's sum over answers into a mean. Rewards need not be binary. Source: PKPO, arXiv 2505.15201, equation 33. Raises
    ValueError for pass_k outside 2..N.
    """
    size = rewards.shape[1]
    _require_pass_k(pass_k, 2, size)
    ordered, order = rewards.sort(dim=1)  # ascending
    best = torch.zeros(size, size, dtype=rewards.dtype, device=rewards.device)  # [i, j]: subsets with i, best at rank j
    rest = torch.zeros_like(best)  # [i, j]: the same subsets without i
    for i in range(size):
        best[i, i] = comb(i, pass_k - 1)
        for j in range(size):
            if j > i:
                best[i, j] = comb(j - 1, pass_k - 2)
            if j != i:
                rest[i, j] = comb(j if j < i else j - 1, pass_k - 2)
    weights = ordered @ (best - rest).T * (size / comb(size, pass_k))
    return torch.zeros_like(rewards).scatter(1, order, weights)


def entropy_shaped(tokens: AnswerTokens, *, strength: float = 0.4, bound: float = 2.0) -> Tensor:
    """A + min(strength * H, |A| / bound), all (B, T), H in nats: the sign of A never changes for bound > 1.

    Source: "Reasoning with Exploration", arXiv 2506.14758.
    """
    return tokens.advantages + torch.minimum(strength * tokens.entropy.detach(), tokens.advantages.abs() / bound)


@requires(
    every_group="leaves out the groups without variance, from which RL-ZVP learns",
    no_whitening="whitens advantages over the batch, which gives them another scale than those of RL-ZVP",
)
def zero_variance(tokens: AnswerTokens, *, alpha: float = 0.1) -> Tensor:
    """+alpha H in all-right groups, -alpha (max H - H) in all-wrong ones, else A; all (B, T).

    H is the entropy in nats, its maximum that over the answer's tokens that count; right and wrong are the task's verdict.
    Source: RL-ZVP, arXiv 2509.21880, after summaries that agree; the paper's text was not read, so which policy's entropy
    it takes is not verified: here it is that of the policy before its first update.
    """
    correct, entropy = tokens.groups.correct, tokens.entropy.detach()
    right, wrong = (each.repeat_interleave(correct.shape[1])[:, None] for each in (correct.all(1), ~correct.any(1)))
    highest = entropy.masked_fill(~tokens.mask, 0).amax(dim=1, keepdim=True)
    shaped = torch.where(right, alpha * entropy, alpha * (entropy - highest)).to(tokens.advantages.dtype)
    return torch.where(right | wrong, shaped, tokens.advantages) * tokens.mask


def _require_binary(rewards: Tensor) -> None:
    others = rewards[(rewards != 0) & (rewards != 1)]
    if len(others):
        raise ValueError(f"a reward is {others[0]:g}: this advantage is defined for rewards of 0 and 1; algorithm=grpo")


def _require_pass_k(pass_k: int, least: int, size: int) -> None:
    if not least <= pass_k <= size:
        raise ValueError(
            f"algorithm.pass_k={pass_k}: must be from {least} to group_size={size}; algorithm.pass_k={size}"
        )


def _require_groups(rewards: Tensor) -> None:
    if rewards.shape[1] < 2:
        raise ValueError("group_size=1: a group of one has no baseline; use group_size=2 or more")

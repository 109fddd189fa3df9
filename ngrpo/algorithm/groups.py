"""Rules on whole groups of answers: reward shaping, controls, weights of advantages, group filters and row filters.

Pure functions of `Groups`, one per published rule.
"""

from math import prod

import torch
from torch import Tensor

from ngrpo.algorithm.advantages import homogeneous
from ngrpo.algorithm.combinations import requires
from ngrpo.algorithm.inputs import Groups
from ngrpo.rollout.keys import Draws

CONTROL = 2  # XORed onto a row's key, so that controls draw other numbers than strategies (0) and selections (1)

# --- reward shaping: Groups -> rewards (P, G) --------------------------------------------------------------------------


def overlong_punishment(groups: Groups, *, buffer: int, factor: float = 1.0) -> Tensor:
    """Reward minus a punishment: 0 up to limit - buffer tokens, growing linearly to `factor` at the limit.

    Source: DAPO, arXiv 2503.14476, equation 13 (there a buffer of 4,096 of 20,480 tokens, factor 1).
    """
    excess = (groups.lengths - (groups.limit - buffer)).clamp(min=0).double() / buffer
    return groups.rewards - factor * excess.clamp(max=1)


def unlikeliness(groups: Groups, *, strength: float = 0.25, likelihood: str = "mean") -> Tensor:
    """r (1 - strength (G - rank) / G) for correct answers, rank 1 being the likeliest answer of its group.

    likelihood "mean" is the log-probability per token, by which the released code ranks (AndreHe02/
    rewarding-unlikely-release, UnlikelyRewardManager); "sum" is that of the whole answer, by which longer answers are
    mostly less likely, so that the order can be reversed. Ties share the lower rank; wrong answers keep their reward.
    Source: "Rewarding the Unlikely", arXiv 2506.02355.
    """
    size = groups.rewards.shape[1]
    value = groups.log_probs / {"mean": groups.lengths, "sum": 1}[likelihood]
    rank = 1 + (value[:, None, :] > value[:, :, None]).sum(dim=-1)
    factor = 1 - strength * (size - rank).double() / size
    return torch.where(groups.correct, groups.rewards * factor, groups.rewards)


# --- controls: rewards from which a method should learn nothing ---------------------------------------------------------


def random_rewards(groups: Groups, *, rate: float = 0.5) -> Tensor:
    """1 with probability `rate`, else 0, whatever the answer, from a random stream of its own that a resumed run repeats.

    Whatever a method still gains comes from its own bias. Source: "Spurious Rewards", arXiv 2506.10947.
    """
    return (_uniform(groups) < rate).double()


def shuffled_rewards(groups: Groups) -> Tensor:
    """The group's rewards in a random order: how many answers are right stays, which ones does not."""
    return groups.rewards.gather(1, _uniform(groups).argsort(dim=1))


def format_rewards(groups: Groups) -> Tensor:
    """1 where an answer was found in the text, right or wrong: the box-only reward of arXiv 2506.10947."""
    return groups.parsed.double()


def _uniform(groups: Groups) -> Tensor:
    """(P, G) in [0, 1)."""
    return Draws(groups.keys ^ CONTROL, torch.zeros_like(groups.keys)).token


# --- weights: (advantages (P, G), Groups) -> advantages (P, G) ---------------------------------------------------------


@requires(plain_rewards="MaxRL divides by the success rate, so the reward must be 0 for wrong and 1 for right answers")
def over_success_rate(advantages: Tensor, groups: Groups) -> Tensor:
    """Advantages divided by the mean reward of their group, 0 where that is 0: of r - mean, MaxRL's (r - mean) / mean.

    Source: MaxRL, arXiv 2602.02710; released implementations add 1e-6 to the mean. Raises ValueError for rewards outside
    [0, 1] and for wrong answers with a reward, which would make all-wrong groups look solved.
    """
    invalid = groups.rewards[(groups.rewards < 0) | (groups.rewards > 1) | (~groups.correct & (groups.rewards != 0))]
    if len(invalid):
        why = "MaxRL divides by the success rate, so wrong answers must have reward 0"
        raise ValueError(f"a reward is {invalid[0]:g}: {why}; algorithm=grpo")
    mean = groups.rewards.mean(dim=1, keepdim=True)
    return torch.where(mean > 0, advantages / mean.clamp(min=1e-300), 0)


def focal(advantages: Tensor, groups: Groups, *, gamma: float = 0.5) -> Tensor:
    """Advantages times (1 - c / G)^gamma, c of G answers right: easier problems count less; gamma 0 changes nothing.

    Source: F-GRPO, arXiv 2602.06717. A smaller |A| is also a smaller step; algorithm.match_norm=grpo compensates for it.
    """
    return advantages * (1 - groups.correct.double().mean(dim=1, keepdim=True)) ** gamma


@requires(
    plain_rewards="UCPO is defined for rewards of 0 and 1, so all right answers of a group must have the same reward"
)
def uniform_correct(advantages: Tensor, groups: Groups, *, tau: float = 0.2, length_norm: bool = True) -> Tensor:
    """Shifts advantage among the n >= 2 right answers of a group to the less likely ones; their sum and wrong ones stay.

    Weights n ((1 - tau) / n + tau v_j / sum v), v = 1 / max(q, 1e-6), q the softmax over the right answers of their
    log-probabilities: per token with length_norm, as the released code (AnamikaLochab/UCPO) computes, else of whole
    answers, as its comment says. Source: UCPO, arXiv 2605.00365. Raises ValueError for right answers of one group whose
    rewards differ.
    """
    correct, size = groups.correct, groups.correct.sum(dim=1, keepdim=True).double()
    highest = groups.rewards.masked_fill(~correct, -torch.inf).amax(dim=1, keepdim=True)
    if (correct & (groups.rewards != highest)).any():
        raise ValueError(
            "rewards of right answers of a group differ: UCPO is defined for rewards of 0 and 1; algorithm=grpo"
        )
    value = groups.log_probs / groups.lengths.clamp(min=1) if length_norm else groups.log_probs
    inverse = 1 / value.masked_fill(~correct, -torch.inf).softmax(dim=1).clamp(min=1e-6) * correct
    weights = (1 - tau) + tau * size * inverse / inverse.sum(dim=1, keepdim=True)
    return torch.where(correct & (size > 1), advantages * weights, advantages)


def boundary(advantages: Tensor, groups: Groups, *, k: int = 16, threshold: float = 0.01) -> Tensor:
    """Advantages times u(m) / u(1), m of n answers right, 0 where u(m) < threshold (n + 1): saturated problems count less.

    u(m) = k prod_{j=1..k-1} (n - m + j) / (n + 1 + j) is the expected marginal gain of pass@k under a flat prior. A
    variant of our own after the abstract of Bayesian boundary gating, arXiv 2606.15455, not a reproduction.
    """
    size = groups.correct.shape[1]
    gain = [k * prod((size - m + j) / (size + 1 + j) for j in range(1, k)) for m in range(size + 1)]
    weights = [value / gain[1] if value >= threshold * (size + 1) else 0.0 for value in gain]
    return advantages * advantages.new_tensor(weights)[groups.correct.sum(dim=1, keepdim=True)]


# --- group filters: Groups -> (P,) bool, true where a group is kept ----------------------------------------------------


def mixed(groups: Groups) -> Tensor:
    """Groups with right and wrong answers: dynamic sampling of DAPO, arXiv 2503.14476, equation 11.

    As there, the task's verdict decides what is right, before any shaping. Where shaping makes all rewards of such a
    group equal (a right answer punished down to the reward of wrong ones), it teaches nothing and is dropped too.
    """
    return groups.correct.any(dim=1) & ~groups.correct.all(dim=1) & ~homogeneous(groups.rewards)


def partly_rewarded(groups: Groups) -> Tensor:
    """Groups in which some rewards, but not all, are above 0 after shaping: filter `all` of NGRPO's released code
    (nangongrui-ngr/NGRPO), where a right answer with a heavy punishment counts as wrong."""
    positive = groups.rewards > 0
    return positive.any(dim=1) & ~positive.all(dim=1)


def not_all_correct(groups: Groups) -> Tensor:
    """Groups with a wrong answer: what the released code of NGRPO (arXiv 2509.18851) keeps."""
    return ~groups.correct.all(dim=1)


def not_all_wrong(groups: Groups) -> Tensor:
    """Groups with a right answer."""
    return groups.correct.any(dim=1)


# --- row filters: Groups -> (P, G) bool, true where an answer enters the loss ------------------------------------------


def finished(groups: Groups) -> Tensor:
    """Answers that were not cut off: overlong filtering of DAPO, arXiv 2503.14476, section 3.4."""
    return ~groups.truncated


def correct_only(groups: Groups) -> Tensor:
    """Right answers: positive sample reinforcement (PSR), arXiv 2506.01347."""
    return groups.correct


def wrong_only(groups: Groups) -> Tensor:
    """Wrong answers: negative sample reinforcement (NSR), arXiv 2506.01347."""
    return ~groups.correct

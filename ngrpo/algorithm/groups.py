"""What is known of the answers of an RL step before any token is weighed: rewards to reshape, advantages to weigh, groups
and rows to keep.

Pure functions of `Groups`, one per published rule.
"""

from math import prod

import torch
from torch import Tensor

from ngrpo.algorithm.advantages import homogeneous
from ngrpo.algorithm.combinations import requires
from ngrpo.algorithm.inputs import Groups
from ngrpo.rollout.keys import Draws

CONTROL = 2  # what keys differ by from those that strategies (0) and selections (1) draw with

# --- reward shaping: Groups -> rewards (P, G) --------------------------------------------------------------------------


def overlong_punishment(groups: Groups, *, buffer: int, factor: float = 1.0) -> Tensor:
    """Adds 0 up to limit - buffer tokens, then falls linearly to -factor at the limit.

    Source: DAPO, arXiv 2503.14476, equation 13 (there a buffer of 4,096 of 20,480 tokens, factor 1).
    """
    excess = (groups.lengths - (groups.limit - buffer)).clamp(min=0).double() / buffer
    return groups.rewards - factor * excess.clamp(max=1)


def unlikeliness(groups: Groups, *, strength: float = 0.25, likelihood: str = "mean") -> Tensor:
    """r (1 - strength (G - rank) / G) for correct answers, rank 1 being the likeliest answer of its group.

    likelihood "mean" is the log-probability per token, by which the released code ranks (AndreHe02/
    rewarding-unlikely-release, UnlikelyRewardManager); "sum" is that of the whole answer, where a longer answer mostly
    is the less likely one, so that the order can be the reverse. Ties share the lower rank; wrong answers are left as
    they are. Source: "Rewarding the Unlikely", arXiv 2506.02355.
    """
    size = groups.rewards.shape[1]
    value = groups.log_probs / {"mean": groups.lengths, "sum": 1}[likelihood]
    rank = 1 + (value[:, None, :] > value[:, :, None]).sum(dim=-1)
    factor = 1 - strength * (size - rank).double() / size
    return torch.where(groups.correct, groups.rewards * factor, groups.rewards)


# --- controls: rewards that a method should not learn from -------------------------------------------------------------


def random_rewards(groups: Groups, *, rate: float = 0.5) -> Tensor:
    """1 with probability `rate`, else 0, whatever the answer, from a stream of its own that a resumed run repeats.

    What a method still gains comes of its own bias. Source: "Spurious Rewards", arXiv 2506.10947.
    """
    return (_uniform(groups) < rate).double()


def shuffled_rewards(groups: Groups) -> Tensor:
    """The group's rewards among its answers in a random order: as many right ones as there are, but not which."""
    return groups.rewards.gather(1, _uniform(groups).argsort(dim=1))


def format_rewards(groups: Groups) -> Tensor:
    """1 where an answer was found in the text, right or wrong: the box-only reward of arXiv 2506.10947."""
    return groups.parsed.double()


def _uniform(groups: Groups) -> Tensor:
    """(P, G) in [0, 1)."""
    return Draws(groups.keys ^ CONTROL, torch.zeros_like(groups.keys)).token


# --- weights: (advantages (P, G), Groups) -> advantages (P, G) ---------------------------------------------------------


@requires(plain_rewards="MaxRL divides by the success rate, so a wrong answer must earn 0 and a right one 1")
def over_success_rate(advantages: Tensor, groups: Groups) -> Tensor:
    """Advantages over the mean reward of their group, 0 where that is 0: with r - mean it is MaxRL's (r - mean) / mean.

    Source: MaxRL, arXiv 2602.02710, where released codes add 1e-6 to the mean. Raises ValueError for rewards outside
    [0, 1] and for wrong answers that earn something, which would make all-wrong groups look solved.
    """
    strange = (groups.rewards < 0) | (groups.rewards > 1) | (~groups.correct & (groups.rewards != 0))
    if strange.any():
        found = f"a reward is {groups.rewards[strange][0].item():g}"
        raise ValueError(f"{found}: MaxRL divides by the success rate, so a wrong answer must earn 0; algorithm=grpo")
    mean = groups.rewards.mean(dim=1, keepdim=True)
    return torch.where(mean > 0, advantages / mean.clamp(min=1e-300), 0)


def focal(advantages: Tensor, groups: Groups, *, gamma: float = 0.5) -> Tensor:
    """Times (1 - c / G)^gamma, c right answers of G: the easier a problem, the less it counts; gamma 0 changes nothing.

    Source: F-GRPO, arXiv 2602.06717. A smaller |A| is also a smaller step: algorithm.match_norm=grpo takes that away.
    """
    return advantages * (1 - groups.correct.double().mean(dim=1, keepdim=True)) ** gamma


@requires(plain_rewards="UCPO is defined for rewards of 0 and 1, so the right answers of a group must earn the same")
def uniform_correct(advantages: Tensor, groups: Groups, *, tau: float = 0.2, length_norm: bool = True) -> Tensor:
    """Shifts the advantage of n >= 2 right answers of a group to the less likely of them; their sum and wrong ones stay.

    Weights n ((1 - tau) / n + tau v_j / sum v), v = 1 / max(q, 1e-6), q the softmax over the right answers of their
    log-probabilities: per token with length_norm, as the released code (AnamikaLochab/UCPO) does, else of whole answers,
    as a comment in it says. Source: UCPO, arXiv 2605.00365. Raises ValueError for right answers of one group whose
    rewards differ.
    """
    correct, size = groups.correct, groups.correct.sum(dim=1, keepdim=True).double()
    highest = groups.rewards.masked_fill(~correct, -torch.inf).amax(dim=1, keepdim=True)
    if (correct & (groups.rewards != highest)).any():
        raise ValueError(
            "right answers of a group earn differently: UCPO is defined for rewards of 0 and 1; algorithm=grpo"
        )
    value = groups.log_probs / groups.lengths.clamp(min=1) if length_norm else groups.log_probs
    inverse = 1 / value.masked_fill(~correct, -torch.inf).softmax(dim=1).clamp(min=1e-6) * correct
    weights = (1 - tau) + tau * size * inverse / inverse.sum(dim=1, keepdim=True)
    return torch.where(correct & (size > 1), advantages * weights, advantages)


def boundary(advantages: Tensor, groups: Groups, *, k: int = 16, threshold: float = 0.01) -> Tensor:
    """Times u(m) / u(1) for m right answers of n, 0 where u(m) < threshold (n + 1): nearly saturated problems count less.

    u(m) = k prod_{j=1..k-1} (n - m + j) / (n + 1 + j) is the expected marginal gain of pass@k under a flat prior. A
    variant of our own after the abstract of Bayesian boundary gating, arXiv 2606.15455, and no reproduction of it.
    """
    size = groups.correct.shape[1]
    gain = [k * prod((size - m + j) / (size + 1 + j) for j in range(1, k)) for m in range(size + 1)]
    weights = [value / gain[1] if value >= threshold * (size + 1) else 0.0 for value in gain]
    return advantages * advantages.new_tensor(weights)[groups.correct.sum(dim=1, keepdim=True)]


# --- group filters: Groups -> (P,) bool, true where a group is kept ----------------------------------------------------


def mixed(groups: Groups) -> Tensor:
    """Groups with right and wrong answers: dynamic sampling of DAPO, arXiv 2503.14476, equation 11.

    As there, an answer is right by the task's verdict, before any shaping. Where shaping levels all rewards of such a
    group (a right answer fined down to what wrong ones earn), nothing can be learned of it either, so it goes too.
    """
    return groups.correct.any(dim=1) & ~groups.correct.all(dim=1) & ~homogeneous(groups.rewards)


def partly_rewarded(groups: Groups) -> Tensor:
    """Groups of which some answers earn more than 0 after all shaping and some do not: filter `all` of NGRPO's released
    code (nangongrui-ngr/NGRPO), where a right answer with a heavy punishment counts as wrong."""
    earned = groups.rewards > 0
    return earned.any(dim=1) & ~earned.all(dim=1)


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

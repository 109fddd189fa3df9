"""What is known of the answers of an RL step before any token is weighed: rewards to reshape, groups and rows to keep.

Pure functions of `Groups`, one per published rule.
"""

import torch
from torch import Tensor

from ngrpo.algorithm.advantages import homogeneous
from ngrpo.algorithm.inputs import Groups

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

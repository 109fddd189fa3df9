"""What is known of the answers of an RL step before any token is weighed: rewards to reshape, groups and rows to keep.

Pure functions of `Groups`, one per published rule.
"""

import torch
from torch import Tensor

from ngrpo.algorithm.inputs import Groups

# --- reward shaping: Groups -> rewards (P, G) --------------------------------------------------------------------------


def overlong_punishment(groups: Groups, *, buffer: int, factor: float = 1.0) -> Tensor:
    """Adds 0 up to limit - buffer tokens, then falls linearly to -factor at the limit.

    Source: DAPO, arXiv 2503.14476, equation 13 (there a buffer of 4,096 of 20,480 tokens, factor 1).
    """
    excess = (groups.lengths - (groups.limit - buffer)).clamp(min=0).double() / buffer
    return groups.rewards - factor * excess.clamp(max=1)


def unlikeliness(groups: Groups, *, strength: float = 0.25) -> Tensor:
    """r (1 - strength (G - rank) / G) for correct answers, rank 1 being the likeliest answer of its group.

    Ties share the lower rank. Source: "Rewarding the Unlikely", arXiv 2506.02355; wrong answers are left
    as they are.
    """
    size = groups.rewards.shape[1]
    rank = 1 + (groups.log_probs[:, None, :] > groups.log_probs[:, :, None]).sum(dim=-1)
    factor = 1 - strength * (size - rank).double() / size
    return torch.where(groups.correct, groups.rewards * factor, groups.rewards)


# --- group filters: Groups -> (P,) bool, true where a group is kept ----------------------------------------------------


def mixed(groups: Groups) -> Tensor:
    """Groups with right and wrong answers: dynamic sampling of DAPO, arXiv 2503.14476, equation 11."""
    return groups.correct.any(dim=1) & ~groups.correct.all(dim=1)


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

"""What a batch of rollouts shows of itself: rewards, groups, lengths, entropy, and how far exploration displaced it.

It does not know how the rollouts are used.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ngrpo.algorithm.advantages import homogeneous
from ngrpo.exploration.base import Exploration
from ngrpo.rollout.records import Rollouts, Step
from ngrpo.rollout.sampling import Answers, truncated
from ngrpo.tasks.base import OUTCOMES

MEASURED_STEPS = 4096  # displacement is averaged over at most so many explored steps: enough for three digits


def rollout_measures(answers: Answers, strategy: Exploration, table: Tensor) -> dict[str, float]:
    """The figures of one RL step that need no second look at the model; `table` is the policy's embedding (V, D)."""
    rollouts, group = answers.rollouts, answers.rollouts.group_size
    rewards = torch.tensor([score.reward for score in answers.scores], dtype=torch.float64).view(-1, group)
    outcomes = np.array([score.outcome for score in answers.scores])
    same, correct = homogeneous(rewards), torch.from_numpy(outcomes == "correct").view(-1, group)
    texts = np.array(answers.completions, dtype=object).reshape(-1, group)
    mask, lengths = rollouts.mask, rollouts.lengths.double()
    return {
        "reward": rewards.mean().item(),
        "all_correct": correct.all(dim=1).double().mean().item(),
        "all_wrong": (~correct).all(dim=1).double().mean().item(),
        "informative": (~same).double().mean().item(),
        **{name: float((outcomes == name).mean()) for name in OUTCOMES[2:]},
        "distinct": float(np.mean([len(set(row)) / group for row in texts])),
        "length": lengths.mean().item(),
        "truncated": truncated(rollouts, strategy).double().mean().item(),
        "entropy": (rollouts.entropy.double().sum() / mask.sum()).item(),
        **_exploration(rollouts, strategy, table),
    }


def consumed(rollouts: Rollouts) -> Tensor:
    """(B, T) bool: steps whose fed vector the model read, so all but the last of each row."""
    return rollouts.mask & F.pad(rollouts.mask[:, 1:], (0, 1))


def anchors(steps: Step) -> Tensor:
    """The token (...,) that a fed vector stands around: the first candidate of its recipe, or the realised token."""
    return steps.tokens if steps.mix_ids is None else steps.mix_ids[..., 0]


def displacement(fed: Tensor, steps: Step, table: Tensor) -> tuple[Tensor, Tensor]:
    """||fed - E[anchor]|| / ||E[anchor]|| and the cosine between the two, both (N,), for fed vectors (N, D)."""
    anchor = F.embedding(anchors(steps), table).float()
    distance = (fed.float() - anchor).norm(dim=-1) / anchor.norm(dim=-1).clamp(min=1e-12)
    return distance, F.cosine_similarity(fed.float(), anchor, dim=-1)


def _exploration(rollouts: Rollouts, strategy: Exploration, table: Tensor) -> dict[str, float]:
    read = consumed(rollouts)
    where = (rollouts.steps.explored & read).nonzero()[:MEASURED_STEPS]
    share = (rollouts.steps.explored & read).sum().double() / read.sum().clamp(min=1)
    if not len(where):
        return {"explored": 0.0, "displacement": 0.0}
    row, time = where.unbind(dim=1)
    steps = rollouts.steps[row, time]
    with torch.no_grad():
        fed = strategy.embed(steps, table, rollouts.draws[row, time])
    return {"explored": share.item(), "displacement": displacement(fed, steps, table)[0].mean().item()}

"""Soft thinking with Gaussian noise on the probabilities of a few candidates: a variant in SofT-GRPO's code."""

import math

import torch
from torch import Tensor

from ngrpo.exploration.perturbed import Noise
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import GAUSSIAN


class Gaussian(Noise):
    """y = p + sigma * n, n ~ N(0, 1), weights = max(y, 0) renormalized, or one-hot on the largest y if none is positive.

    log_prob = mean over candidates of log N(y; p', sigma^2).
    """

    role = GAUSSIAN

    def __init__(self, sigma: float = 0.05):
        if not sigma > 0:
            raise ValueError(f"sigma={sigma}: a Gaussian density needs sigma > 0")
        self.sigma = sigma

    def perturb(self, log_p: Tensor, draws: Draws) -> Tensor:
        return log_p.exp() + self.sigma * draws.normal(log_p.shape[-1])

    def weigh(self, scores: Tensor) -> Tensor:
        positive, first = scores.clamp(min=0), torch.zeros_like(scores)
        first[:, 0] = 1
        total = positive.sum(dim=-1, keepdim=True)
        return torch.where(total > 0, positive / total.clamp(min=1e-30), first)

    def density(self, scores: Tensor, log_p: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        standard = torch.where(valid, scores - log_p.exp(), torch.zeros_like(log_p)) / self.sigma
        return -0.5 * standard.square() - math.log(self.sigma) - 0.5 * math.log(2 * math.pi), valid

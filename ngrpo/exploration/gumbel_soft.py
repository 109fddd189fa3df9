"""Gumbel Soft-Thinking as SofT-GRPO trains it (arXiv 2511.06411): noise on the log-probabilities of a few candidates."""

import torch
from torch import Tensor

from ngrpo.exploration.perturbed import Noise
from ngrpo.exploration.scores import gumbel
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import GUMBEL

RELIABLE = -3.0  # candidates of smaller log-probability are left out of the density
SLACK = 1e-3  # clamped noise is exactly at a bound, where rounding must not decide whether it has a gradient


class Gumbel(Noise):
    """y = l + noise_factor * g, g ~ Gumbel(0, 1) clamped to `clamp` (null: not), weights = softmax(y / soft_temperature).

    log_prob = mean of -g' - exp(-g') over candidates with l' > -3, g' = clamp((y - l') / noise_factor): the Gumbel
    log-density, up to a constant, of the noise that gives y under the current policy. Clamp, mean and bound are those of
    the released code. Without clamp and with noise_factor 1, the text token is an exact sample of p.
    """

    role = GUMBEL

    def __init__(
        self, noise_factor: float = 1.0, soft_temperature: float = 0.1, clamp: tuple[float, float] | None = (-1.5, 3.0)
    ):
        if not noise_factor > 0:
            raise ValueError(f"noise_factor={noise_factor}: a density needs noise_factor > 0")
        self.noise_factor, self.soft_temperature = noise_factor, soft_temperature
        self.lowest, self.highest = (-torch.inf, torch.inf) if clamp is None else clamp

    def perturb(self, log_p: Tensor, draws: Draws) -> Tensor:
        g = gumbel(draws.uniforms(log_p.shape[-1])).clamp(self.lowest, self.highest)
        return log_p + self.noise_factor * g

    def weigh(self, scores: Tensor) -> Tensor:
        return (scores / self.soft_temperature).softmax(dim=-1)

    def density(self, scores: Tensor, log_p: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        implied = torch.where(valid, scores - log_p, torch.zeros_like(log_p)) / self.noise_factor
        inside = (implied > self.lowest - SLACK) & (implied < self.highest + SLACK)
        g = torch.where(inside, implied, implied.detach().clamp(self.lowest, self.highest))
        return -g - torch.exp(-g), valid & (log_p > RELIABLE)

"""Soft thinking with weights from a Dirichlet distribution around the policy: a variant in SofT-GRPO's code."""

import torch
from torch import Tensor

from ngrpo.exploration.perturbed import Noise
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import DIRICHLET

SMALLEST = 0.01  # of alpha, so that log-weights, about -1 / alpha, fit float32
ROUNDS = 8  # proposals per gamma variate; the probability that all are rejected is below 1e-10


class Dirichlet(Noise):
    """w ~ Dir(alpha), alpha = max(concentration * p, 0.01) over the candidates, y = log w, weights = w.

    log_prob = (lgamma(sum alpha') - sum lgamma(alpha') + sum alpha' y) / K: the log-density with respect to the product
    of dw / w, which differs from the usual one by a factor without parameters and is finite for tiny weights.
    """

    role = DIRICHLET

    def __init__(self, concentration: float = 10.0):
        if not concentration > 0:
            raise ValueError(f"concentration={concentration}: a Dirichlet density needs concentration > 0")
        self.concentration = concentration

    def alpha(self, log_p: Tensor) -> Tensor:
        """Parameters (..., K), float64."""
        return (self.concentration * log_p.double().exp()).clamp(min=SMALLEST)

    def perturb(self, log_p: Tensor, draws: Draws) -> Tensor:
        gammas = log_gamma_variates(self.alpha(log_p), draws)
        return gammas.masked_fill(log_p.isneginf(), -torch.inf).log_softmax(dim=-1)

    def weigh(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=-1)

    def density(self, scores: Tensor, log_p: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        alpha, y = self.alpha(log_p), scores.double().masked_fill(~valid, 0.0)
        total = torch.where(valid, alpha, torch.zeros_like(alpha)).sum(dim=-1, keepdim=True)
        count = valid.sum(dim=-1, keepdim=True).clamp(min=1)
        return alpha * y - torch.lgamma(alpha) + torch.lgamma(total) / count, valid


def log_gamma_variates(alpha: Tensor, draws: Draws) -> Tensor:
    """(B, K) float64 logarithms of Gamma(alpha, 1) variates, from ROUNDS proposals each.

    Source: Marsaglia and Tsang, 2000, "A simple method for generating gamma variables"; below 1 a variate is that of
    alpha + 1 times u^(1 / alpha).
    """
    rows, width = alpha.shape
    boosted = alpha < 1
    d = (torch.where(boosted, alpha + 1, alpha) - 1 / 3)[..., None]
    x = draws.normal(width * ROUNDS).double().view(rows, width, ROUNDS)
    u = draws.uniforms(width * (ROUNDS + 1)).clamp(min=2.0**-54).view(rows, width, ROUNDS + 1)
    v = (1 + x / torch.sqrt(9 * d)) ** 3
    log_v = v.clamp(min=1e-300).log()
    accepted = (v > 0) & (u[..., 1:].log() < 0.5 * x.square() + d * (1 - v + log_v))
    chosen = accepted.to(torch.uint8).argmax(dim=-1, keepdim=True)  # the first that was accepted
    log_gamma = d.squeeze(-1).log() + log_v.gather(-1, chosen).squeeze(-1)
    return log_gamma + torch.where(boosted, u[..., 0].log() / alpha, torch.zeros_like(alpha))

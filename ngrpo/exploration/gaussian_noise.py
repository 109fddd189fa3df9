"""Isotropic Gaussian noise on the embedding of the sampled token: the plain baseline for embedding-level tricks.

It knows nothing of neighbours; unlike released code that perturbs rollouts alone, the same noise is replayed in training.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ngrpo.exploration.base import State, where_explored
from ngrpo.exploration.token_sampling import ThinkingSampling
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import Step


def root_mean_square(table: Tensor) -> Tensor:
    """sqrt(mean(E^2)) over all entries of the table (V, D), float32: the size of one coordinate."""
    return table.detach().float().square().mean().sqrt()


class GaussianNoise(ThinkingSampling):
    """fed = E[o] + scale * RMS(E) * N(0, I) with probability `rate` per thinking step, o ~ softmax(z / temperature).

    `scale` is a standard deviation per coordinate in units of the table's root mean square. Reserved tokens, the
    delimiter that ends the thinking part and everything after it are fed as they are. A record keeps the size of the
    noise; the noise comes back from the row's key.
    """

    rms: Tensor

    def __init__(self, rate: float, scale: float, temperature: float = 1.0, top_p: float = 1.0):
        super().__init__(temperature, top_p)
        self.rate, self.relative_scale = rate, scale
        self.register_buffer("rms", torch.ones(()))

    def prepare(self, table: Tensor, step: int, head: Tensor | None = None) -> dict[str, float]:
        self.rms = root_mean_square(table)
        return {"noise_scale": self.relative_scale * self.rms.item()}

    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[Step, State]:
        step, state = super().sample(logits, state, draws, table)
        _, state = self.thinking.push(state, step.tokens)
        noisy = state["thinking"] & (draws.explore < self.rate) & self.ordinary[step.tokens]
        scale = noisy * self.relative_scale * self.rms
        return Step(step.tokens, step.role, noisy, scale=scale), state

    def embed(self, steps: Step, table: Tensor, draws: Draws) -> Tensor:
        fed = F.embedding(steps.tokens, table)
        if steps.scale is None:
            return fed
        scale, width = steps.scale[..., None], table.shape[-1]
        return where_explored(steps, fed, lambda at: fed[at] + (draws[at].normal(width) * scale[at]).to(table.dtype))

"""Isotropic Gaussian noise on the embedding of the text token: the plain baseline for embedding-level tricks."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ngrpo.exploration.base import where_explored
from ngrpo.exploration.mixing import Around, Recipe
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import DecodeStep


def root_mean_square(table: Tensor) -> Tensor:
    """sqrt(mean(E^2)) over all entries of the table (V, D), float32: the size of one coordinate."""
    return table.detach().float().square().mean().sqrt()


class GaussianNoise(Recipe):
    """fed = E[o] + scale * RMS(E) * N(0, I), o the text token.

    `scale` is a standard deviation per coordinate in units of the table's root mean square. A record keeps the size of
    the noise; the noise comes back from the row's key, so that training replays it, which released code does not.
    """

    rms: Tensor

    def __init__(self, scale: float):
        super().__init__()
        self.relative_scale = scale
        self.register_buffer("rms", torch.ones(()))

    def prepare(self, table: Tensor, step: int, head: Tensor | None = None) -> dict[str, float]:
        self.rms = root_mean_square(table)
        return {"noise_scale": self.relative_scale * self.rms.item()}

    def record(self, rows: Around) -> dict[str, Tensor]:
        return {"scale": rows.mixed * self.relative_scale * self.rms}

    def embed(self, steps: DecodeStep, table: Tensor, draws: Draws) -> Tensor:
        fed = F.embedding(steps.tokens, table)
        if steps.scale is None:
            return fed
        scale, width = steps.scale[..., None], table.shape[-1]
        return where_explored(steps, fed, lambda at: fed[at] + (draws[at].normal(width) * scale[at]).to(table.dtype))

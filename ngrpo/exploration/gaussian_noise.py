"""Isotropic Gaussian noise on the embedding of the text token: the plain baseline for embedding-level tricks."""

import torch
from torch import Tensor

from ngrpo.exploration.mixing import Recipe, StepRows
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import DecodeStep


def root_mean_square(table: Tensor) -> Tensor:
    """sqrt(mean(E^2)) over all entries of the table (V, D), float32: the typical size of a coordinate."""
    return table.detach().float().square().mean().sqrt()


class GaussianNoise(Recipe):
    """fed = E[o] + scale * RMS(E) * N(0, I), o the text token.

    `scale` is a standard deviation per coordinate in units of the table's root mean square. A record has the size of the
    noise; training regenerates the noise from the row's key, which released code does not.
    """

    recorded = "scale"
    rms: Tensor

    def __init__(self, scale: float):
        super().__init__()
        self.relative_scale = scale
        self.register_buffer("rms", torch.ones(()))

    def prepare(self, table: Tensor, step: int, head: Tensor | None = None) -> dict[str, float]:
        self.rms = root_mean_square(table)
        return {"noise_scale": self.relative_scale * self.rms.item()}

    def record(self, rows: StepRows) -> dict[str, Tensor]:
        return {"scale": rows.mixed * self.relative_scale * self.rms}

    def vectors(self, steps: DecodeStep, fed: Tensor, table: Tensor, draws: Draws) -> Tensor:
        assert steps.scale is not None
        return fed + (draws.normal(table.shape[-1]) * steps.scale[..., None]).to(table.dtype)

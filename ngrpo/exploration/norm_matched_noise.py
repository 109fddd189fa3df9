"""A control for neighbor mixing: a displacement of the same length in a random direction, not toward the neighbors."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ngrpo.exploration.base import mixture
from ngrpo.exploration.mixing import StepRows
from ngrpo.exploration.neighbor_mix import Neighbors
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import DecodeStep


class MatchedNoise(Neighbors):
    """fed = E[anchor] + ||mix - E[anchor]|| * u, u uniform on the sphere, where neighbor mixing would feed mix.

    A record has the anchor as its only candidate and the length as `scale`; u is regenerated from the row's key.
    """

    def record(self, rows: StepRows) -> dict[str, Tensor]:
        mixed, exact = super().record(rows), torch.promote_types(rows.table.dtype, torch.float32)
        anchors = mixed["mix_ids"][:, :1]
        shift = (F.embedding(mixed["mix_ids"], rows.table) - F.embedding(anchors, rows.table)).to(exact)
        length = (shift * mixed["mix_weights"][..., None].to(exact)).sum(dim=-2).norm(dim=-1)
        return {"mix_ids": anchors, "mix_weights": torch.ones_like(length)[:, None], "scale": length}

    def vectors(self, steps: DecodeStep, fed: Tensor, table: Tensor, draws: Draws) -> Tensor:
        assert steps.scale is not None
        direction = F.normalize(draws.normal(table.shape[-1]), dim=-1)
        return mixture(steps, table) + (direction * steps.scale[..., None]).to(table.dtype)

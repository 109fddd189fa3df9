"""A control for neighbor mixing: a step of the same length in a random direction, so not to where the neighbors lie."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ngrpo.exploration.base import mixture, where_explored
from ngrpo.exploration.mixing import Around
from ngrpo.exploration.neighbor_mix import Neighbors
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import DecodeStep


class MatchedNoise(Neighbors):
    """fed = E[anchor] + ||mix - E[anchor]|| * u, u uniform on the sphere and keyed, where neighbor mixing would feed mix.

    A record keeps the anchor as its only candidate and the length as `scale`; u comes back from the row's key.
    """

    def record(self, rows: Around) -> dict[str, Tensor]:
        made, exact = super().record(rows), torch.promote_types(rows.table.dtype, torch.float32)
        anchors = made["mix_ids"][:, :1]
        shift = (F.embedding(made["mix_ids"], rows.table) - F.embedding(anchors, rows.table)).to(exact)
        length = (shift * made["mix_weights"][..., None].to(exact)).sum(dim=-2).norm(dim=-1)
        return {"mix_ids": anchors, "mix_weights": torch.ones_like(length)[:, None], "scale": length}

    def embed(self, steps: DecodeStep, table: Tensor, draws: Draws) -> Tensor:
        fed = F.embedding(steps.tokens, table)
        if steps.mix_ids is None or steps.scale is None:
            return fed
        scale = steps.scale[..., None]

        def moved(at: Any) -> Tensor:
            direction = F.normalize(draws[at].normal(table.shape[-1]), dim=-1)
            return mixture(steps[at], table) + (direction * scale[at]).to(table.dtype)

        return where_explored(steps, fed, moved)

"""A control for neighbour mixing: a displacement of the same length in a random direction.

What it gains over token sampling is not due to where the neighbours lie. It does not know what made the length.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ngrpo.exploration.base import State, mixture, where_explored
from ngrpo.exploration.neighbor_mix import NeighborMix
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import Step


class NormMatchedNoise(NeighborMix):
    """fed = E[anchor] + ||mix - E[anchor]|| * u, u uniform on the sphere and keyed, where neighbour mixing would feed mix.

    A record keeps the anchor as its only candidate and the length as `scale`; u comes back from the row's key.
    """

    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[Step, State]:
        step, state = super().sample(logits, state, draws, table)
        if step.mix_ids is None or step.mix_weights is None:
            return step, state
        anchors = step.mix_ids[:, :1]
        exact = torch.promote_types(table.dtype, torch.float32)
        shift = (F.embedding(step.mix_ids, table) - F.embedding(anchors, table)).to(exact)
        length = (shift * step.mix_weights[..., None].to(exact)).sum(dim=-2).norm(dim=-1)
        return replace(step, mix_ids=anchors, mix_weights=torch.ones_like(length)[:, None], scale=length), state

    def embed(self, steps: Step, table: Tensor, draws: Draws) -> Tensor:
        fed = F.embedding(steps.tokens, table)
        if steps.scale is None:
            return fed
        scale = steps.scale[..., None]

        def moved(at: Any) -> Tensor:
            direction = F.normalize(draws[at].normal(table.shape[-1]), dim=-1)
            return mixture(steps[at], table) + (direction * scale[at]).to(table.dtype)

        return where_explored(steps, fed, moved)

"""Noise in the directions in which other likely tokens differ from the anchor: in N-GRPO's code, not in its paper."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ngrpo.exploration.mixing import Recipe, StepRows
from ngrpo.exploration.scores import candidates, tempered
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import DecodeStep


class OrthogonalNoise(Recipe):
    """fed = e_1 + sum_j w_j u_j xi_j, u_j = e_j - (e_j . e_1 / e_1 . e_1) e_1, over the k - 1 likeliest ordinary tokens
    j besides the anchor 1, w = softmax of their z / temperature. k counts the anchor.

    noise  "scalar": xi_j is one standard normal, so fed - e_1 is orthogonal to e_1; "elementwise": xi_j ~ N(0, I) of
           (D,), as released, which is orthogonal to nothing
    A record has the ids and weights (1 for the anchor) but no noise: xi is regenerated from the row's key, the vectors from
    the current table. Source: ZJUSCL/N-GRPO at d9c94fe, whose training pass omits the noise.
    """

    ordinary: Tensor

    def __init__(self, k: int, noise: str = "scalar"):
        super().__init__()
        self.k, self.noise = k, noise

    def bind(self, ordinary: Tensor) -> None:
        self.register_buffer("ordinary", ordinary, persistent=False)

    def record(self, rows: StepRows) -> dict[str, Tensor]:
        others = rows.logits.masked_fill(~self.ordinary, -torch.inf)
        ids = candidates(others.scatter(-1, rows.anchors[:, None], torch.inf), self.k)
        weights = tempered(rows.logits.gather(-1, ids[:, 1:]), rows.temperature).softmax(dim=-1)
        return rows.mixture(ids, F.pad(weights, (1, 0), value=1.0))

    def vectors(self, steps: DecodeStep, fed: Tensor, table: Tensor, draws: Draws) -> Tensor:
        assert steps.mix_ids is not None and steps.mix_weights is not None
        vectors = F.embedding(steps.mix_ids, table)
        first, others = vectors[..., :1, :], vectors[..., 1:, :]
        along = (others * first).sum(dim=-1, keepdim=True) / first.square().sum(dim=-1, keepdim=True).clamp(min=1e-12)
        width = {"scalar": 1, "elementwise": table.shape[-1]}[self.noise]
        xi = draws.normal(others.shape[-2] * width).view(*others.shape[:-1], width).to(table.dtype)
        weights = steps.mix_weights[..., 1:, None].to(table.dtype)
        return first.squeeze(-2) + (weights * (others - along * first) * xi).sum(dim=-2)

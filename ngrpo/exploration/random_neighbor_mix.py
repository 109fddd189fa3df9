"""A control for neighbor mixing: the same weights on random rows instead of semantic neighbors."""

import torch
from torch import Tensor

from ngrpo.exploration.mixing import StepRows
from ngrpo.exploration.neighbor_mix import Neighbors
from ngrpo.rollout.keys import row_key


class RandomRows(Neighbors):
    """Neighbor mixing whose k - 1 neighbors are replaced by random ordinary rows, after the weights are computed.

    Each anchor has its own random rows, distinct from it and from each other, drawn once per run from `seed`.
    """

    random: Tensor

    def __init__(self, k: int, seed: int):
        super().__init__(k)
        self.seed = seed

    def bind(self, ordinary: Tensor) -> None:
        super().bind(ordinary)
        self.register_buffer("random", random_rows(ordinary.cpu(), self.neighbors.k - 1, self.seed).to(ordinary.device))

    def record(self, rows: StepRows) -> dict[str, Tensor]:
        fields = super().record(rows)
        return {**fields, "mix_ids": self.random[fields["mix_ids"][:, 0]]}


def random_rows(ordinary: Tensor, count: int, seed: int) -> Tensor:
    """(V, 1 + count) ids: each row itself, then `count` others out of `ordinary` (V,) bool, uniform without repetition.

    Rows that are not ordinary get themselves. Raises ValueError if fewer than count + 1 rows are ordinary.
    """
    rows = ordinary.nonzero().squeeze(-1)
    if count >= len(rows):
        raise ValueError(f"{count} random rows needed, but only {len(rows)} ordinary rows exist: lower k")
    generator = torch.Generator().manual_seed(row_key("random neighbors", seed) % 2**63)
    offsets = torch.zeros(len(rows), 1, dtype=torch.int64)  # an offset of 0 is the row itself
    for taken in range(1, count + 1):
        free = torch.randint(len(rows) - taken, (len(rows),), generator=generator)
        for before in offsets.sort(dim=-1).values.unbind(dim=-1):  # the free-th offset that is not taken yet
            free = free + (free >= before)
        offsets = torch.cat((offsets, free[:, None]), dim=1)
    ids = torch.arange(len(ordinary))[:, None].repeat(1, count + 1)
    ids[rows] = rows[(torch.arange(len(rows))[:, None] + offsets) % len(rows)]
    return ids

"""A control for neighbor mixing: the same weights on random rows, which are no semantic neighbors."""

import torch
from torch import Tensor

from ngrpo.exploration.mixing import Around
from ngrpo.exploration.neighbor_mix import Neighbors
from ngrpo.rollout.keys import row_key


class RandomRows(Neighbors):
    """Neighbor mixing whose k - 1 neighbors are exchanged, after the weights are made, for random ordinary rows.

    Each anchor has random rows of its own, distinct from it and from each other, drawn once per run from `seed`.
    """

    random: Tensor

    def __init__(self, k: int, seed: int):
        super().__init__(k)
        self.seed = seed

    def bind(self, ordinary: Tensor, table: Tensor) -> None:
        super().bind(ordinary, table)
        self.register_buffer("random", random_rows(ordinary.cpu(), self.neighbors.k - 1, self.seed).to(table.device))

    def record(self, rows: Around) -> dict[str, Tensor]:
        made = super().record(rows)
        return {**made, "mix_ids": self.random[made["mix_ids"][:, 0]]}


def random_rows(ordinary: Tensor, count: int, seed: int) -> Tensor:
    """(V, 1 + count) ids: each row itself, then `count` others out of `ordinary` (V,) bool, uniform without repetition.

    A row that is not ordinary names itself throughout. Raises ValueError if fewer than count + 1 rows are ordinary.
    """
    rows = ordinary.nonzero().squeeze(-1)
    if count >= len(rows):
        raise ValueError(f"{count} random rows asked for, but only {len(rows)} ordinary rows exist: lower k")
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

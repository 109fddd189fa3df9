"""A control for neighbour mixing: the same weights on random rows in place of the nearest ones.

What it gains over token sampling is not due to semantic neighbours. It does not know which rows are near.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ngrpo.exploration.base import State
from ngrpo.exploration.neighbor_mix import NeighborMix
from ngrpo.rollout.keys import Draws, row_key
from ngrpo.rollout.records import Step, Vocabulary


class RandomNeighborMix(NeighborMix):
    """Neighbour mixing whose k - 1 neighbours are exchanged, after the weights are made, for random ordinary rows.

    Each anchor has random rows of its own, distinct from it and from each other, drawn once per run from `seed`.
    """

    random: Tensor

    def __init__(self, rate: float | None, k: int, seed: int, temperature: float = 1.0, top_p: float = 1.0):
        super().__init__(rate, k, temperature=temperature, top_p=top_p)
        self.seed = seed

    def bind(self, vocabulary: Vocabulary, table: Tensor) -> None:
        super().bind(vocabulary, table)
        drawn = random_rows(self.ordinary.cpu(), self.neighbors.k - 1, self.seed)
        self.register_buffer("random", drawn.to(table.device))

    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[Step, State]:
        step, state = super().sample(logits, state, draws, table)
        if step.mix_ids is None:
            return step, state
        return replace(step, mix_ids=self.random[step.mix_ids[:, 0]]), state


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

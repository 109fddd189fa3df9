"""Which of the processes that train together this one is, and their collectives, which do nothing where it is alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Ranks:
    """This process among `world` of them, rank 0 to world - 1."""

    rank: int = 0
    world: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world > 1:
            distributed.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, in rank order."""
        values: list[Any] = [value] * self.world
        if self.world > 1:
            distributed.all_gather_object(values, value)
        return values

    def sums(self, figures: Mapping[str, float], device: torch.device) -> dict[str, float]:
        """Sums over ranks, name by name, in float64."""
        values = torch.tensor(list(figures.values()), dtype=torch.float64, device=device)
        return dict(zip(figures, self.sum(values).tolist(), strict=True))

    def merge(self, rows: list[Any], figures: Mapping[str, float]) -> tuple[list[Any], dict[str, float]]:
        """The rows of all ranks in rank order, and the means of their figures, each over the ranks that have it."""
        ranks = self.gather((rows, dict(figures)))
        names = dict.fromkeys(name for _, own in ranks for name in own)
        values = {name: [own[name] for _, own in ranks if name in own] for name in names}
        return [row for own, _ in ranks for row in own], {name: sum(each) / len(each) for name, each in values.items()}

    def barrier(self) -> None:
        """Wait for all."""
        if self.world > 1:
            distributed.barrier()


ALONE = Ranks()

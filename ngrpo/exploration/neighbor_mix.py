"""Semantic neighbor mixing, the recipe of N-GRPO (arXiv 2606.10768): a mixture of a token's embedding and its nearest ones."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ngrpo.exploration.mixing import Recipe, StepRows
from ngrpo.exploration.neighbors import NeighborTable
from ngrpo.exploration.scores import tempered


def raw(rows: StepRows, ids: Tensor) -> Tensor:
    """softmax(z / temperature) over the candidates (section 3 of the paper)."""
    return tempered(rows.logits.gather(-1, ids), rows.temperature).softmax(dim=-1)


def filtered(rows: StepRows, ids: Tensor) -> Tensor:
    """`raw`, but with weight 0 for neighbors that the sampling filter cuts; the anchor always stays."""
    kept = rows.scores.gather(-1, ids)
    kept[:, 0] = tempered(rows.logits.gather(-1, ids[:, :1]), rows.temperature).squeeze(-1)
    return kept.softmax(dim=-1)


def double_softmax(rows: StepRows, ids: Tensor) -> Tensor:
    """softmax(p / temperature) over the candidates, p the probabilities that tokens are drawn from.

    The released sampler overwrites its logits with probabilities before it computes the weights, so no weight is more than
    e^(1 / temperature) times another: even an anchor of probability 1 gets 0.576 among three candidates at temperature 1.
    """
    return (rows.scores.softmax(dim=-1).gather(-1, ids) / rows.temperature).softmax(dim=-1)


# Weights (B, K) of candidates (B, K), the anchor first.
WEIGHTS: Mapping[str, Callable[[StepRows, Tensor], Tensor]] = {
    function.__name__: function for function in (raw, filtered, double_softmax)
}


class Neighbors(Recipe):
    """Candidates C = the anchor and its k - 1 nearest rows of E, fed = sum over C of weight * E[c] (section 3 of the
    paper). k counts the anchor, so k = 1 feeds the anchor's own embedding. The recipe is deterministic.

    weights  "raw" (paper), "filtered" or "double_softmax", see the functions of those names
    search   "table": the nearest rows of the input embedding; "head": of the output embedding, as released
    """

    def __init__(
        self, k: int, metric: str = "cosine", weights: str = "raw", search: str = "table", refresh_every: int = 10
    ):
        super().__init__()
        self.neighbors = NeighborTable(k, metric, refresh_every)
        self.weights, self.search = weights, search

    def bind(self, ordinary: Tensor) -> None:
        self.neighbors.bind(ordinary)

    def prepare(self, table: Tensor, step: int, head: Tensor | None = None) -> Mapping[str, float]:
        return self.neighbors.refresh(head if self.search == "head" and head is not None else table, step)

    def record(self, rows: StepRows) -> dict[str, Tensor]:
        ids = self.neighbors.ids[
            torch.where(rows.mixed, rows.anchors, 0)
        ]  # of other rows an anchor may have no neighbors
        return rows.mixture(ids, WEIGHTS[self.weights](rows, ids))

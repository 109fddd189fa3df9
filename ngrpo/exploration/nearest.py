"""Exact nearest rows of an embedding table: by products in torch, and by faiss where distances are not products.

Approximate indexes are not offered: on language-model embeddings they lose a fifth of the neighbors or more.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

ANCHORS = 4096  # rows searched or read at a time
_BLOCK_BYTES = 64 * 2**20  # of float32 scores
_PASS_BYTES = 8 * 2**20  # of float64 vectors, few enough that several passes over them stay in the cache


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (F.normalize(a, dim=-1) * F.normalize(b, dim=-1)).sum(dim=-1)


# Similarity to the anchor, larger is closer (arXiv 2606.10768, table 4); vectors (..., D) that broadcast.
SIMILARITIES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": _cosine,
    "dot": lambda a, b: (a * b).sum(dim=-1),
    "l2": lambda a, b: -(a - b).square().sum(dim=-1),
    "l1": lambda a, b: -(a - b).abs().sum(dim=-1),
}


def nearest(table: Tensor, count: int, metric: str, ordinary: Tensor) -> Tensor:
    """(V, count) int64: for each row of `table` (V, D) the `count` other rows most similar to it, ties by lowest id.

    Only `ordinary` (V,) bool rows have neighbors or are neighbors; the others get themselves. Raises ValueError if fewer
    than count + 1 rows are ordinary or the table is not finite.
    """
    rows = ordinary.nonzero().squeeze(-1)  # (N,)
    if count >= max(len(rows), 1):
        raise ValueError(f"{count} neighbors needed, but only {len(rows)} ordinary rows exist: lower k")
    if not all(torch.isfinite(part).all() for part in table.split(ANCHORS)):
        raise ValueError("the embedding table has values that are not finite")
    found = torch.arange(len(table), device=table.device)[:, None].expand(-1, count).clone()
    if count:
        search = Search(table, rows, count, metric)
        for anchors in torch.arange(len(rows), device=rows.device).split(ANCHORS):
            found[rows[anchors]] = rows[search(anchors)]
    return found


class Search:
    """The `count` nearest of the `rows` (N,) of a table (V, D): scored in float32, and in float64 where float32 cannot tell.
    Anchors and results are indices into `rows`.

    For an anchor p, the score c_p . c_q + b_q orders the rows q as their similarity does. c are the rows, of unit length
    for "cosine", minus their mean m, so that a large common part costs no precision. b_q is m . c_q for "cosine" and "dot",
    -|c_q|^2 / 2 for "l2". For "l1" the score is the similarity itself. The error of float32 is at most `error` (N,),
    whatever the order of summation; where neighbors are not ahead of the next row by twice as much, every row that may be
    a neighbor is compared in float64.
    """

    def __init__(self, table: Tensor, rows: Tensor, count: int, metric: str):
        self.table, self.rows, self.count, self.metric = table.detach(), rows, count, metric
        self.points, self.error = self._points_and_error()

    def __call__(self, anchors: Tensor) -> Tensor:
        """(A, count) the nearest to each of the `anchors` (A,), nearest first."""
        queries = self._queries(anchors)
        # On a CPU, faiss takes half as long as torch for l1; for products torch is as fast, or five times faster.
        best = self._best_by_faiss if self.metric == "l1" and not queries.is_cuda else self._best_by_torch
        scores, places = best(queries, min(self.count + 2, len(self.rows)))
        scores = scores.masked_fill(places == anchors[:, None], -torch.inf)
        scores, order = scores.sort(dim=-1, descending=True)
        found = places.gather(-1, order)[:, : self.count]
        slack = 2 * self.error[anchors]
        gaps = scores[:, : self.count] - scores[:, 1 : self.count + 1]
        unsure = ~(gaps > slack[:, None]).all(dim=-1)  # this form is true of overflows too
        for part in unsure.nonzero().split(max(1, _BLOCK_BYTES // (4 * len(self.points)))):
            part = part.squeeze(-1)
            floors = scores[part, self.count - 1] - slack[part]
            found[part] = self._among_all(anchors[part], queries[part], floors)
        return found

    def _points_and_error(self) -> tuple[Tensor, Tensor]:
        """c and b as one table (N, D + 1), and the largest error of a score with each row (N,), float32."""
        count, width = len(self.rows), self.table.shape[1]
        mean = torch.zeros(width, dtype=torch.float64, device=self.rows.device)
        parts = torch.arange(count, device=self.rows.device).split(ANCHORS)
        for part in parts:
            mean += self._directions(part).sum(dim=0) / count
        points = torch.empty(count, width + 1, device=self.rows.device)
        bias, norms = torch.zeros(2, count, dtype=torch.float64, device=self.rows.device)
        for part in parts:
            centered = self._directions(part) - mean
            points[part, :-1] = centered.float()
            norms[part] = centered.norm(p=1 if self.metric == "l1" else 2, dim=-1)
            if self.metric != "l1":
                bias[part] = -centered.square().sum(dim=-1) / 2 if self.metric == "l2" else centered @ mean
        bias -= bias.mean()
        points[:, -1] = bias.float()
        scale = norms + norms.max() if self.metric == "l1" else norms * norms.max() + bias.abs().max()
        return points, ((width + 8) * 2.0**-24 * scale).float()

    def _directions(self, places: Tensor) -> Tensor:
        """(A, D) float64: the rows, of unit length for "cosine"."""
        vectors = self.table[self.rows[places]].double()
        return F.normalize(vectors, dim=-1) if self.metric == "cosine" else vectors

    def _queries(self, anchors: Tensor) -> Tensor:
        queries = self.points[anchors]
        queries[:, -1] = self.metric != "l1"  # the factor of b; distances have no b
        return queries

    def _best_by_faiss(self, queries: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
        """The highest scores (A, wanted) of "l1" and their indices."""
        import faiss  # here, because GPU users need not have it

        scores, places = faiss.knn(queries.numpy(), self.points.numpy(), wanted, metric=faiss.METRIC_L1)
        return -torch.from_numpy(scores), torch.from_numpy(places)

    def _best_by_torch(self, queries: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
        blocks = queries.split(max(1, _BLOCK_BYTES // (4 * len(self.points))))
        scores, places = zip(*(self._scores(block).topk(wanted, dim=-1) for block in blocks), strict=True)
        return torch.cat(scores), torch.cat(places)

    def _scores(self, queries: Tensor) -> Tensor:
        """(A, N) float32 scores of every row."""
        if self.metric == "l1":
            return -torch.cdist(queries, self.points, p=1)
        return queries @ self.points.T

    def _among_all(self, anchors: Tensor, queries: Tensor, floors: Tensor) -> Tensor:
        """As a call, by the float64 similarities of all rows whose score is at least `floors` (A,)."""
        near = ~(self._scores(queries) < floors[:, None])
        near[torch.arange(len(anchors)), anchors] = False
        row, place = near.nonzero().unbind(dim=-1)  # places ascend, so stable sorts order ties by id
        step = max(1, _PASS_BYTES // (8 * self.table.shape[1]))
        pairs = zip(self.rows[anchors[row]].split(step), self.rows[place].split(step), strict=True)
        similarities = [SIMILARITIES[self.metric](self.table[a].double(), self.table[b].double()) for a, b in pairs]
        order = torch.cat(similarities).sort(descending=True, stable=True).indices
        order = order[row[order].sort(stable=True).indices]
        counts = near.sum(dim=-1, keepdim=True)
        first = counts.cumsum(dim=0) - counts
        return place[order[first + torch.arange(self.count, device=first.device)]]

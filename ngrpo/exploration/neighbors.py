"""The nearest-neighbour table of an embedding: exact search by faiss on a CPU and by torch on a GPU.

It does not know what neighbours are used for. Approximate indexes are not offered: on language-model embeddings they
lose a fifth of the neighbours or more, and the exact join is needed once per refresh at most.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

SPARE = 8  # candidates beyond those asked for, so that ties and float32 rounding are settled in float64
CACHED_FROM = 16_384  # rows; smaller tables are searched faster than they are read from a disk
_CHUNK_BYTES = 256 * 2**20


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
    """(V, count) int64: the `count` rows of `table` (V, D) most similar to each row, itself left out, ties by lowest id.

    Only rows marked in `ordinary` (V,) bool have neighbours or are neighbours; the others name themselves. Raises
    ValueError if fewer than count + 1 rows are ordinary or the table is not finite.
    """
    rows = ordinary.nonzero().squeeze(-1)
    if count >= max(len(rows), 1):
        raise ValueError(f"{count} neighbours asked for, but only {len(rows)} ordinary rows exist: lower k")
    if not torch.isfinite(table).all():
        raise ValueError("the embedding table has values that are not finite")
    everyone = torch.arange(len(table), device=table.device)[:, None].expand(-1, count).clone()
    if count == 0:
        return everyone
    vectors = table.detach()[rows]
    wanted = min(count + 1 + SPARE, len(rows))
    search = _search_torch if table.is_cuda else _search_faiss
    candidates = search(vectors.float(), wanted, metric)
    everyone[rows] = rows[_settle(vectors, candidates, count, metric)]
    return everyone


def _search_faiss(vectors: Tensor, wanted: int, metric: str) -> Tensor:
    import faiss  # imported here: a GPU user need not have it

    points = F.normalize(vectors, dim=-1) if metric == "cosine" else vectors
    kinds = {"l2": faiss.METRIC_L2, "l1": faiss.METRIC_L1}
    index = faiss.IndexFlat(points.shape[1], kinds.get(metric, faiss.METRIC_INNER_PRODUCT))
    array = points.contiguous().numpy()
    index.add(array)
    return torch.from_numpy(index.search(array, wanted)[1])


def _search_torch(vectors: Tensor, wanted: int, metric: str) -> Tensor:
    points = F.normalize(vectors, dim=-1) if metric == "cosine" else vectors
    found = []
    for chunk in points.split(max(1, _CHUNK_BYTES // (4 * len(points)))):
        scores = -torch.cdist(chunk, points, p=int(metric[1])) if metric in ("l1", "l2") else chunk @ points.T
        found.append(scores.topk(wanted, dim=-1).indices)
    return torch.cat(found)


def _settle(vectors: Tensor, candidates: Tensor, count: int, metric: str) -> Tensor:
    """(N, count) best candidates by exact similarity, then by id; a tie that may reach past the candidates is redone."""
    best = []
    step = max(1, _CHUNK_BYTES // (8 * vectors.shape[1] * candidates.shape[1]))
    for anchors in torch.arange(len(vectors), device=vectors.device).split(step):
        ids = candidates[anchors].sort(dim=-1).values
        scores = SIMILARITIES[metric](vectors[anchors, None].double(), vectors[ids].double())
        scores = scores.masked_fill(ids == anchors[:, None], -torch.inf)
        ordered, order = scores.sort(dim=-1, descending=True, stable=True)
        chosen = ids.gather(-1, order)[:, :count]
        last = scores.masked_fill(ids == anchors[:, None], torch.inf).amin(dim=-1)
        open_ended = (ordered[:, count - 1] <= last) | ~(ids == anchors[:, None]).any(dim=-1)
        if ids.shape[1] < len(vectors):
            for row in open_ended.nonzero().squeeze(-1).tolist():
                chosen[row] = _settle_row(vectors, int(anchors[row]), count, metric)
        best.append(chosen)
    return torch.cat(best)


def _settle_row(vectors: Tensor, anchor: int, count: int, metric: str) -> Tensor:
    parts = [SIMILARITIES[metric](vectors[anchor].double(), part.double()) for part in vectors.split(16_384)]
    scores = torch.cat(parts)
    scores[anchor] = -torch.inf
    return scores.sort(descending=True, stable=True).indices[:count]


def fingerprint(table: Tensor) -> str:
    """Hex digest of the table's bytes: equal for equal tables only."""
    digest = hashlib.blake2b(digest_size=16)
    for part in table.detach().split(65_536):
        digest.update(part.contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class NeighborTable(nn.Module):
    """Candidates of every anchor, refreshed every `refresh_every` RL steps if the embedding has changed since.

    The table and what it was made from are buffers, so a checkpoint carries them and a resumed run mixes as the
    uninterrupted one would have. Large tables are kept on disk too, under $NGRPO_CACHE (default ~/.cache/ngrpo).
    """

    ids: Tensor
    made_at: Tensor
    made_from: Tensor
    ordinary: Tensor

    def __init__(self, k: int, metric: str, refresh_every: int):
        super().__init__()
        self.k, self.metric, self.refresh_every = k, metric, refresh_every

    def bind(self, ordinary: Tensor) -> None:
        """Make room for V rows, given which of them are ordinary tokens (V,) bool."""
        rows = torch.arange(len(ordinary), device=ordinary.device)
        self.register_buffer("ordinary", ordinary, persistent=False)
        self.register_buffer("ids", rows[:, None].repeat(1, self.k))
        self.register_buffer("made_at", torch.tensor(-1, device=ordinary.device))
        self.register_buffer("made_from", torch.zeros(16, dtype=torch.uint8, device=ordinary.device))

    def candidates(self, anchors: Tensor) -> Tensor:
        """(B, K) ids for anchors (B,): the anchor first, then its neighbours, nearest first."""
        return self.ids[anchors]

    def refresh(self, table: Tensor, step: int) -> dict[str, float]:
        """Search again where it is due; returns the share of neighbour entries that changed (`neighbor_drift`)."""
        made_at = int(self.made_at)
        if self.k == 1 or (made_at >= 0 and step - made_at < self.refresh_every):
            return {}
        mark = fingerprint(table)
        before = self.ids[self.ordinary, 1:].clone()
        if made_at < 0 or mark != bytes(self.made_from.tolist()).hex():
            self.ids[:, 1:] = self._search(table, mark)
        self.made_at.fill_(step)
        self.made_from.copy_(torch.tensor(list(bytes.fromhex(mark)), dtype=torch.uint8))
        after = self.ids[self.ordinary, 1:]
        drift = (after[:, :, None] != before[:, None, :]).all(dim=-1).double().mean().item()
        return {"neighbor_drift": drift} if made_at >= 0 else {}

    def _search(self, table: Tensor, mark: str) -> Tensor:
        if len(table) < CACHED_FROM:
            return nearest(table, self.k - 1, self.metric, self.ordinary)
        folder = Path(os.environ.get("NGRPO_CACHE", Path.home() / ".cache" / "ngrpo")) / "neighbors"
        reserved = hashlib.blake2b(self.ordinary.cpu().numpy().tobytes(), digest_size=8).hexdigest()
        path = folder / f"{mark}-{reserved}-{self.metric}-{self.k}.safetensors"
        if path.is_file():
            return load_file(path)["neighbors"].to(table.device)
        found = nearest(table, self.k - 1, self.metric, self.ordinary)
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.part")
        save_file({"neighbors": found.cpu()}, partial)
        os.replace(partial, path)
        return found

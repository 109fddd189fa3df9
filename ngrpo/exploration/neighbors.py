"""The neighbours of tokens through a run: when they are searched anew, what is kept on a disk and in checkpoints.

It does not know how neighbours are found or what they are used for.
"""

import hashlib
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ngrpo.exploration.nearest import Search, join_seconds, nearest

CACHED_FROM = 16_384  # rows; smaller tables are searched faster than they are read from a disk
LONGEST_JOIN = 1200.0  # seconds on two CPU cores; tables that need longer are searched row by row, as anchors occur


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
    Where a table would take longer than LONGEST_JOIN on a CPU, a row is searched when its anchor first occurs and is
    forgotten at the next RL step whose embedding differs: what it holds depends on the embedding of the step alone, not
    on the steps before, so there is nothing to carry. Frozen embeddings are searched once either way.
    """

    ids: Tensor
    made_at: Tensor
    made_from: Tensor
    ordinary: Tensor
    known: Tensor

    def __init__(self, k: int, metric: str, refresh_every: int):
        super().__init__()
        self.k, self.metric, self.refresh_every = k, metric, refresh_every
        self.seen: tuple[Tensor, int] | None = None
        self.search: Search | None = None
        self.mark = ""

    def bind(self, ordinary: Tensor, width: int) -> None:
        """Make room for V rows of `width` numbers, given which of them are ordinary tokens (V,) bool."""
        rows = torch.arange(len(ordinary), device=ordinary.device)
        self.seen = self.search = None
        self.lazy = not ordinary.is_cuda and join_seconds(len(rows), width, self.metric) > LONGEST_JOIN
        self.register_buffer("ordinary", ordinary, persistent=False)
        self.register_buffer("known", ~ordinary, persistent=False)
        self.register_buffer("ids", rows[:, None].repeat(1, self.k), persistent=not self.lazy)
        self.register_buffer("made_at", torch.tensor(-1, device=ordinary.device))
        self.register_buffer("made_from", torch.zeros(16, dtype=torch.uint8, device=ordinary.device))

    def candidates(self, anchors: Tensor) -> Tensor:
        """(B, K) ids for anchors (B,): the anchor first, then its neighbours, nearest first."""
        if self.search is not None:
            missing = anchors[~self.known[anchors]].unique()
            if len(missing):
                self.ids[missing, 1:] = self.search(missing)
                self.known[missing] = True
        return self.ids[anchors]

    def refresh(self, table: Tensor, step: int) -> dict[str, float]:
        """Search again where it is due; returns the share of neighbour entries that changed (`neighbor_drift`).

        A table that is searched row by row is due whenever it changed, and tells no drift.
        """
        if self.k == 1:
            return {}
        if self.lazy:
            if not self._same(table):
                self.search = Search(table, self.k - 1, self.metric, self.ordinary)
                self.known.copy_(~self.ordinary)
            return {}
        made_at = int(self.made_at)
        if made_at >= 0 and step - made_at < self.refresh_every:
            return {}
        before = self.ids[self.ordinary, 1:].clone()
        if not self._same(table):
            self.mark = fingerprint(table)
        if made_at < 0 or self.mark != bytes(self.made_from.tolist()).hex():
            self.ids[:, 1:] = self._search(table, self.mark)
        self.made_at.fill_(step)
        self.made_from.copy_(torch.tensor(list(bytes.fromhex(self.mark)), dtype=torch.uint8))
        after = self.ids[self.ordinary, 1:]
        drift = (after[:, :, None] != before[:, None, :]).all(dim=-1).double().mean().item()
        return {"neighbor_drift": drift} if made_at >= 0 else {}

    def _same(self, table: Tensor) -> bool:
        """Whether this is the memory that was searched last and nothing was written to it since; then remembers it.

        False tells nothing; a frozen table need not be read through at every look.
        """
        before, self.seen = self.seen, (table, table._version)
        return before is not None and (before[0].data_ptr(), before[1]) == (table.data_ptr(), table._version)

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

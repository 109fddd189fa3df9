"""The neighbors of tokens through a run: when they are searched anew, what is kept on a disk and in checkpoints."""

import hashlib
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ngrpo.exploration.nearest import Search, join_seconds, nearest

CACHED_FROM = 16_384  # rows; smaller tables are searched faster than they are read from a disk
WORTH_TELLING = 30.0  # seconds
LONGEST_JOIN = 1200.0  # seconds on two CPU cores; tables that need longer are searched row by row, as anchors occur


def fingerprint(table: Tensor) -> str:
    """32 hexadecimal digits, equal for equal tables only."""
    digest = hashlib.sha256()  # of all that are safe, the fastest where processors know it: 1.4 GB/s here
    for part in table.detach().split(65_536):
        digest.update(part.contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


class NeighborTable(nn.Module):
    """Candidates of every anchor, refreshed every `refresh_every` RL steps if the embedding has changed since.

    The table and what it was made from are buffers, so a checkpoint carries them and a resumed run mixes as the
    uninterrupted one would have. Large tables are kept on disk too, under $NGRPO_CACHE (default ~/.cache/ngrpo).
    Where a CPU would need more than LONGEST_JOIN, a row is searched when its anchor first occurs, and forgotten at the
    next RL step whose embedding differs. What is found then depends on the embedding of the step alone and not on the
    steps, ranks or evaluations before; a frozen embedding is searched once either way.
    """

    ids: Tensor
    made_at: Tensor
    made_from: Tensor
    ordinary: Tensor

    def __init__(self, k: int, metric: str, refresh_every: int):
        super().__init__()
        self.k, self.metric, self.refresh_every = k, metric, refresh_every
        self.search: Search | None = None  # of a table that is searched row by row

    def bind(self, ordinary: Tensor) -> None:
        """Make room for V rows, given which of them are ordinary tokens (V,) bool."""
        self.search = None
        self.register_buffer("ordinary", ordinary, persistent=False)
        self.register_buffer("ids", self._unknown())
        self.register_buffer("made_at", torch.tensor(-1, device=ordinary.device))
        self.register_buffer("made_from", torch.zeros(16, dtype=torch.uint8, device=ordinary.device))

    def candidates(self, anchors: Tensor) -> Tensor:
        """(B, K) ids for anchors (B,): the anchor first, then its neighbors, nearest first."""
        if self.search is not None:
            unknown = self.ordinary[anchors] & (self.ids[anchors, 1] == anchors)
            missing = anchors[unknown].unique()
            if len(missing):
                self.ids[missing, 1:] = self.search(missing)
        return self.ids[anchors]

    def refresh(self, table: Tensor, step: int) -> dict[str, float]:
        """Search again where it is due; returns the share of neighbor entries that changed (`neighbor_drift`).

        A table that is searched row by row is looked at before every step, and tells no drift.
        """
        made_at, by_row = int(self.made_at), self._by_row(table)
        if self.k == 1 or (made_at >= 0 and not by_row and step - made_at < self.refresh_every):
            return {}
        mark = fingerprint(table)
        changed = made_at < 0 or mark != bytes(self.made_from.tolist()).hex()
        before = self.ids[self.ordinary, 1:].clone()
        if by_row:
            self._start_by_row(table, changed)
        elif changed:
            self.ids[:, 1:] = self._search(table, mark)
        self.made_at.fill_(step)
        self.made_from.copy_(torch.tensor(list(bytes.fromhex(mark)), dtype=torch.uint8))
        if made_at < 0 or by_row:
            return {}
        after = self.ids[self.ordinary, 1:]
        return {"neighbor_drift": (after[:, :, None] != before[:, None, :]).all(dim=-1).double().mean().item()}

    def _by_row(self, table: Tensor) -> bool:
        return not table.is_cuda and join_seconds(len(table), table.shape[1], self.metric) > LONGEST_JOIN

    def _start_by_row(self, table: Tensor, changed: bool) -> None:
        if changed:
            self.ids.copy_(self._unknown())
        if changed or self.search is None:
            self.search = Search(table, self.k - 1, self.metric, self.ordinary)

    def _unknown(self) -> Tensor:
        """(V, K) ids of rows that name themselves throughout, as those without neighbors do."""
        return torch.arange(len(self.ordinary), device=self.ordinary.device)[:, None].repeat(1, self.k)

    def _search(self, table: Tensor, mark: str) -> Tensor:
        if len(table) < CACHED_FROM:
            return nearest(table, self.k - 1, self.metric, self.ordinary)
        folder = Path(os.environ.get("NGRPO_CACHE", Path.home() / ".cache" / "ngrpo")) / "neighbors"
        reserved = hashlib.blake2b(self.ordinary.cpu().numpy().tobytes(), digest_size=8).hexdigest()
        path = folder / f"{mark}-{reserved}-{self.metric}-{self.k}.safetensors"
        if path.is_file():
            return load_file(path)["neighbors"].to(table.device)
        if (seconds := join_seconds(len(table), table.shape[1], self.metric)) > WORTH_TELLING and not table.is_cuda:
            print(
                f"note: searching the neighbors of {len(table):,} tokens, about {seconds / 60:.0f} minutes on two cores"
            )
        found = nearest(table, self.k - 1, self.metric, self.ordinary)
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.part")
        save_file({"neighbors": found.cpu()}, partial)
        os.replace(partial, path)
        return found

"""The neighbors of tokens through a run: when they are searched anew, what is kept on a disk and in checkpoints."""

import hashlib
import os
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ngrpo.exploration.nearest import nearest
from ngrpo.rundir.files import write_atomically

CACHED_FROM = 16_384  # rows; smaller tables are searched faster than they are read from a disk


def fingerprint(table: Tensor) -> str:
    """32 hexadecimal digits, equal for equal tables only."""
    digest = hashlib.sha256()  # of all that are safe, the fastest where processors know it: 1.4 GB/s here
    for part in table.detach().split(8192):
        copy = (
            part.cpu().clone()
        )  # what numpy has seen cannot be freed, as sharded training frees what it puts together
        digest.update(copy.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


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
        """Make room for V rows, given which of them are ordinary tokens (V,) bool; until the first search, and for ever
        where they are no such tokens, rows name themselves throughout."""
        self.register_buffer("ordinary", ordinary, persistent=False)
        self.register_buffer("ids", torch.arange(len(ordinary), device=ordinary.device)[:, None].repeat(1, self.k))
        self.register_buffer("made_at", torch.tensor(-1, device=ordinary.device))
        self.register_buffer("made_from", torch.zeros(16, dtype=torch.uint8, device=ordinary.device))

    def candidates(self, anchors: Tensor) -> Tensor:
        """(B, K) ids for anchors (B,): the anchor first, then its neighbors, nearest first."""
        return self.ids[anchors]

    def refresh(self, table: Tensor, step: int) -> dict[str, float]:
        """Search again where it is due; returns the share of neighbor entries that changed (`neighbor_drift`)."""
        made_at = int(self.made_at)
        if self.k == 1 or (made_at >= 0 and step - made_at < self.refresh_every):
            return {}
        mark, before = fingerprint(table), self.ids[self.ordinary, 1:].clone()
        if made_at < 0 or mark != bytes(self.made_from.tolist()).hex():
            self.ids[:, 1:] = self._search(table, mark)
        self.made_at.fill_(step)
        self.made_from.copy_(torch.tensor(list(bytes.fromhex(mark)), dtype=torch.uint8))
        if made_at < 0:
            return {}
        after = self.ids[self.ordinary, 1:]
        return {"neighbor_drift": (after[:, :, None] != before[:, None, :]).all(dim=-1).double().mean().item()}

    def _search(self, table: Tensor, mark: str) -> Tensor:
        if len(table) < CACHED_FROM:
            return nearest(table, self.k - 1, self.metric, self.ordinary)
        folder = Path(os.environ.get("NGRPO_CACHE", Path.home() / ".cache" / "ngrpo")) / "neighbors"
        reserved = hashlib.blake2b(self.ordinary.cpu().numpy().tobytes(), digest_size=8).hexdigest()
        path = folder / f"{mark}-{reserved}-{self.metric}-{self.k}.safetensors"
        if path.is_file() and (known := _cached(path, self.ids[:, 1:].shape)) is not None:
            return known.to(table.device)
        if not table.is_cuda:
            print(f"note: searching the neighbors of {len(table):,} tokens, which takes a CPU minutes, by l1 hours")
        found = nearest(table, self.k - 1, self.metric, self.ordinary)
        write_atomically(path, save({"neighbors": found.cpu()}, {"sha256": _sha256(found)}))
        return found


def _cached(path: Path, shape: torch.Size) -> Tensor | None:
    """The neighbors in a file of an earlier search; None, with a warning, where the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            found, digest = file.get_tensor("neighbors"), (file.metadata() or {}).get("sha256")
        if found.shape == shape and digest == _sha256(found):
            return found
    except (OSError, SafetensorError) as error:
        print(f"note: {path}: {error}")
    warnings.warn(f"{path} is damaged: the neighbors are searched anew", RuntimeWarning, stacklevel=2)
    return None


def _sha256(ids: Tensor) -> str:
    return hashlib.sha256(ids.cpu().contiguous().numpy().tobytes()).hexdigest()

"""The neighbors of tokens during a run: when they are searched again, and what disks and checkpoints keep of them."""

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

CACHED_FROM = 16_384  # rows; smaller tables are searched faster than their neighbors are read from disk


def fingerprint(table: Tensor) -> str:
    """32 hexadecimal digits that identify a table's content."""
    digest = hashlib.sha256()  # the fastest secure hash on processors with instructions for it: 1.4 GB/s here
    for part in table.detach().split(8192):
        copy = part.cpu().clone()  # sharded training frees a gathered table, and could not while numpy views it
        digest.update(copy.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


class NeighborTable(nn.Module):
    """Candidates of every anchor, refreshed every `refresh_every` RL steps if the embedding has changed.

    ids: (V, K), the anchor first, then its neighbors, nearest first. They and the fingerprint of the embedding are buffers,
    so a resumed run mixes as the uninterrupted one would have. Neighbors in large tables are also kept on disk, under
    $NGRPO_CACHE (default ~/.cache/ngrpo).
    """

    ids: Tensor
    made_at: Tensor
    made_from: Tensor
    ordinary: Tensor

    def __init__(self, k: int, metric: str, refresh_every: int):
        super().__init__()
        self.k, self.metric, self.refresh_every = k, metric, refresh_every

    def bind(self, ordinary: Tensor) -> None:
        """Allocates V rows; `ordinary` (V,) bool says which are ordinary tokens. The candidates of a row are itself until the
        first search, and those of other tokens stay so."""
        self.register_buffer("ordinary", ordinary, persistent=False)
        self.register_buffer("ids", torch.arange(len(ordinary), device=ordinary.device)[:, None].repeat(1, self.k))
        self.register_buffer("made_at", torch.tensor(-1, device=ordinary.device))
        self.register_buffer("made_from", torch.zeros(16, dtype=torch.uint8, device=ordinary.device))

    def refresh(self, table: Tensor, step: int) -> dict[str, float]:
        """Searches again if it is due; returns the share of neighbor entries that changed (`neighbor_drift`)."""
        made_at = int(self.made_at)
        if self.k == 1 or (made_at >= 0 and step - made_at < self.refresh_every):
            return {}
        content, before = fingerprint(table), self.ids[self.ordinary, 1:].clone()
        if made_at < 0 or content != bytes(self.made_from.tolist()).hex():
            self.ids[:, 1:] = self._search(table, content)
        self.made_at.fill_(step)
        self.made_from.copy_(torch.tensor(list(bytes.fromhex(content)), dtype=torch.uint8))
        if made_at < 0:
            return {}
        after = self.ids[self.ordinary, 1:]
        return {"neighbor_drift": (after[:, :, None] != before[:, None, :]).all(dim=-1).double().mean().item()}

    def _search(self, table: Tensor, content: str) -> Tensor:
        if len(table) < CACHED_FROM:
            return nearest(table, self.k - 1, self.metric, self.ordinary)
        folder = Path(os.environ.get("NGRPO_CACHE", Path.home() / ".cache" / "ngrpo")) / "neighbors"
        reserved = hashlib.blake2b(self.ordinary.cpu().numpy().tobytes(), digest_size=8).hexdigest()
        path = folder / f"{content}-{reserved}-{self.metric}-{self.k}.safetensors"
        if path.is_file() and (known := _cached(path, self.ids[:, 1:].shape)) is not None:
            return known.to(table.device)
        if not table.is_cuda:
            print(f"note: searching the neighbors of {len(table):,} tokens; a CPU needs minutes, for l1 hours")
        found = nearest(table, self.k - 1, self.metric, self.ordinary)
        write_atomically(path, save({"neighbors": found.cpu()}, {"sha256": _sha256(found)}))
        return found


def _cached(path: Path, shape: torch.Size) -> Tensor | None:
    """The neighbors that an earlier search has stored; None, with a warning, where the file is damaged."""
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

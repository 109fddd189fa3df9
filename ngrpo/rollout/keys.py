"""Randomness as an input: a row's identity is hashed to a key, and a counter-based generator turns (key, decode step)
into uniforms and normals.

A draw depends on nothing but the row's key and its decode step. So it is the same for any batch size, row order, padding or
worker count, and training can regenerate it instead of storing it.
Generator: Philox4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3"), in integer tensor
arithmetic so that a CPU and a GPU give the same words.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_UNIFORMS, _NORMALS, _WIDE = 0, 1, 2  # third counter word: which family of draws


def row_key(*identity: str | int) -> int:
    """The signed 64-bit key of the row with this identity (seed, RL step, problem id, sample index, ...)."""
    text = "\x1f".join(str(part) for part in identity)
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little", signed=True)


def row_keys(identities: Iterable[tuple[str | int, ...]], device: torch.device | str = "cpu") -> Tensor:
    """Keys of many rows: (B,) int64."""
    return torch.tensor([row_key(*identity) for identity in identities], dtype=torch.int64, device=device)


def philox(counter: tuple[Tensor | int, ...], key: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four 32-bit words (held in int64) for a counter of four 32-bit words and a 64-bit key; all broadcast together."""
    words = [torch.as_tensor(word, dtype=torch.int64, device=key.device) for word in counter]
    if key.device.type != "cpu":
        return _rounds(words, key)
    # The same arithmetic in numpy, whose operations cost a fraction of torch's on few numbers.
    with np.errstate(over="ignore"):
        arrays = _rounds([word.numpy() for word in words], key.numpy())
    return tuple(torch.from_numpy(np.asarray(array)) for array in arrays)  # pyright: ignore


def _rounds(counter: Sequence[Any], key: Any) -> tuple[Any, Any, Any, Any]:
    """The ten rounds on int64 tensors or arrays, where 64-bit wrap-around keeps every bit of a product."""
    a, b, c, d = counter
    key_low, key_high = key & _MASK, (key >> 32) & _MASK
    for _ in range(_ROUNDS):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            ((second >> 32) & _MASK) ^ b ^ key_low,
            second & _MASK,
            ((first >> 32) & _MASK) ^ d ^ key_high,
            first & _MASK,
        )
        key_low, key_high = (key_low + _WEYL[0]) & _MASK, (key_high + _WEYL[1]) & _MASK
    return a, b, c, d


def _unit(high: Tensor, low: Tensor) -> Tensor:
    """53 random bits in [0, 1), float64, from two 32-bit words."""
    return ((high >> 5) * 67108864 + (low >> 6)).double() * 2.0**-53


@dataclass(frozen=True)
class Draws:
    """The random numbers of some decode steps. `rows` are row keys and `steps` decode positions, broadcastable."""

    rows: Tensor
    steps: Tensor

    @cached_property
    def _words(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return philox((self.steps, 0, _UNIFORMS, 0), self.rows)

    @cached_property
    def token(self) -> Tensor:
        """Uniform in [0, 1), float64, one per step: chooses the token."""
        return _unit(self._words[0], self._words[1])

    @cached_property
    def explore(self) -> Tensor:
        """Uniform in [0, 1), float64, one per step, independent of `token`: decides whether to explore."""
        return _unit(self._words[2], self._words[3])

    def normal(self, width: int) -> Tensor:
        """Standard normals, float32, of shape (*steps, width): Box-Muller on a stream of its own."""
        first, second = self._pairs(width, _NORMALS)
        radius, angle = torch.sqrt(-2.0 * torch.log1p(-first)), 2.0 * torch.pi * second
        pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
        return pairs.flatten(-2)[..., :width].float()

    def uniforms(self, width: int) -> Tensor:
        """Uniforms in [0, 1), float64, of shape (*steps, width), on a stream of their own."""
        return torch.stack(self._pairs(width, _WIDE), dim=-1).flatten(-2)[..., :width]

    def _pairs(self, width: int, family: int) -> tuple[Tensor, Tensor]:
        """Uniforms for the even and for the odd ones of `width` numbers per step."""
        blocks = torch.arange((width + 1) // 2, device=self.rows.device)
        words = philox((self.steps[..., None], blocks, family, 0), self.rows[..., None])
        return _unit(words[0], words[1]), _unit(words[2], words[3])

    def precompute(self) -> "Draws":
        """Itself, with both uniforms computed, so that indexing it only looks them up."""
        assert self.token.shape == self.explore.shape
        return self

    def __getitem__(self, index: Tensor | tuple) -> "Draws":
        """The draws at `index`, with the uniforms that were computed before."""
        rows, steps = torch.broadcast_tensors(self.rows, self.steps)
        part = Draws(rows[index], steps[index])
        for name in ("token", "explore"):
            if name in self.__dict__:
                part.__dict__[name] = getattr(self, name)[index]
        return part

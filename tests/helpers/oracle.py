"""What strategies claim to draw, worked out anew in float64 with numpy and scipy from the numbers that they hold.

A law knows no strategy: it reads temperature, rate and so on from the attributes of those names, wherever in the strategy
they stand. `laws` says which law is whose.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import special, stats

from ngrpo import contract
from ngrpo.contract import ENDS, VOCABULARY, Array, Cell, Finding, Record, Setting, V, counts, near, token_findings
from ngrpo.exploration.base import Exploration
from ngrpo.rollout.records import TOKEN

ORDINARY = VOCABULARY.ordinary(V).numpy()


def softmax(z: Array, temperature: float = 1.0) -> Array:
    """(..., V) in float64."""
    return special.softmax(z / temperature, axis=-1)


def kept(p: Array, top_p: float = 1.0, top_k: int | None = None, min_p: float = 0.0) -> Array:
    """(V,) bool: what top-k, then top-p, then min-p leave of probabilities (V,), each acting on what the last one left."""
    order = np.argsort(-p, kind="stable")[:top_k]
    share = p[order] / p[order].sum()
    order = order[share.cumsum() - share < top_p]
    return np.isin(np.arange(len(p)), order[p[order] >= min_p * p[order[0]]])


class Law:
    """Tokens come as often as exp(log_prob) says; exploration acts with probability `rate`, independent of the token.

    A strategy that keeps a state explores while a row thinks only, and on ordinary tokens that end no thinking part.
    """

    def __init__(self, strategy: Exploration, setting: Setting):
        self.strategy, self.setting = strategy, setting
        self.held = {name.rpartition(".")[2]: value for name, value in contract.settings_of(strategy)}
        self.rows = setting.table.double().numpy()
        self.tracks = bool(strategy.start(1, torch.device("cpu")))

    def value(self, name: str, default: Any = None) -> Any:
        """What the strategy or a part of it holds under this name."""
        return self.held.get(name, default)

    def rate(self, cell: Cell) -> float:
        """Probability that exploration acts on a row, before its token is looked at."""
        rate = self.value("rate", 0.0)
        return 1.0 if rate is None else rate

    def acts(self, cell: Cell) -> Array:
        """(V,) 1 where exploration may act on a row whose text gains the token."""
        return (ORDINARY & cell.thinking & (np.arange(V) != ENDS) if self.tracks else np.ones(V)).astype(float)

    def sampled(self, z: Array) -> Array:
        """(V,) what text tokens are drawn from: the filtered softmax at the strategy's own temperature."""
        p = softmax(z, self.value("temperature"))
        left = p * kept(p, self.value("top_p", 1.0), self.value("top_k"), self.value("min_p", 0.0))
        return left / left.sum()

    def log_prob(self, seen: Record, z: Array) -> Array:
        """(N,) what the strategy says of a record under the logits z (V,)."""
        return contract.log_prob(self.strategy, self.setting, seen, z)

    def density(self, cell: Cell, seen: Record) -> Array:
        """(V,) exp(log_prob) of every token, the record otherwise that of the first row."""
        first = contract.rows_of(seen, np.zeros(V, int))
        first |= {"tokens": np.arange(V), "role": np.full(V, TOKEN), "explored": np.zeros(V, bool)}
        return np.exp(self.log_prob(first, cell.z))

    def claims(self, cell: Cell, seen: Record) -> Iterator[Finding]:
        """What other laws claim in the place of this."""
        yield near("roles are those of tokens", seen["role"] == TOKEN)
        yield from self.tokens(seen, self.density(cell, seen), self.rate(cell) * self.acts(cell))

    def tokens(self, seen: Record, density: Array, explored: ArrayLike) -> Iterator[Finding]:
        """Tokens and `explored` together, with probabilities `density` (V,) and, given the token, `explored` (V,)."""
        yield from token_findings(seen["tokens"], density, seen["explored"], explored)


def likeliest(cell: Cell) -> int:
    """The argmax."""
    return int(cell.z.argmax())


def old_and_new(cell: Cell) -> tuple[Array, Array]:
    """The logits that rows were drawn from, and others under which the record is scored as after an update."""
    return cell.z, cell.z[::-1].copy()


def uniform(what: str, values: ArrayLike) -> list[Finding]:
    """Values (N, M) that should be uniform and independent: Kolmogorov-Smirnov by column, and counts of their halves."""
    u = np.asarray(values, float).reshape(len(np.asarray(values)), -1)
    found = [_kolmogorov_smirnov(f"{what} {column}", u[:, column]) for column in range(u.shape[1])]
    halves = (u[:, :6] >= 0.5).astype(int) @ (2 ** np.arange(min(u.shape[1], 6)))
    cells = 2 ** min(u.shape[1], 6)
    joint = counts(f"{what} together", np.bincount(halves, minlength=cells), np.full(cells, 1 / cells))
    return [*found, joint] if u.shape[1] > 1 else found


def _kolmogorov_smirnov(what: str, u: Array) -> Finding:
    if not len(u) or not np.isfinite(u).all():
        return Finding(what, 0.0, f"{len(u)} values, not all finite" if len(u) else "no values")
    ordered, grid = np.sort(u), np.arange(len(u) + 1) / len(u)
    distance = max((grid[1:] - ordered).max(), (ordered - grid[:-1]).max())
    return Finding(what, float(stats.kstwobign.sf(distance * np.sqrt(len(u)))), f"distance {distance:.4f} of {len(u)}")

"""What strategies claim to draw, worked out anew in float64 with numpy and scipy from the numbers that they hold.

A class of strategies names its law here, or the dotted name of one of its own, in the attribute `law`. A law knows no
strategy: it reads temperature, rate and so on from the attributes of those names, wherever in the strategy they stand.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
from scipy import special

from ngrpo.contract.setting import ENDS, VOCABULARY, Setting, V, held
from ngrpo.contract.statistics import UNSEEN, Array, Finding, counts, holds, near, uniform
from ngrpo.exploration.base import Exploration
from ngrpo.rollout.records import TOKEN, DecodeStep

ORDINARY = VOCABULARY.ordinary(V).numpy()
Record = dict[str, Any]  # fields of a DecodeStep and `fed` as arrays, rows first


@dataclass(frozen=True)
class Cell:
    """Rows that see the same logits z (V,) in the same state, at one position of their texts."""

    name: str
    z: Array
    thinking: bool
    position: int

    @property
    def likeliest(self) -> int:
        """The argmax."""
        return int(self.z.argmax())

    @property
    def old_and_new(self) -> tuple[Array, Array]:
        """The logits that rows were drawn from, and others under which the record is scored as after an update."""
        return self.z, self.z[::-1].copy()


def resolve(name: str, module: str = __name__) -> Any:
    """What a law is called, in `module` unless the name is dotted."""
    return resolve_name(name if "." in name else f"{module}:{name}")


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
        self.strategy, self.setting, self.table = strategy, setting, setting.table.double().numpy()
        self.held = held(strategy)
        self.tracks = bool(strategy.start(1, torch.device("cpu")))

    def value(self, name: str, default: Any = None) -> Any:
        """What the strategy or a part of it holds under this name."""
        return next((v for key, v in self.held.items() if key.rpartition(".")[2] == name), default)

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

    def density(self, cell: Cell, seen: Record) -> Array:
        """(V,) exp(log_prob) of every token, the record otherwise that of the first row."""
        fields = {name: seen[name][:1].repeat(V, 0) for name in seen if name != "fed" and seen[name] is not None}
        fields |= {"tokens": np.arange(V), "role": np.full(V, TOKEN), "explored": np.zeros(V, bool)}
        return np.exp(self.log_prob({**dict.fromkeys(seen), **fields}, cell.z))

    def log_prob(self, seen: Record, z: Array) -> Array:
        """(N,) what the strategy says of a record under the logits z (V,), in float64."""
        fields = {name: seen[name] for name in DecodeStep.__dataclass_fields__}
        step = DecodeStep(**{name: None if v is None else torch.as_tensor(v) for name, v in fields.items()})  # pyright: ignore
        logits = torch.as_tensor(z).expand(len(seen["tokens"]), V)
        with torch.no_grad():
            return self.strategy.log_prob(step, logits, self.setting.table.double()).double().numpy()

    def check(self, cell: Cell, seen: Record) -> Iterator[Finding]:
        """Every finding about the rows of one cell."""
        if not self.strategy.deviates and (seen["role"] == TOKEN).all():
            yield from self.drawn(seen, self.density(cell, seen))
        yield from self.claims(cell, seen)

    def claims(self, cell: Cell, seen: Record) -> Iterator[Finding]:
        """What other laws claim in the place of this."""
        yield holds("roles are those of tokens", seen["role"] == TOKEN)
        yield from self.tokens(seen, self.density(cell, seen), self.rate(cell) * self.acts(cell))

    def drawn(self, seen: Record, density: Array) -> Iterator[Finding]:
        """Tokens come with probabilities `density` (V,); a filter shows in tokens that never come up, without which these
        sum to 1."""
        came = joint(seen).sum(axis=1)
        missing = 1 - density[came > 0].sum()
        off = max(missing - UNSEEN / came.sum(), -missing, 0)
        yield near("the density of the tokens that come up sums to 1", off, 0)
        yield counts("tokens", came, _supported(density, came))

    def tokens(self, seen: Record, density: Array, explored: Array) -> Iterator[Finding]:
        """Tokens and `explored` together, with probabilities `density` and, given the token, `explored` (V,)."""
        table = joint(seen)
        p = _supported(density, table.sum(axis=1))
        share = p @ explored
        yield counts("exploration", table.sum(axis=0), [1 - share, share])
        yield counts("tokens with exploration", table, np.stack((p * (1 - explored), p * explored), axis=1))


def _supported(density: Array, came: Array) -> Array:
    """(V,) probabilities of the tokens that came up."""
    p = np.where(came > 0, density, 0)
    return p / p.sum()


def joint(seen: Record) -> Array:
    """(V, 2) counts of tokens without and with exploration."""
    table = np.zeros((V, 2))
    np.add.at(table, (seen["tokens"], seen["explored"].astype(int)), 1)
    return table


class Annealed(Law):
    """Tokens at a temperature that falls with the position, T * max(1 + first - e^(position / horizon), last)."""

    def claims(self, cell: Cell, seen: Record) -> Iterator[Finding]:
        falling = max(1 + self.value("first") - np.exp(cell.position / self.value("horizon")), self.value("last"))
        yield near("the temperature of the position", seen["scale"], self.value("temperature") * falling)
        yield from super().claims(cell, seen)


class Mixture(Law):
    """(1 - epsilon) softmax(z / temperature) + epsilon * uniform over ordinary tokens and stops; `explored` tells which."""

    def claims(self, cell: Cell, seen: Record) -> Iterator[Finding]:
        epsilon, p = self.value("epsilon"), softmax(cell.z, self.value("temperature"))
        allowed = ORDINARY | np.isin(np.arange(V), VOCABULARY.stops)
        uniform = epsilon * allowed / allowed.sum()
        mixed = (1 - epsilon) * p + uniform
        yield near("exp(log_prob) is the mixture", self.density(cell, seen), mixed)
        yield from self.tokens(seen, self.density(cell, seen), uniform / mixed)


class Hybrid(Law):
    """Tokens by exp(log_prob); the offset of every thinking step is the expected embedding over the norm of p."""

    def rate(self, cell: Cell) -> float:
        return 1.0

    def claims(self, cell: Cell, seen: Record) -> Iterator[Finding]:
        p = self.sampled(cell.z)
        yield from super().claims(cell, seen)
        yield near("offsets", seen["offset"], seen["explored"][:, None] * (p @ self.table) / np.linalg.norm(p))


class Selected(Law):
    """Candidates are drawn one after another without replacement, each by softmax(z / temperature) over ordinary tokens;
    weights are the same softmax over them. The text gains the first of them or a token of its own."""

    def claims(self, cell: Cell, seen: Record) -> Iterator[Finding]:
        p, k = softmax(cell.z, self.value("temperature")), self.value("k")
        own = self.value("text_token") == "anchor"
        acts = self.acts(cell) if own else self.acts(cell) * p[ORDINARY].sum()  # its anchor has to be ordinary as well
        yield holds("roles are those of tokens", seen["role"] == TOKEN)
        yield from self.tokens(seen, self.density(cell, seen), self.rate(cell) * acts)
        if not seen["explored"].any():
            return
        ids, weights = (seen[name][seen["explored"]] for name in ("mix_ids", "mix_weights"))
        yield holds("there are k candidates", ids.shape[1] == k)
        yield near("weights", weights, softmax(np.log(p)[ids]))
        yield holds(
            "the first candidate is the text token", (ids[:, 0] == seen["tokens"][seen["explored"]]) | (not own)
        )
        taken, others = np.zeros((len(ids), V), bool), self.acts(cell) > 0 if own else ORDINARY
        rows, drawn = np.arange(len(ids)), np.zeros((len(ids), k))
        for place in range(k):  # of what is left, in order of ids, where in its share does the choice lie: which place
            left = np.where(taken | ~(others if place == 0 else ORDINARY), 0.0, p)
            left /= left.sum(axis=1, keepdims=True)
            above = left.cumsum(axis=1)[rows, ids[:, place]]
            jitter = np.random.default_rng(place).random(len(ids))
            drawn[:, place] = above - jitter * left[rows, ids[:, place]]
            taken[rows, ids[:, place]] = True
        yield from uniform("candidate", drawn)

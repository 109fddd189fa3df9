"""The law of mixing: gate, anchor, text token and recipe; and of each recipe what it records, what it feeds, its noise."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from oracle import ORDINARY, Law, kept, likeliest, old_and_new, softmax, uniform
from scipy import stats

from ngrpo.contract import Array, Cell, Finding, Record, V, near
from ngrpo.rollout.records import FORCED, TOKEN

SIMILARITIES = {
    "cosine": lambda rows, u: rows @ u / np.linalg.norm(rows, axis=1),
    "dot": lambda rows, u: rows @ u,
    "l2": lambda rows, u: -((rows - u) ** 2).sum(axis=1),
    "l1": lambda rows, u: -np.abs(rows - u).sum(axis=1),
}


class Mixed(Law):
    """Where a row thinks and its gate is open, the text gains the anchor or the token that was sampled, and the recipe
    acts unless either is not ordinary or ends the thinking part. log_prob is the tempered softmax at the text token."""

    def claims(self, cell: Cell, seen: Record) -> Iterator[Finding]:
        p, greedy = self.sampled(cell.z), self.value("anchor") == "argmax"
        replaces = greedy and self.value("text_token") == "anchor"
        acts, gate = self.acts(cell), self.rate(cell) * cell.thinking
        anchors = np.full(len(seen["tokens"]), likeliest(cell)) if greedy else seen["tokens"]
        if replaces:
            greedily = np.eye(V)[likeliest(cell)]
            density = (1 - gate) * p + gate * greedily
            explored = gate * greedily / density.clip(min=1e-300)
        else:
            density, explored = p, gate * acts * (ORDINARY[likeliest(cell)] if greedy else 1)
        yield from self.tokens(seen, density, explored)
        yield near("roles", seen["role"] == np.where(seen["explored"], self.role(), TOKEN))
        for z in old_and_new(cell):
            yield near("log_prob is the tempered softmax", self.log_prob(seen, z), self.term(z)[seen["tokens"]])
        mixed = seen["explored"] & (acts[seen["tokens"]] > 0) & ORDINARY[anchors]
        yield from self.plain(seen, ~mixed)
        recipe = RECIPES.get(type(self.strategy.recipe).__name__, Recorded)(self)
        if mixed.any():
            part = {name: None if v is None else v[mixed] for name, v in seen.items()}
            yield from recipe.check(cell, part, anchors[mixed])

    def term(self, z: Array) -> Array:
        """(V,) the objective's term; a token outside the nucleus counts as if it alone were added to it."""
        p = softmax(z, self.value("temperature"))
        inside = kept(p, self.value("top_p"))
        return np.log(p / np.where(inside, p[inside].sum(), p[inside].sum() + p))

    def rate(self, cell: Cell) -> float:
        p, threshold = softmax(cell.z, self.value("temperature")), self.value("entropy_threshold")
        return super().rate(cell) * (threshold is None or -(p * np.log(p)).sum() > threshold)

    def role(self) -> int:
        """Of explored steps."""
        return TOKEN if self.value("loss_on_mixed_steps") == "keep" else FORCED

    def plain(self, seen: Record, where: Array) -> Iterator[Finding]:
        """Rows that are not mixed are recorded and fed as their text token."""
        if seen["mix_ids"] is not None:
            yield near("plain rows stand for their token", seen["mix_ids"][where, 0] == seen["tokens"][where])
            yield near("plain rows have one candidate", (seen["mix_weights"][where, 1:] == 0).all(axis=-1))
        yield near("plain rows are fed as they are", seen["fed"][where], self.rows[seen["tokens"][where]])


class Recorded:
    """A recipe of which no more is known than that it records its anchor first."""

    def __init__(self, law: Mixed):
        self.law, self.value, self.table = law, law.value, law.rows

    def check(self, cell: Cell, mixed: Record, anchors: Array) -> Iterator[Finding]:
        """Findings about rows that are mixed around these anchors, one at least."""
        if mixed["mix_ids"] is not None:
            yield near("the anchor is the first candidate", mixed["mix_ids"][:, 0] == anchors)


class Neighbors(Recorded):
    """The anchor and its nearest rows, weighted by the softmax of their logits."""

    def recipes(self, cell: Cell) -> tuple[Array, Array]:
        """Candidates and weights (V, K) around every token."""
        ids = np.array([self.nearest(anchor) for anchor in range(V)])
        p, tau = self.law.sampled(cell.z), self.value("temperature")
        raw = cell.z[ids] / tau
        with np.errstate(divide="ignore"):
            cut = np.where(np.isin(ids, np.flatnonzero(p)) | (np.arange(ids.shape[1]) == 0), raw, -np.inf)
        weighed = {"raw": raw, "filtered": cut, "double_softmax": p[ids] / tau}[self.value("weights")]
        return ids, softmax(weighed)

    def nearest(self, anchor: int) -> list[int]:
        """A token and the k - 1 ordinary rows most similar to it."""
        scores = SIMILARITIES[self.value("metric")](self.table, self.table[anchor])
        scores[~ORDINARY | (np.arange(V) == anchor)] = -np.inf
        return [anchor, *np.argsort(-scores, kind="stable")[: self.value("k") - 1]]

    def check(self, cell: Cell, mixed: Record, anchors: Array) -> Iterator[Finding]:
        ids, weights = self.recipes(cell)
        yield near("candidates are the nearest", mixed["mix_ids"] == ids[anchors])
        yield near("weights", mixed["mix_weights"], weights[anchors])
        fed = (weights[anchors][..., None] * self.table[ids[anchors]]).sum(axis=1)
        yield near("the mixture is fed", mixed["fed"], fed)


class RandomRows(Neighbors):
    """The weights of the nearest rows on other ordinary rows, which are an anchor's own."""

    def check(self, cell: Cell, mixed: Record, anchors: Array) -> Iterator[Finding]:
        ids, weights = mixed["mix_ids"], self.recipes(cell)[1][anchors]
        first = np.array([ids[np.argmax(anchors == anchor)] for anchor in range(V)])[anchors]
        ordered = np.sort(ids, axis=1)
        distinct = (ordered[:, 1:] != ordered[:, :-1]).all(axis=1)
        yield near("candidates are the anchor's own", (ids == first).all(axis=1) & (ids[:, 0] == anchors))
        yield near("candidates are distinct ordinary rows", distinct & ORDINARY[ids].all(axis=1))
        yield near("weights", mixed["mix_weights"], weights)
        yield near("the mixture is fed", mixed["fed"], (weights[..., None] * self.table[ids]).sum(axis=1))


class MatchedNoise(Neighbors):
    """A step from the anchor in a uniformly random direction, as long as that to the mixture of the nearest rows."""

    def check(self, cell: Cell, mixed: Record, anchors: Array) -> Iterator[Finding]:
        ids, weights = self.recipes(cell)
        length = np.linalg.norm((weights[..., None] * self.table[ids]).sum(axis=1) - self.table, axis=1)[anchors]
        yield near("the anchor stands alone", mixed["mix_ids"] == anchors[:, None])
        yield near("length", mixed["scale"], length)
        yield from uniform("direction", angles((mixed["fed"] - self.table[anchors]) / length[:, None]))


class OrthogonalNoise(Recorded):
    """Normal noise along what the likeliest other tokens have at right angles to the anchor."""

    def check(self, cell: Cell, mixed: Record, anchors: Array) -> Iterator[Finding]:
        same = anchors == anchors[0]  # of several anchors, the rows around one stand for all
        anchors, mixed = anchors[same], {name: None if v is None else v[same] for name, v in mixed.items()}
        order = [token for token in np.argsort(-cell.z, kind="stable") if ORDINARY[token] and token != anchors[0]]
        others = order[: self.value("k") - 1]
        weights = softmax(cell.z[others], self.value("temperature"))
        yield near("candidates are the likeliest", mixed["mix_ids"] == [anchors[0], *others])
        yield near("weights", mixed["mix_weights"], [1, *weights])
        e = self.table[anchors[0]]
        along = weights[:, None] * (self.table[others] - np.outer(self.table[others] @ e / (e @ e), e))
        shift = mixed["fed"] - e
        if self.value("noise") == "scalar":
            yield near("noise is orthogonal to the anchor", shift @ e, 0, 1e-4)
            yield from uniform("noise", stats.norm.cdf(shift @ np.linalg.pinv(along)))
        else:
            yield from uniform("noise", stats.norm.cdf(shift / np.sqrt((along**2).sum(axis=0))))


class GaussianNoise(Recorded):
    """Normal noise of the table's size on the text token."""

    def check(self, cell: Cell, mixed: Record, anchors: Array) -> Iterator[Finding]:
        sigma = self.value("relative_scale") * np.sqrt((self.table**2).mean())
        yield near("scale", mixed["scale"], sigma)
        yield from uniform("noise", stats.norm.cdf((mixed["fed"] - self.table[mixed["tokens"]]) / sigma))


RECIPES = {kind.__name__: kind for kind in (Neighbors, RandomRows, MatchedNoise, OrthogonalNoise, GaussianNoise)}


def angles(directions: Array) -> Array:
    """(N, D - 1) uniform and independent where unit vectors (N, D) are uniform on the sphere: each coordinate as a share
    of what the ones before it leave."""
    found: list[Any] = []
    rest = directions
    while rest.shape[1] > 1:
        share, half = rest[:, 0] / np.linalg.norm(rest, axis=1), (rest.shape[1] - 1) / 2
        found.append(stats.beta.cdf((1 + share) / 2, half, half))
        rest = rest[:, 1:]
    return np.stack(found, axis=1)

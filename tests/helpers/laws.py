"""The laws of strategies that draw tokens, and which law is whose."""

from collections.abc import Iterator

import numpy as np
from mixture_laws import Mixed
from oracle import ORDINARY, Law, softmax, uniform
from thought_laws import Perturbed, SoftTokens, Thought

from ngrpo.contract import VOCABULARY, Cell, Claims, Finding, Record, Setting, V, counts, near
from ngrpo.exploration.base import Exploration
from ngrpo.rollout.records import TOKEN


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


class Thinned(Law):
    """Plain tokens; entries of a row's mask are 0 with probability `dropout`, else 1 / (1 - dropout), independent."""

    def claims(self, cell: Cell, seen: Record) -> Iterator[Finding]:
        yield from super().claims(cell, seen)
        masks, share = seen["masks"].reshape(len(seen["masks"]), -1), self.value("dropout")
        kept = masks > 0
        yield near("what is kept is scaled", masks, kept / (1 - share))
        bits = np.arange(masks.shape[1])
        every = np.arange(2 ** len(bits))
        p = np.where(every[:, None] >> bits & 1, 1 - share, share).prod(axis=1)
        yield counts("what is kept", np.bincount(kept @ 2**bits, minlength=len(every)), p)


class Hybrid(Law):
    """Tokens by exp(log_prob); the offset of every thinking step is the expected embedding over the norm of p."""

    def rate(self, cell: Cell) -> float:
        return 1.0

    def claims(self, cell: Cell, seen: Record) -> Iterator[Finding]:
        p = self.sampled(cell.z)
        yield from super().claims(cell, seen)
        yield near("offsets", seen["offset"], seen["explored"][:, None] * (p @ self.rows) / np.linalg.norm(p))


class Selected(Law):
    """Candidates are drawn one after another without replacement, each by softmax(z / temperature) over ordinary tokens;
    weights are the same softmax over them. The text gains the first of them or a token of its own."""

    def claims(self, cell: Cell, seen: Record) -> Iterator[Finding]:
        p, k = softmax(cell.z, self.value("temperature")), self.value("k")
        own = self.value("text_token") == "anchor"
        acts = self.acts(cell) if own else self.acts(cell) * p[ORDINARY].sum()  # its anchor has to be ordinary as well
        yield near("roles are those of tokens", seen["role"] == TOKEN)
        yield from self.tokens(seen, self.density(cell, seen), self.rate(cell) * acts)
        if not seen["explored"].any():
            return
        ids, weights = (seen[name][seen["explored"]] for name in ("mix_ids", "mix_weights"))
        yield near("there are k candidates", ids.shape[1] == k)
        yield near("weights", weights, softmax(np.log(p)[ids]))
        yield near("the first candidate is the text token", (ids[:, 0] == seen["tokens"][seen["explored"]]) | (not own))
        taken, others = np.zeros((len(ids), V), bool), self.acts(cell) > 0 if own else ORDINARY
        rows, drawn = np.arange(len(ids)), np.zeros((len(ids), k))
        for place in range(k):  # of what is left, in order of ids, where in its share does the choice lie: which place
            left = np.where(taken | ~(others if place == 0 else ORDINARY), 0.0, p)
            left /= left.sum(axis=1, keepdims=True).clip(1e-300)
            above = left.cumsum(axis=1)[rows, ids[:, place]]
            jitter = np.random.default_rng(place).random(len(ids))
            drawn[:, place] = above - jitter * left[rows, ids[:, place]]
            taken[rows, ids[:, place]] = True
        yield from uniform("candidate", drawn)


# By the name of the strategy's class; a class that is not here is held against what the contract itself knows.
LAWS: dict[str, type[Law]] = {
    "AnnealedTemperature": Annealed,
    "EpsilonGreedy": Mixture,
    "HybridReasoning": Hybrid,
    "Mixing": Mixed,
    "ParameterNoise": Law,
    "PerturbedThinking": Perturbed,
    "RolloutDropout": Thinned,
    "SoftThinking": Thought,
    "SoftTokens": SoftTokens,
    "TokenSampling": Law,
    "TopkGumbelSelect": Selected,
}


def claims_of(strategy: Exploration, setting: Setting) -> Claims:
    """What the law of a strategy claims of it."""
    law = LAWS.get(type(strategy).__name__)
    return law(strategy, setting).claims if law else None

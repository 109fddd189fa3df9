"""The laws of thinking in mixtures of perturbed candidates, in noisy expected embeddings, and without chance."""

from collections.abc import Iterator

import numpy as np
from oracle import Law, kept, likeliest, old_and_new, softmax, uniform
from scipy import special, stats

from ngrpo.contract import VOCABULARY, Array, Cell, Finding, Record, V, counts, near
from ngrpo.rollout.records import DIRICHLET, FORCED, GAUSSIAN, GUMBEL

ROUNDING = 1e-3  # noise so near to a bound of its clamp counts as clamped
RELIABLE = -3.0  # the log-probability above which a candidate counts in a Gumbel density, as released


class Perturbed(Law):
    """Thinking: scores of the candidates follow the noise of the steps' role; weights come from the scores, the text gains
    the candidate of the largest one, and log_prob is a mean over candidates. The answer is made of ordinary tokens."""

    def claims(self, cell: Cell, seen: Record) -> Iterator[Finding]:
        if not cell.thinking:
            yield from super().claims(cell, seen)
            return
        role = int(seen["role"][0])
        yield near("roles are all the same kind of density", (seen["role"] == role) & np.isin(role, list(KINDS)))
        chosen = self.candidates(cell.z)
        ids, scores, tokens = seen["mix_ids"], seen["scores"], seen["tokens"]
        valid = scores > -1e29
        yield near("width", ids.shape[1], self.value("thinking_top_k"))
        yield near("candidates", valid.sum(axis=1) == len(chosen))
        yield near(
            "candidates are the likeliest", np.sort(np.where(valid, ids, -1), axis=1)[:, -len(chosen) :] == chosen
        )
        yield near(
            "scores are in order, and the first is the text token",
            (np.diff(scores) <= 0).all(axis=1) & (ids[:, 0] == tokens),
        )
        acts = self.acts(cell)[tokens] > 0
        yield near("exploration", seen["explored"] == acts)
        noise = KINDS[role](self)
        plain = np.eye(scores.shape[1])[0]
        yield near("weights", seen["mix_weights"], np.where(acts[:, None], noise.weights(scores), plain))
        y = np.stack([np.where(ids == token, scores, 0).sum(axis=1) for token in chosen], axis=1)
        log_p = np.log(softmax(cell.z[chosen], self.value("temperature")))
        yield from noise.scores(y, log_p)
        for z in old_and_new(cell):
            log_p = np.log(softmax(z[chosen], self.value("temperature")))
            yield near("log_prob is the mean density", self.log_prob(seen, z), noise.density(y, log_p), noise.tolerance)

    def candidates(self, z: Array) -> Array:
        """Ids in ascending order."""
        words = z[: VOCABULARY.size]
        best = np.argsort(-words, kind="stable")[: self.value("thinking_top_k")]
        return np.sort(best[kept(softmax(words[best], self.value("temperature")), self.value("thinking_top_p"))])


class Gumbel:
    """y = l + noise_factor * g, g standard Gumbel, clamped; the density leaves unlikely candidates out."""

    tolerance = 1e-3  # clamped noise is scored as it was rounded

    def __init__(self, law: Law):
        self.factor, self.sharp = law.value("noise_factor"), law.value("soft_temperature")
        self.low, self.high = law.value("lowest"), law.value("highest")

    def weights(self, scores: Array) -> Array:
        return special.softmax(scores / self.sharp, axis=1)

    def scores(self, y: Array, log_p: Array) -> Iterator[Finding]:
        g, inner = (y - log_p) / self.factor, (self.low + ROUNDING, self.high - ROUNDING)
        below, above = stats.gumbel_r.cdf(inner)
        for column in range(g.shape[1]):
            place = np.digitize(g[:, column], inner)
            shares = [below, above - below, 1 - above]
            yield counts(f"clamped noise {column}", np.bincount(place, minlength=3), shares)
            within = stats.gumbel_r.cdf(g[place == 1, column])
            yield from uniform(f"noise {column}", (within - below) / (above - below))
        halves = (stats.gumbel_r.cdf(g) > 0.5) @ (2 ** np.arange(g.shape[1]))
        cells = 2 ** g.shape[1]
        yield counts("noise together", np.bincount(halves, minlength=cells), np.full(cells, 1 / cells))
        yield near("noise within its clamp", np.maximum(np.maximum(self.low - g, g - self.high), 0), 0)

    def density(self, y: Array, log_p: Array) -> Array:
        g = np.clip((y - log_p) / self.factor, self.low, self.high)
        counted = log_p > RELIABLE
        return stats.gumbel_r.logpdf(g[:, counted]).sum(axis=1) / max(counted.sum(), 1)


class Gaussian:
    """y = p + sigma * n, n standard normal."""

    tolerance = 1e-4

    def __init__(self, law: Law):
        self.sigma = law.value("sigma")

    def weights(self, scores: Array) -> Array:
        positive = np.maximum(scores, 0)
        none = positive.sum(axis=1, keepdims=True) == 0
        return np.where(
            none, np.eye(scores.shape[1])[0], positive / np.where(none, 1, positive.sum(axis=1, keepdims=True))
        )

    def scores(self, y: Array, log_p: Array) -> Iterator[Finding]:
        yield from uniform("score", stats.norm.cdf(y, np.exp(log_p), self.sigma))

    def density(self, y: Array, log_p: Array) -> Array:
        return stats.norm.logpdf(y, np.exp(log_p), self.sigma).mean(axis=1)


class Dirichlet:
    """exp(y) ~ Dirichlet(max(concentration * p, 0.01)); the density is that with respect to the product of dw / w."""

    tolerance = 1e-4

    def __init__(self, law: Law):
        self.concentration = law.value("concentration")

    def alpha(self, log_p: Array) -> Array:
        return np.maximum(self.concentration * np.exp(log_p), 0.01)

    def weights(self, scores: Array) -> Array:
        return special.softmax(scores, axis=1)

    def scores(self, y: Array, log_p: Array) -> Iterator[Finding]:
        """One weight after another as a share of what is left: betas that know nothing of each other."""
        w, alpha = np.exp(y), self.alpha(log_p)
        left, rest = (part[..., ::-1].cumsum(axis=-1)[..., ::-1] for part in (w, alpha))
        share, others = w[:, :-1] / left[:, :-1], left[:, 1:] / left[:, :-1]  # a share near 1 is told by what it leaves
        if w.shape[1] > 1:
            low, high = stats.beta.cdf(share, alpha[:-1], rest[1:]), stats.beta.sf(others, rest[1:], alpha[:-1])
            yield from uniform("weight", np.where(share < 0.5, low, high))
        yield near("weights sum to 1", w.sum(axis=1), 1)

    def density(self, y: Array, log_p: Array) -> Array:
        alpha = self.alpha(log_p)
        constant = special.gammaln(alpha.sum()) - special.gammaln(alpha).sum()
        return (constant + (alpha * y).sum(axis=1)) / len(alpha)


KINDS = {GUMBEL: Gumbel, GAUSSIAN: Gaussian, DIRICHLET: Dirichlet}


class SoftTokens(Law):
    """Thinking: the text gains the argmax, and the offset is normal around softmax(z / soft_temperature) E."""

    def claims(self, cell: Cell, seen: Record) -> Iterator[Finding]:
        if not cell.thinking:
            yield from super().claims(cell, seen)
            return
        mean = softmax(cell.z, self.value("soft_temperature")) @ self.rows
        sigma = self.value("relative_scale") * np.sqrt((self.rows**2).mean())
        soft = likeliest(cell) not in VOCABULARY.stops
        yield near("the text gains the argmax", seen["tokens"] == likeliest(cell))
        yield near("roles", seen["role"] == (GAUSSIAN if soft else FORCED))
        yield near("exploration", seen["explored"] == soft)
        if soft:
            yield near("scale", seen["scale"], sigma)
            yield from uniform("offset", stats.norm.cdf((seen["offset"] - mean) / sigma))
            for z in old_and_new(cell):
                law = stats.multivariate_normal(softmax(z, self.value("soft_temperature")) @ self.rows, sigma**2)
                yield near("log_prob is the Gaussian density", self.log_prob(seen, z), law.logpdf(seen["offset"]))


class Thought(Law):
    """Thinking: the text gains the argmax, and a mixture of the likeliest is fed; nothing is drawn."""

    def claims(self, cell: Cell, seen: Record) -> Iterator[Finding]:
        kind = "" if cell.thinking else "answer_"
        tau = self.value(f"{kind}temperature")
        p, filters = softmax(cell.z, tau), {name: self.value(f"{kind}{name}") for name in ("top_p", "top_k")}
        yield near("scale", seen["scale"], tau)
        yield near("log_prob is the tempered softmax", self.log_prob(seen, cell.z), np.log(p)[seen["tokens"]])
        if not cell.thinking:
            left = p * kept(p, **filters)
            yield from self.tokens(seen, left / left.sum(), np.zeros(V))
            return
        words = p[: VOCABULARY.size]
        ids = np.argsort(-words, kind="stable")[: self.value("max_topk")]
        weights = (words * kept(words, min_p=self.value("min_p"), **filters))[ids]
        yield near("the text gains the argmax", seen["tokens"] == likeliest(cell))
        acts = bool(self.acts(cell)[likeliest(cell)])
        yield near("exploration", seen["explored"] == acts)
        yield near("candidates", seen["mix_ids"] == (ids if acts else likeliest(cell)))
        yield near("weights", seen["mix_weights"], weights / weights.sum() if acts else np.eye(len(ids))[0])

"""The laws of thinking in expected embeddings: noisy ones, whose density is trained, and ones without chance."""

from collections.abc import Iterator

import numpy as np
from scipy import stats

from ngrpo.contract.laws import Cell, Law, Record, kept, softmax
from ngrpo.contract.setting import VOCABULARY, V
from ngrpo.contract.statistics import Finding, holds, near, uniform
from ngrpo.rollout.records import FORCED, GAUSSIAN


class SoftTokens(Law):
    """Thinking: the text gains the argmax, and the offset is normal around softmax(z / soft_temperature) E."""

    def claims(self, cell: Cell, seen: Record) -> Iterator[Finding]:
        if not cell.thinking:
            yield from super().claims(cell, seen)
            return
        mean = softmax(cell.z, self.value("soft_temperature")) @ self.table
        sigma = self.value("relative_scale") * np.sqrt((self.table**2).mean())
        soft = cell.likeliest not in VOCABULARY.stops
        yield holds("the text gains the argmax", seen["tokens"] == cell.likeliest)
        yield holds("roles", seen["role"] == (GAUSSIAN if soft else FORCED))
        yield holds("exploration", seen["explored"] == soft)
        if soft:
            yield near("scale", seen["scale"], sigma)
            yield from uniform("offset", stats.norm.cdf((seen["offset"] - mean) / sigma))
            for z in cell.old_and_new:
                law = stats.multivariate_normal(softmax(z, self.value("soft_temperature")) @ self.table, sigma**2)
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
            yield from self.drawn(seen, left / left.sum())
            yield from self.tokens(seen, left / left.sum(), np.zeros(V))
            return
        words = p[: VOCABULARY.size]
        ids = np.argsort(-words, kind="stable")[: self.value("max_topk")]
        weights = (words * kept(words, min_p=self.value("min_p"), **filters))[ids]
        yield holds("the text gains the argmax", seen["tokens"] == cell.likeliest)
        acts = bool(self.acts(cell)[cell.likeliest])
        yield holds("exploration", seen["explored"] == acts)
        yield holds("candidates", seen["mix_ids"] == (ids if acts else cell.likeliest))
        yield near("weights", seen["mix_weights"], weights / weights.sum() if acts else np.eye(len(ids))[0])

"""Semantic neighbour mixing, the rollout strategy of N-GRPO (arXiv 2606.10768).

While the model thinks, each step is mixed with probability `rate`: the model is fed a weighted mix of the argmax token's
embedding and those of its nearest neighbours. Given the logits the mixture has no randomness of its own; chance enters
through the choice of steps alone. This file does not know how neighbours are found.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from ngrpo.exploration.mixing import AnchoredMix
from ngrpo.exploration.neighbors import NeighborTable
from ngrpo.exploration.scores import tempered
from ngrpo.rollout.records import Vocabulary

# Weights (B, K) of candidates (B, K), the anchor first, from the logits and the filtered scores z / temperature (B, V).
Weighing = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def raw(logits: Tensor, scores: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """softmax(z / temperature) over the candidates (section 3 of the paper)."""
    return tempered(logits.gather(-1, ids), temperature).softmax(dim=-1)


def filtered(logits: Tensor, scores: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """The same, but weight 0 for neighbours that the sampling filter cuts; the anchor always stays."""
    kept = scores.gather(-1, ids)
    kept[:, 0] = tempered(logits.gather(-1, ids[:, :1]), temperature).squeeze(-1)
    return kept.softmax(dim=-1)


def double_softmax(logits: Tensor, scores: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """softmax(p / temperature) over the candidates, p the probabilities that tokens are drawn from.

    The released sampler overwrites its logits by probabilities before the mixture is weighed, so no weight is more than
    e^(1 / temperature) times another: an anchor that is certain gets 0.576 of three candidates at temperature 1.
    """
    return (scores.softmax(dim=-1).gather(-1, ids) / temperature).softmax(dim=-1)


WEIGHTS: Mapping[str, Weighing] = {"raw": raw, "filtered": filtered, "double_softmax": double_softmax}
# What the released code does whatever else is asked for: sglang's `layers/sampler.py` of ZJUSCL/N-GRPO at d9c94fe.
COMPAT: Mapping[str, Mapping[str, str]] = {
    "none": {},
    "released_sglang": {
        "anchor": "argmax",
        "realisation": "sampled",
        "weights": "double_softmax",
        "neighbors_of": "head",
    },
}


class NeighborMix(AnchoredMix):
    """At a mixed step: anchor v* = argmax z (ties: lowest id), candidates C = {v*} and its k - 1 nearest rows of E,
    weights = softmax(z / temperature) over C, fed = sum of weight * E[c] (section 3 of the paper). k counts the anchor.

    weights  "raw" (paper) or "filtered", see the functions of those names
    compat   "none" (paper) or "released_sglang", which settles anchor, realisation and weights: a sampled token is
             realised while the mixture stays around the argmax, weights go through softmax twice, and neighbours are
             rows of the output embedding although rows of the input embedding are mixed
    The other arguments are those of AnchoredMix. log_prob is the tempered softmax at the realised token: what the paper's
    objective uses, not the behaviour density of a mixed step.
    """

    def __init__(
        self,
        rate: float | None,
        k: int,
        metric: str = "cosine",
        realisation: str = "anchor",
        loss_on_mixed_steps: str = "keep",
        refresh_every: int = 10,
        temperature: float = 1.0,
        top_p: float = 1.0,
        anchor: str = "argmax",
        entropy_threshold: float | None = None,
        weights: str = "raw",
        compat: str = "none",
    ):
        asked = {"anchor": anchor, "realisation": realisation, "weights": weights, "neighbors_of": "table"}
        asked |= COMPAT[compat]
        super().__init__(
            rate, asked["anchor"], asked["realisation"], loss_on_mixed_steps, entropy_threshold, temperature, top_p
        )
        self.neighbors = NeighborTable(k, metric, refresh_every)
        self.weigh = WEIGHTS[asked["weights"]]
        self.search_head = asked["neighbors_of"] == "head"

    def bind(self, vocabulary: Vocabulary, table: Tensor) -> None:
        super().bind(vocabulary, table)
        self.neighbors.bind(self.ordinary)

    def prepare(self, table: Tensor, step: int, head: Tensor | None = None) -> Mapping[str, float]:
        searched = head if self.search_head and head is not None else table
        return self.neighbors.refresh(searched, step)

    def recipe(self, logits: Tensor, scores: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        ids = self.neighbors.candidates(anchors)
        return ids, self.weigh(logits, scores, ids, self.temperature)

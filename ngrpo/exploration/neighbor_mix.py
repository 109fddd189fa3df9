"""Semantic neighbour mixing, the rollout strategy of N-GRPO (arXiv 2606.10768).

While the model thinks, each step is mixed with probability `rate`: the model is fed a weighted mix of the argmax token's
embedding and those of its nearest neighbours. Given the logits the mixture has no randomness of its own; chance enters
through the choice of steps alone. This file does not know how neighbours are found.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ngrpo.exploration.base import State, SuffixMatch, Vocabulary, tempered
from ngrpo.exploration.neighbors import NeighborTable
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.keys import Draws
from ngrpo.rollouts import FORCED, TOKEN, Step


class NeighborMix(TokenSampling):
    """At a mixed step: anchor v* = argmax z (ties: lowest id), candidates C = {v*} and its k - 1 nearest rows of E,
    weights = softmax(z / temperature) over C, fed = sum of weight * E[c] (section 3 of the paper). k counts the anchor.

    realisation          "anchor": the text gains v* (paper); "sampled": it gains the sampled token while the mixture
                         stays around v* (released code)
    loss_on_mixed_steps  "keep" (paper) or "mask": with anchor realisation the token of a mixed step is not a sample,
                         so its log-probability is no score-function term
    Mixing ends for good where the realised text ends with `answer_start`; that delimiter, reserved tokens and stops are
    fed as they are, though a chosen step still realises the anchor. log_prob is the tempered softmax at the realised
    token: what the paper's objective uses, not the behaviour density of a mixed step.
    """

    def __init__(
        self,
        rate: float,
        k: int,
        metric: str = "cosine",
        realisation: str = "anchor",
        loss_on_mixed_steps: str = "keep",
        refresh_every: int = 10,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        super().__init__(temperature, top_p)
        self.rate = rate
        self.realise_anchor = realisation == "anchor"
        self.mixed_role = TOKEN if loss_on_mixed_steps == "keep" else FORCED
        self.neighbors = NeighborTable(k, metric, refresh_every)

    def bind(self, vocabulary: Vocabulary, table: Tensor) -> None:
        super().bind(vocabulary, table)
        self.answer = SuffixMatch(vocabulary.answer_start)
        self.neighbors.bind(vocabulary.ordinary(len(table), table.device))

    def prepare(self, table: Tensor, step: int) -> Mapping[str, float]:
        return self.neighbors.refresh(table, step)

    def start(self, rows: int, device: torch.device) -> State:
        return {"thinking": torch.ones(rows, dtype=torch.bool, device=device), **self.answer.start(rows, device)}

    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[Step, State]:
        anchors = logits.argmax(dim=-1)
        chosen = state["thinking"] & (draws.explore < self.rate)
        tokens = self.draw(logits, draws)
        if self.realise_anchor:
            tokens = torch.where(chosen, anchors, tokens)
        ended, state = self.answer.push(state, tokens)
        state["thinking"] = state["thinking"] & ~ended
        mixed = chosen & ~ended & self.neighbors.ordinary[anchors] & self.neighbors.ordinary[tokens]
        explored = chosen if self.realise_anchor else mixed
        role = torch.where(explored, self.mixed_role, TOKEN)
        if not mixed.any():
            return Step(tokens, role, explored), state
        return Step(tokens, role, explored, *self._recipe(logits, anchors, tokens, mixed)), state

    def _recipe(self, logits: Tensor, anchors: Tensor, tokens: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates and weights (B, K); one-hot on the realised token where nothing is mixed."""
        ids = self.neighbors.candidates(anchors)
        weights = tempered(logits.gather(-1, ids), self.temperature).softmax(dim=-1)
        plain = torch.zeros_like(weights)
        plain[:, 0] = 1
        ids = torch.where(mixed[:, None], ids, tokens[:, None])
        return ids, torch.where(mixed[:, None], weights, plain)

"""What the strategies share that feed, at chosen steps, something made around an anchor token.

It decides when to mix, what the text gains and what is recorded; it does not know what a mixture is made of.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ngrpo.exploration.base import State
from ngrpo.exploration.scores import draw_token, entropy, tempered
from ngrpo.exploration.token_sampling import ThinkingSampling
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import FORCED, TOKEN, Step

# The anchor (B,) of a mixture, from logits (B, V) and the sampled tokens (B,).
ANCHORS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "argmax": lambda logits, tokens: logits.max(dim=-1).indices,  # argmax takes twice the time
    "sampled": lambda logits, tokens: tokens,
}


class AnchoredMix(ThinkingSampling):
    """With probability `rate` per thinking step (null: always) the step is chosen: a mixture around an anchor is fed.

    anchor               "argmax" (ties: lowest id) or "sampled", the sampled token
    realisation          "anchor": the text gains the anchor; "sampled": it gains the sampled token
    loss_on_mixed_steps  "keep" or "mask": an argmax that is realised is not a sample, so its log-probability is no
                         score-function term
    entropy_threshold    nats; steps are chosen only where softmax(z / temperature) has more than that; null: everywhere
    Mixing ends for good where the realised text ends with `answer_start`; that delimiter, reserved tokens and stops are
    fed as they are, though a chosen step still realises the anchor.
    """

    def __init__(
        self,
        rate: float | None,
        anchor: str = "argmax",
        realisation: str = "anchor",
        loss_on_mixed_steps: str = "keep",
        entropy_threshold: float | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        super().__init__(temperature, top_p)
        self.rate = 1.0 if rate is None else rate
        self.anchor = anchor
        self.realise_anchor = realisation == "anchor"
        self.replaces = self.realise_anchor and anchor == "argmax"
        self.mixed_role = TOKEN if loss_on_mixed_steps == "keep" else FORCED
        self.entropy_threshold = entropy_threshold

    @abstractmethod
    def recipe(self, logits: Tensor, scores: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates and weights (B, K), the anchor first, from logits and what tokens are drawn from, both (B, V)."""

    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[Step, State]:
        scores = self.scores(logits)
        tokens = draw_token(scores, draws.token)
        anchors = ANCHORS[self.anchor](logits, tokens)
        chosen = self._chosen(logits, state, draws)
        if self.realise_anchor:
            tokens = torch.where(chosen, anchors, tokens)
        ended, state = self.thinking.push(state, tokens)
        mixed = chosen & ~ended & self.ordinary[anchors] & self.ordinary[tokens]
        explored = chosen if self.replaces else mixed
        role = torch.where(explored, self.mixed_role, TOKEN)
        if mixed.device.type == "cpu" and not mixed.any():  # a recipe is no work for a device that would be waited for
            return Step(tokens, role, explored), state
        asked = torch.where(mixed, anchors, 0)  # a row that is not mixed has no neighbours searched
        recipe = one_hot_elsewhere(mixed, tokens, *self.recipe(logits, scores, asked))
        return Step(tokens, role, explored, *recipe), state

    def _chosen(self, logits: Tensor, state: State, draws: Draws) -> Tensor:
        chosen = state["thinking"] & (draws.explore < self.rate)
        if self.entropy_threshold is None:
            return chosen
        return chosen & (entropy(tempered(logits, self.temperature)) > self.entropy_threshold)


def one_hot_elsewhere(mixed: Tensor, tokens: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Candidates and weights (B, K) where `mixed` (B,); one-hot on the realised token (B,) where nothing is mixed."""
    plain = torch.zeros_like(weights)
    plain[:, 0] = 1
    return torch.where(mixed[:, None], ids, tokens[:, None]), torch.where(mixed[:, None], weights, plain)

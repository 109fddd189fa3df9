"""Feeding, at chosen steps, something made around an anchor: a gate, an anchor, a recipe and a text token, in any mix."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ngrpo.exploration.base import State, feed, one_hot_elsewhere
from ngrpo.exploration.gate import Gate
from ngrpo.exploration.scores import draw_token
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import FORCED, TOKEN, DecodeStep, Vocabulary

# What released code does whatever else is asked for: sglang's `layers/sampler.py` of ZJUSCL/N-GRPO at d9c94fe.
COMPAT: Mapping[str, Mapping[str, str]] = {
    "none": {},
    "released_sglang": {
        "anchor": "argmax",
        "text_token": "sampled",
        "recipe.weights": "double_softmax",
        "recipe.search": "head",
    },
}


@dataclass(frozen=True)
class Around:
    """The rows of one decode step that a recipe looks at."""

    mixed: Tensor  # (B,) bool, where something is made
    tokens: Tensor  # (B,) what the text gains
    anchors: Tensor  # (B,) what it is made around
    logits: Tensor  # (B, V)
    scores: Tensor  # (B, V) what tokens are drawn from, at `temperature`
    temperature: float
    table: Tensor  # (V, D)

    def mixture(self, ids: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """The fields of candidates and weights (B, K), the anchor first: one-hot on the text token where nothing is mixed."""
        ids, weights = one_hot_elsewhere(self.mixed, self.tokens, ids, weights)
        return {"mix_ids": ids, "mix_weights": weights}


class Recipe(nn.Module, ABC):
    """What is fed around an anchor: recorded once, fed again from the record."""

    def bind(self, ordinary: Tensor, table: Tensor) -> None:
        """Called once, with which rows of the table (V, D) are ordinary tokens (V,) bool."""

    def prepare(self, table: Tensor, step: int, head: Tensor | None = None) -> Mapping[str, float]:
        """As Exploration.prepare."""
        return {}

    @abstractmethod
    def record(self, rows: Around) -> dict[str, Tensor]:
        """Fields of a DecodeStep, each with B rows."""

    def embed(self, steps: DecodeStep, table: Tensor, draws: Draws) -> Tensor:
        """As Exploration.embed."""
        return feed(steps, table)


class Mixing(TokenSampling):
    """Where a row thinks and the gate is open, the step is chosen: what the recipe makes around the anchor is fed.

    anchor               "argmax" (ties: lowest id) or "sampled", the sampled token
    text_token           "anchor": the text gains the anchor; "sampled": it gains the sampled token
    loss_on_mixed_steps  "keep" or "mask": an argmax that the text gains is no sample, so its log-probability is no
                         score-function term
    compat               "none", or what COMPAT settles whatever the other arguments say
    Mixing ends for good where the text ends with `answer_start`; that delimiter, reserved tokens and stops are fed as
    they are, though at a chosen step the text still gains the anchor. log_prob is the tempered softmax at the text token:
    what the paper's objective uses, not the probability of a chosen step.
    """

    deviates = "an argmax that the text gains counts as if it were drawn"

    def __init__(
        self,
        gate: Gate,
        recipe: Recipe,
        anchor: str = "argmax",
        text_token: str = "anchor",
        loss_on_mixed_steps: str = "keep",
        compat: str = "none",
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        super().__init__(temperature, top_p)
        self.gate, self.recipe, self.anchor, self.text_token = gate, recipe, anchor, text_token
        self.loss_on_mixed_steps = loss_on_mixed_steps
        for name, value in COMPAT[compat].items():
            owner, _, attribute = name.rpartition(".")
            setattr(getattr(self, owner) if owner else self, attribute, value)

    def bind(self, vocabulary: Vocabulary, table: Tensor) -> None:
        super().bind(vocabulary, table)
        self.recipe.bind(self.thinking.ordinary, table)

    def prepare(self, table: Tensor, step: int, head: Tensor | None = None) -> Mapping[str, float]:
        return self.recipe.prepare(table, step, head)

    def start(self, rows: int, device: torch.device) -> State:
        return self.thinking.start(rows, device)

    def pick(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """The anchors (B,), from logits (B, V) and the sampled tokens (B,)."""
        return tokens if self.anchor == "sampled" else logits.max(dim=-1).indices  # argmax takes twice the time

    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[DecodeStep, State]:
        scores, thinking = self.scores(logits), self.thinking
        tokens = draw_token(scores, draws.token)
        anchors = self.pick(logits, tokens)
        chosen = state["thinking"] & self.gate.open(logits, draws, self.temperature)
        if self.text_token == "anchor":
            tokens = torch.where(chosen, anchors, tokens)
        _, state = thinking.push(state, tokens)
        mixed = chosen & state["thinking"] & thinking.ordinary[tokens]
        mixed = mixed if anchors is tokens else mixed & thinking.ordinary[anchors]
        explored = chosen if (self.anchor, self.text_token) == ("argmax", "anchor") else mixed
        role = torch.full_like(tokens, TOKEN)
        role = role if self.loss_on_mixed_steps == "keep" else role.masked_fill(explored, FORCED)
        if mixed.device.type == "cpu" and not mixed.any():  # a recipe is no work for a device that would be waited for
            return DecodeStep(tokens, role, explored), state
        rows = Around(mixed, tokens, anchors, logits, scores, self.temperature, table)
        return DecodeStep(tokens, role, explored, **self.recipe.record(rows)), state

    def embed(self, steps: DecodeStep, table: Tensor, draws: Draws) -> Tensor:
        return self.recipe.embed(steps, table, draws)

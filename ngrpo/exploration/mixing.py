"""Feeding another vector than the token's embedding at chosen steps: any combination of gate, anchor, recipe and text token."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ngrpo.exploration.base import State, mixture, one_hot_elsewhere, where_explored
from ngrpo.exploration.gate import Gate
from ngrpo.exploration.scores import draw_token
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import FORCED, TOKEN, DecodeStep, Vocabulary

# Settings that the released code has hard-coded: sglang's `layers/sampler.py` of ZJUSCL/N-GRPO at d9c94fe.
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
class StepRows:
    """The rows of one decode step, as a recipe sees them."""

    mixed: Tensor  # (B,) bool, rows that are fed what the recipe makes
    tokens: Tensor  # (B,) text tokens
    anchors: Tensor  # (B,) the tokens that the fed vectors stand around
    logits: Tensor  # (B, V)
    scores: Tensor  # (B, V) whose softmax tokens are drawn from, at `temperature`
    temperature: float
    table: Tensor  # (V, D)

    def mixture(self, ids: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Record fields of candidates and weights (B, K), the anchor first: one-hot on the text token of rows not mixed."""
        ids, weights = one_hot_elsewhere(self.mixed, self.tokens, ids, weights)
        return {"mix_ids": ids, "mix_weights": weights}


class Recipe(nn.Module, ABC):
    """The vectors fed around an anchor: recorded while sampling, rebuilt from the record."""

    recorded: ClassVar[str] = "mix_ids"  # a field that steps lack where the recipe made nothing

    def bind(self, ordinary: Tensor) -> None:
        """Called once, with (V,) bool, which rows of the embedding table are ordinary tokens."""

    def prepare(self, table: Tensor, step: int, head: Tensor | None = None) -> Mapping[str, float]:
        """As Exploration.prepare."""
        return {}

    @abstractmethod
    def record(self, rows: StepRows) -> dict[str, Tensor]:
        """Fields of a DecodeStep, each with B rows."""

    def embed(self, steps: DecodeStep, table: Tensor, draws: Draws) -> Tensor:
        """As Exploration.embed."""
        fed = F.embedding(steps.tokens, table)
        if getattr(steps, self.recorded) is None:
            return fed
        return where_explored(steps, fed, lambda at: self.vectors(steps[at], fed[at], table, draws[at]))

    def vectors(self, steps: DecodeStep, fed: Tensor, table: Tensor, draws: Draws) -> Tensor:
        """The fed vectors (..., D) of explored steps; `fed` (..., D) are the embeddings of their text tokens."""
        return mixture(steps, table)


class Mixing(TokenSampling):
    """While a row thinks, steps with an open gate are chosen: they feed what the recipe makes around the anchor.

    anchor               "argmax" (ties: lowest id) or "sampled", the sampled token
    text_token           "anchor": the anchor is appended to the text; "sampled": the sampled token is
    loss_on_mixed_steps  "keep" or "mask": an argmax in the text is not a sample, so its log-probability is not a
                         score-function term
    compat               "none", or an entry of COMPAT, which overrides the other arguments
    Mixing ends for good where the text ends with `answer_start`; that delimiter, reserved tokens and stops are fed as
    they are, though at a chosen step the anchor is still the text token. log_prob is the tempered softmax at the text
    token: the term of the paper's objective, not the probability of a chosen step.
    """

    deviates = "an argmax in the text counts as if it were sampled"

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
        self.recipe.bind(self.thinking.ordinary)

    def prepare(self, table: Tensor, step: int, head: Tensor | None = None) -> Mapping[str, float]:
        return self.recipe.prepare(table, step, head)

    def start(self, rows: int, device: torch.device) -> State:
        return self.thinking.start(rows, device)

    def pick(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """The anchors (B,), from logits (B, V) and the sampled tokens (B,)."""
        return tokens if self.anchor == "sampled" else logits.max(dim=-1).indices  # argmax() takes twice as long

    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[DecodeStep, State]:
        scores, thinking = self.scores(logits), self.thinking
        tokens = draw_token(scores, draws.token)
        anchors = self.pick(logits, tokens)
        chosen = thinking.active(state) & self.gate.open(logits, draws, self.temperature)
        if self.text_token == "anchor":
            tokens = torch.where(chosen, anchors, tokens)
        ended, state = thinking.push(state, tokens)
        mixed = chosen & ~ended & thinking.ordinary[tokens]
        mixed = mixed if anchors is tokens else mixed & thinking.ordinary[anchors]
        explored = chosen if (self.anchor, self.text_token) == ("argmax", "anchor") else mixed
        role = torch.full_like(tokens, TOKEN)
        role = role if self.loss_on_mixed_steps == "keep" else role.masked_fill(explored, FORCED)
        if mixed.device.type == "cpu" and not mixed.any():  # elsewhere, asking would wait for the device
            return DecodeStep(tokens, role, explored), state
        rows = StepRows(mixed, tokens, anchors, logits, scores, self.temperature, table)
        return DecodeStep(tokens, role, explored, **self.recipe.record(rows)), state

    def embed(self, steps: DecodeStep, table: Tensor, draws: Draws) -> Tensor:
        return self.recipe.embed(steps, table, draws)

"""What an exploration strategy is: a distribution over the pair (fed vector, realised token) of each decode step.

The verbs are those of torch.distributions on a record that can be replayed: `sample` draws one step, `embed` rebuilds
what was fed, `log_prob` gives the term that the objective uses. A strategy does not know prompts, caches or rewards.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import Step

State = dict[str, Tensor]  # per-row tensors, rows first; the engine gathers them when rows leave the batch


@dataclass(frozen=True)
class Vocabulary:
    """What a strategy may know of the token ids.

    size           number of ids the tokenizer can produce; embedding rows beyond it are padding
    reserved       ids that are special or added tokens: never a neighbour, never mixed
    stops          ids that end a text
    answer_start   ids of the text that ends the thinking part; empty: the whole text is thinking
    answer_prefix  ids of the text that opens the final answer
    """

    size: int
    reserved: tuple[int, ...]
    stops: tuple[int, ...]
    answer_start: tuple[int, ...] = ()
    answer_prefix: tuple[int, ...] = ()

    def ordinary(self, rows: int, device: torch.device | str = "cpu") -> Tensor:
        """(rows,) bool: the rows of an embedding table that stand for ordinary tokens."""
        allowed = torch.arange(rows, device=device) < self.size
        allowed[torch.tensor([*self.reserved, *self.stops], dtype=torch.int64, device=device)] = False
        return allowed


class Exploration(nn.Module, ABC):
    """Base of every strategy; subclasses need `sample` and `log_prob`, and the rest where they differ."""

    vocabulary: Vocabulary

    def bind(self, vocabulary: Vocabulary, table: Tensor) -> None:
        """Called once, before anything else, with the policy's vocabulary and input-embedding table (V, D)."""
        self.vocabulary = vocabulary

    def prepare(self, table: Tensor, step: int, head: Tensor | None = None) -> Mapping[str, float]:
        """Called before every RL step with the current table (V, D) and the output-embedding table, which is `table`
        itself for tied models; returns figures worth logging."""
        return {}

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Optimiser groups of the strategy's own parameters; the policy's rate is theirs unless a strategy says more."""
        learners = list(self.parameters())
        return [{"params": learners, "lr": learning_rate}] if learners else []

    def start(self, rows: int, device: torch.device) -> State:
        """Per-row state at the first decode step."""
        return {}

    @abstractmethod
    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[Step, State]:
        """One step from logits (B, V) float32, the state, this step's draws (B,) and the table (V, D)."""

    def embed(self, steps: Step, table: Tensor, draws: Draws) -> Tensor:
        """The fed vectors (..., D), differentiable in the table: E[token], or the recipe where exploration acted."""
        fed = F.embedding(steps.tokens, table)
        if steps.mix_ids is None or steps.mix_weights is None:
            return fed
        return overwrite(fed, steps.explored, mixture(steps, table))

    @abstractmethod
    def log_prob(self, steps: Step, logits: Tensor, table: Tensor) -> Tensor:
        """The objective's log-probability (...,) float32 of recorded steps under logits (..., V)."""

    def sample_and_log_prob(
        self, logits: Tensor, state: State, draws: Draws, table: Tensor
    ) -> tuple[Step, Tensor, State]:
        """`sample`, and `log_prob` of what it drew: for strategies whose two terms share much work."""
        step, state = self.sample(logits, state, draws, table)
        return step, self.log_prob(step, logits, table), state


def mixture(steps: Step, table: Tensor) -> Tensor:
    """(N, D) at the N explored steps: sum over the K candidates of weight * E[id], in candidate order."""
    assert steps.mix_ids is not None and steps.mix_weights is not None
    where = steps.explored.nonzero(as_tuple=True)
    ids, weights = steps.mix_ids[where], steps.mix_weights[where]
    return (F.embedding(ids, table) * weights[..., None].to(table.dtype)).sum(dim=-2)


def overwrite(fed: Tensor, where: Tensor, values: Tensor) -> Tensor:
    """`fed` (..., D) with `values` (N, D) at the N true places of `where` (...,), differentiable in both."""
    return fed.index_put(where.nonzero(as_tuple=True), values.to(fed.dtype))


class SuffixMatch:
    """Whether each row's realised text has just ended with `suffix`; kept as a state entry of recent tokens (B, L)."""

    def __init__(self, suffix: tuple[int, ...], name: str = "recent"):
        self.suffix, self.name = suffix, name

    def start(self, rows: int, device: torch.device) -> State:
        return {self.name: torch.full((rows, max(len(self.suffix), 1)), -1, device=device)}

    def push(self, state: State, tokens: Tensor) -> tuple[Tensor, State]:
        """(B,) bool and the new state after `tokens` (B,) were realised. An empty suffix never matches."""
        recent = torch.cat((state[self.name][:, 1:], tokens[:, None]), dim=1)
        matched = torch.full_like(tokens, bool(self.suffix), dtype=torch.bool)
        for column, token in enumerate(self.suffix):  # one token at a time, so that nothing is copied to a device
            matched = matched & (recent[:, column] == token)
        return matched, {**state, self.name: recent}


class Thinking:
    """Which rows still think: every row, until its realised text ends with `answer_start`; a state entry (B,) bool."""

    def __init__(self, vocabulary: Vocabulary):
        self.answer = SuffixMatch(vocabulary.answer_start)

    def start(self, rows: int, device: torch.device) -> State:
        return {"thinking": torch.ones(rows, dtype=torch.bool, device=device), **self.answer.start(rows, device)}

    def push(self, state: State, tokens: Tensor) -> tuple[Tensor, State]:
        """(B,) bool, whether `tokens` (B,) end the delimiter, and the new state; such a token is no thought any more."""
        ended, state = self.answer.push(state, tokens)
        return ended, {**state, "thinking": state["thinking"] & ~ended}

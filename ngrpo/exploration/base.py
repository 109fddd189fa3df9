"""What an exploration strategy is: a distribution over the pair (fed vector, text token) of each decode step.

The verbs are those of torch.distributions on a record that can be replayed: `sample` draws one step, `embed` rebuilds
what was fed, `log_prob` gives the term that the objective uses.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ngrpo.exploration.thinking import State, TextMatch, Thinking
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import DecodeStep, Vocabulary


class Exploration(nn.Module, ABC):
    """Base of every strategy; subclasses need `sample` and `log_prob`, and the rest where they differ. `thinking`, once
    bound, tells which rows still think and which tokens are ordinary; `stopping`, which rows have ended with a stop.

    deviates: how log_prob differs from the logarithm of the probability (or density) of what was drawn, where exploration
    acts and the objective wants it to; empty: it does not, and `python -m ngrpo.contract` holds draws against it.
    matched: what `temperature` is set by before anything is drawn (training.matching).
    records_vectors: each step's record has a vector (`offset`), which plans count.
    acts_on: what else it acts on than what is fed, which an engine that computes with a model of its own refuses. `attention`:
    `masks` of each row, the same in a replay. `weights`: `perturbed` ones in the rollout alone, so that log-probabilities of
    the rollout are not those of a replay, and the loss corrects for it.
    """

    deviates: ClassVar[str] = ""
    matched: "Matched | None" = None
    records_vectors: ClassVar[bool] = False
    acts_on: ClassVar[Literal["", "attention", "weights"]] = ""

    vocabulary: Vocabulary
    thinking: Thinking
    stopping: TextMatch
    temperature: float = 1.0

    def temperature_of(self, steps: DecodeStep) -> float | Tensor:
        """What divides the logits that recorded steps' text tokens are drawn from, a number or (..., 1)."""
        return self.temperature

    def bind(self, vocabulary: Vocabulary, table: Tensor) -> None:
        """Called once, before anything else, with the policy's vocabulary and input-embedding table (V, D)."""
        self.vocabulary, self.thinking = vocabulary, Thinking(vocabulary, len(table), table.device)
        texts = tuple(tuple(text.encode()) for text in vocabulary.stop_texts)
        self.stopping = TextMatch(vocabulary, texts, len(table), table.device, vocabulary.stops)

    def prepare(self, table: Tensor, step: int, head: Tensor | None = None) -> Mapping[str, float]:
        """Called before every RL step with the current table (V, D) and the output-embedding table, which is `table`
        itself for tied models; returns figures worth logging."""
        return {}

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Optimizer groups of the strategy's own parameters; the policy's rate is theirs unless a strategy says more."""
        learners = list(self.parameters())
        return [{"params": learners, "lr": learning_rate}] if learners else []

    def adapt(self, figures: Mapping[str, float]) -> None:
        """Called after every RL step with the figures of its updates, over all ranks."""

    def perturbed(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within it the model has the weights that answers are drawn from; after it, those from before, bit by bit. Entered
        again within itself, it changes nothing."""
        return nullcontext()

    def masks(self, keys: Tensor, layers: int, width: int) -> Tensor | None:
        """(B, layers, width) float32: what attention's output, before it is projected, is multiplied by at every fed vector of
        the answer, for the rows with these keys (B,). None: by nothing. The prompt, which rows share, is read without."""
        return None

    def start(self, rows: int, device: torch.device) -> State:
        """Per-row state at the first decode step."""
        return {}

    @abstractmethod
    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[DecodeStep, State]:
        """One step from logits (B, V) float32, the state, this step's draws (B,) and the table (V, D)."""

    def embed(self, steps: DecodeStep, table: Tensor, draws: Draws) -> Tensor:
        """The fed vectors (..., D), differentiable in the table: E[token], or the recipe where exploration acted."""
        return feed(steps, table)

    @abstractmethod
    def log_prob(self, steps: DecodeStep, logits: Tensor, table: Tensor) -> Tensor:
        """The objective's log-probability (...,) float32 of recorded steps under logits (..., V)."""

    def sample_and_log_prob(
        self, logits: Tensor, state: State, draws: Draws, table: Tensor
    ) -> tuple[DecodeStep, Tensor, State]:
        """`sample`, and `log_prob` of what it drew: for strategies whose two terms share much work."""
        step, state = self.sample(logits, state, draws, table)
        return step, self.log_prob(step, logits, table), state


class Matched(NamedTuple):
    """A strategy, by name, that another one shall be as uncertain as, on so many problems. In a tuple it is no part of
    the other, whose parameters would learn."""

    name: str
    strategy: Exploration
    problems: int


def feed(steps: DecodeStep, table: Tensor) -> Tensor:
    """(..., D): E[token], or the recipe where exploration acted."""
    fed = F.embedding(steps.tokens, table)
    if steps.mix_ids is None or steps.mix_weights is None:
        return fed
    return where_explored(steps, fed, lambda places: mixture(steps[places], table))


def mixture(steps: DecodeStep, table: Tensor) -> Tensor:
    """(..., D): sum over the K candidates of weight * E[id], in candidate order."""
    assert steps.mix_ids is not None and steps.mix_weights is not None
    return (F.embedding(steps.mix_ids, table) * steps.mix_weights[..., None].to(table.dtype)).sum(dim=-2)


def chosen_places(where: Tensor) -> Any:
    """An index of the true places of `where`, or of all places where counting the true ones would wait for the device."""
    return where.nonzero(as_tuple=True) if where.device.type == "cpu" else ...


def where_explored(steps: DecodeStep, fed: Tensor, make: Callable[[Any], Tensor]) -> Tensor:
    """`fed` (..., D) with `make(places)` (..., D) at the explored steps, differentiable in both."""
    places = chosen_places(steps.explored)
    made = make(places).to(fed.dtype)
    return torch.where(steps.explored[..., None], made, fed) if places is ... else fed.index_put(places, made)


def one_hot_elsewhere(mixed: Tensor, tokens: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Candidates and weights (B, K) where `mixed` (B,); one-hot on the text token (B,) where nothing is mixed."""
    plain = torch.zeros_like(weights)
    plain[:, 0] = 1
    return torch.where(mixed[:, None], ids, tokens[:, None]), torch.where(mixed[:, None], weights, plain)


def held(owner: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of the numbers, texts and nulls that a strategy or a part of it holds, its own ones last."""
    for name, value in {**vars(owner).get("_modules", {}), **vars(owner)}.items():
        known = name[0] != "_" and name not in ("training", "vocabulary") and not isinstance(value, type | Tensor)
        if known and (value is None or isinstance(value, bool | int | float | str)):
            yield prefix + name, value
        elif known and hasattr(value, "__dict__") and not inspect.isroutine(value):
            yield from held(value, f"{prefix}{name}.")

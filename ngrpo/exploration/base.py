"""What an exploration strategy is: a distribution over the pair (fed vector, text token) of each decode step.

The verbs are those of torch.distributions, on a record that can be replayed: `sample` draws a step, `embed` rebuilds the
fed vector, `log_prob` gives the term of the objective.
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
    """Base of every strategy; subclasses define `sample` and `log_prob`, and override the rest as needed. Once bound,
    `thinking` knows which rows still think and which tokens are ordinary, and `stopping` which rows have ended with a stop.

    deviates: how log_prob differs, where exploration acts and the objective wants it to, from the log-probability (or
    density) of the draw; empty: it does not, and `python -m ngrpo.contract` tests draws against it.
    matched: the strategy that determines `temperature` before anything is drawn (training.matching).
    records_vectors: each step's record has a vector (`offset`), which plans count.
    acts_on: what it acts on besides the fed vectors; engines with a model of their own refuse it. `attention`: `masks` of
    each row, the same in a replay. `weights`: `perturbed` ones in the rollout alone, so that log-probabilities of the
    rollout differ from those of a replay, and the loss corrects for it.
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
        """The temperature that the text tokens of recorded steps were drawn at, a number or (..., 1)."""
        return self.temperature

    def bind(self, vocabulary: Vocabulary, table: Tensor) -> None:
        """Called once, before anything else, with the policy's vocabulary and input-embedding table (V, D)."""
        self.vocabulary, self.thinking = vocabulary, Thinking(vocabulary, len(table), table.device)
        texts = tuple(tuple(text.encode()) for text in vocabulary.stop_texts)
        self.stopping = TextMatch(vocabulary, texts, len(table), table.device, vocabulary.stops)

    def prepare(self, table: Tensor, step: int, head: Tensor | None = None) -> Mapping[str, float]:
        """Called before every RL step with the current table (V, D) and the output-embedding table, which is `table`
        itself for tied models; returns figures to log."""
        return {}

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Optimizer groups of the strategy's own parameters, by default at the policy's learning rate."""
        parameters = list(self.parameters())
        return [{"params": parameters, "lr": learning_rate}] if parameters else []

    def adapt(self, figures: Mapping[str, float]) -> None:
        """Called after every RL step with the figures of its updates over all ranks."""

    def perturbed(self, model: nn.Module) -> AbstractContextManager[None]:
        """A context in which the model has the weights that answers are drawn from; afterwards it has its own again, bit for
        bit. Nested, it changes nothing."""
        return nullcontext()

    def masks(self, keys: Tensor, layers: int, width: int) -> Tensor | None:
        """(B, layers, width) float32 factors of attention's output, before its projection, at every fed vector of the answer,
        for rows with these keys (B,); None: no factors. The prompt, which rows share, is read without them."""
        return None

    def start(self, rows: int, device: torch.device) -> State:
        """Per-row state at the first decode step."""
        return {}

    @abstractmethod
    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[DecodeStep, State]:
        """One step from logits (B, V) float32, the state, this step's draws (B,) and the table (V, D)."""

    def embed(self, steps: DecodeStep, table: Tensor, draws: Draws) -> Tensor:
        """The fed vectors (..., D), differentiable in the table: E[token], or the mixture where exploration acted."""
        return feed(steps, table)

    @abstractmethod
    def log_prob(self, steps: DecodeStep, logits: Tensor, table: Tensor) -> Tensor:
        """The objective's log-probability (...,) float32 of recorded steps under logits (..., V)."""

    def sample_and_log_prob(
        self, logits: Tensor, state: State, draws: Draws, table: Tensor
    ) -> tuple[DecodeStep, Tensor, State]:
        """`sample`, and `log_prob` of the draw: for strategies where the two share much work."""
        step, state = self.sample(logits, state, draws, table)
        return step, self.log_prob(step, logits, table), state


class Matched(NamedTuple):
    """A strategy and its name, whose entropy another one is to match on that many problems. A tuple, so that its parameters
    are not those of the other, and do not learn."""

    name: str
    strategy: Exploration
    problems: int


def feed(steps: DecodeStep, table: Tensor) -> Tensor:
    """(..., D): E[token], or the mixture where exploration acted."""
    fed = F.embedding(steps.tokens, table)
    if steps.mix_ids is None:
        return fed
    return where_explored(steps, fed, lambda places: mixture(steps[places], table))


def mixture(steps: DecodeStep, table: Tensor) -> Tensor:
    """(..., D): sum of weight * E[id] over the K candidates, in their order."""
    assert steps.mix_ids is not None and steps.mix_weights is not None
    return (F.embedding(steps.mix_ids, table) * steps.mix_weights[..., None].to(table.dtype)).sum(dim=-2)


def chosen_places(where: Tensor) -> Any:
    """An index of the true places of `where`; off the CPU of all places, since counting would wait for the device."""
    return where.nonzero(as_tuple=True) if where.device.type == "cpu" else ...


def where_explored(steps: DecodeStep, fed: Tensor, make: Callable[[Any], Tensor]) -> Tensor:
    """`fed` (..., D) with `make(places)` (..., D) at the explored steps, differentiable in both."""
    places = chosen_places(steps.explored)
    vectors = make(places).to(fed.dtype)
    return torch.where(steps.explored[..., None], vectors, fed) if places is ... else fed.index_put(places, vectors)


def one_hot_elsewhere(mixed: Tensor, tokens: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Candidates and weights (B, K) of rows that are `mixed` (B,) bool; of others one-hot on the text token (B,)."""
    plain = torch.zeros_like(weights)
    plain[:, 0] = 1
    return torch.where(mixed[:, None], ids, tokens[:, None]), torch.where(mixed[:, None], weights, plain)


def settings_of(owner: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of the numbers, strings and None that a strategy and its parts hold as attributes."""
    for name, value in {**vars(owner).get("_modules", {}), **vars(owner)}.items():
        public = name[0] != "_" and name not in ("training", "vocabulary") and not isinstance(value, type | Tensor)
        if public and (value is None or isinstance(value, bool | int | float | str)):
            yield prefix + name, value
        elif public and hasattr(value, "__dict__") and not inspect.isroutine(value):
            yield from settings_of(value, f"{prefix}{name}.")

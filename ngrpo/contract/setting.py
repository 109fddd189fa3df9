"""A small vocabulary, logits in which every case occurs, and keyed draws of many rows at one decode step.

The rows think, with half of the delimiter in their text, or write their answer. It knows no strategy.
"""

import inspect
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ngrpo.exploration.base import State
from ngrpo.rollout.keys import Draws, row_key
from ngrpo.rollout.records import DecodeStep, Vocabulary

RESERVED, STOP, OPENS, ENDS, WORD, PADDING, V, D = 0, 1, 2, 3, 5, 9, 10, 4
VOCABULARY = Vocabulary(9, (RESERVED, STOP), (STOP,), (OPENS, ENDS), (7,))  # seven ordinary tokens: 2 to 8
LIKELIEST = {"word": WORD, "delimiter": ENDS, "reserved": RESERVED, "stop": STOP}  # of four rows of logits
SPREAD = 3.2  # between the likeliest and the least likely logit: every token comes up, even at temperature 0.6
POSITIONS = (0, 7, 14, 21)  # of the four rows of logits in a text
ANSWERING = 10  # every so many-th row of each four writes its answer


class Samples(Protocol):
    """What is held to the contract: a strategy, or one whose `sample` was tampered with."""

    def start(self, rows: int, device: torch.device) -> State: ...
    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[DecodeStep, State]: ...
    def embed(self, steps: DecodeStep, table: Tensor, draws: Draws) -> Tensor: ...


@dataclass(frozen=True)
class Source:
    """All that the rows of one decode step draw, made once: uniforms by name, blocks of numbers by kind and width."""

    draws: Draws
    made: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def block(self, kind: str, width: int) -> Tensor:
        """`normal` or `uniforms` of a width, of every row."""
        if (kind, width) not in self.made:
            self.made[kind, width] = getattr(self.draws, kind)(width)
        return self.made[kind, width]


@dataclass(frozen=True)
class Streams(Draws):
    """Draws whose token uniforms come from one source and whose exploration comes from another."""

    tokens: Source
    exploration: Source
    at: Any

    @cached_property
    def token(self) -> Tensor:
        return self.tokens.draws.token[self.at]

    @cached_property
    def explore(self) -> Tensor:
        return self.exploration.draws.explore[self.at]

    def normal(self, width: int) -> Tensor:
        return self.exploration.block("normal", width)[self.at]

    def uniforms(self, width: int) -> Tensor:
        return self.exploration.block("uniforms", width)[self.at]

    def __getitem__(self, index: Any) -> "Streams":
        index = torch.arange(len(self.rows))[index]
        at = torch.arange(len(self.tokens.draws.rows))[self.at][index]
        return Streams(self.rows[index], self.steps[index], self.tokens, self.exploration, at)


@dataclass(frozen=True)
class Played:
    """What a strategy made of one decode step: the record, what was fed, and the draws."""

    step: DecodeStep
    fed: Tensor
    draws: Draws

    def rows(self, index: Any) -> dict[str, Any]:
        """The record's fields and `fed` of some rows as arrays, float64 where they are floats; None where absent."""
        named = {name: getattr(self.step, name) for name in DecodeStep.__dataclass_fields__} | {"fed": self.fed}
        return {name: None if value is None else _array(value[index]) for name, value in named.items()}


class Setting:
    """B rows: row i sees the (i mod 4)-th row of logits, and one of ANSWERING quadruples of rows writes its answer."""

    def __init__(self, rows: int = 200_000, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(V, D, generator=generator)
        self.logits = torch.stack([_logits(token, generator) for token in LIKELIEST.values()])  # (4, V)
        place = torch.arange(rows)
        self.situation, self.answering = place % len(LIKELIEST), place // len(LIKELIEST) % ANSWERING == 0
        steps = torch.tensor(POSITIONS)[self.situation]
        keys = [torch.arange(rows) * 2 + row_key("contract", seed, name) // 4 for name in ("ours", "others")]
        self.sources = [Source(Draws(key, steps).precompute()) for key in keys]
        self.keys, self.steps = keys[0], steps

    def draws(self, rows: int, tokens: int = 0, exploration: int = 0) -> Streams:
        """Of the first rows; the numbers choose the sources of the two kinds of stream."""
        part = slice(rows)
        return Streams(self.keys[part], self.steps[part], self.sources[tokens], self.sources[exploration], part)

    def play(self, subject: Samples, draws: Draws) -> Played:
        """One decode step of as many rows as there are draws."""
        rows = len(draws.rows)
        logits = self.logits[self.situation[:rows]]
        with torch.no_grad():
            state = self._states(subject, self.answering[:rows])
            step, _ = subject.sample(logits, state, draws, self.table)
            return Played(step, subject.embed(step, self.table, draws), draws)

    def _states(self, subject: Samples, answering: Tensor) -> State:
        """What rows remember whose text is the beginning of the delimiter, or all of it and a first word of the answer."""
        thinking = answers = subject.start(1, torch.device("cpu"))
        for place, token in enumerate((OPENS, ENDS, *VOCABULARY.answer_prefix)):
            draws = Draws(torch.tensor([place]), torch.tensor([place]))
            _, answers = subject.sample(60.0 * F.one_hot(torch.tensor([token]), V), answers, draws, self.table)
            thinking = answers if token == OPENS else thinking
        chosen = answering.long()
        return {name: torch.cat((thinking[name], answers[name]))[chosen] for name in answers}


def _logits(likeliest: int, generator: torch.Generator) -> Tensor:
    """(V,) evenly spread, in a random order but for the likeliest, which is ahead of the next by a fifth."""
    places = torch.randperm(V - 1, generator=generator).double()
    values = torch.cat((places[:likeliest], torch.tensor([V - 1.0]).double(), places[likeliest:]))
    return (SPREAD / (V - 1) * values + 0.1 * torch.rand(V, generator=generator).double()).float()


def _array(value: Tensor) -> np.ndarray:
    return (value.double() if value.is_floating_point() else value).numpy()


def held(owner: Any) -> dict[str, Any]:
    """Dotted name -> number, text or null that a strategy or a part of it holds as an attribute."""
    found: dict[str, Any] = {}
    for name, value in {**vars(owner), **getattr(owner, "_modules", {})}.items():
        if name.startswith("_") or name in ("training", "vocabulary"):
            continue
        if value is None or isinstance(value, (bool, int, float, str)):
            found[name] = value
        elif hasattr(value, "__dict__") and not isinstance(value, (type, Tensor)) and not inspect.isroutine(value):
            found |= {f"{name}.{inner}": member for inner, member in held(value).items()}
    return found

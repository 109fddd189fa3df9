"""What a contract has to notice: strategies whose sampling was tampered with, while everything else stayed as it is.

A strategy has those that change what it records or feeds: its numbers, the streams that it draws from, its anchor, its
state. None is listed by hand, so that a strategy of one's own has them too.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ngrpo.contract.setting import Played, Setting, held
from ngrpo.exploration.base import Exploration, State
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import DecodeStep

COMPARED = 20_000  # rows on which a mutation has to change something to be one


# What is drawn from another stream than its own: the names of the token's, the gate's and the noise's.
STREAMS = {
    "tokens by the exploration's uniform": ("explore", "explore", ""),
    "exploration by the token's uniform": ("token", "token", ""),
    "noise from the token's uniform": ("token", "explore", "token"),
}


@dataclass(frozen=True)
class Mutant:
    """A strategy that samples as `sampler` does, with other draws, logits or states where these are given."""

    strategy: Exploration
    sampler: Exploration
    draws: Callable[[Draws], Draws] = lambda draws: draws
    logits: Callable[[Tensor], Tensor] = lambda logits: logits
    forgetful: bool = False

    def start(self, rows: int, device: torch.device) -> State:
        return self.strategy.start(rows, device)

    def sample(self, logits: Tensor, state: State, draws: Draws, table: Tensor) -> tuple[DecodeStep, State]:
        seen = self.start(len(logits), logits.device) if self.forgetful else state
        return self.sampler.sample(self.logits(logits), seen, self.draws(draws), table)

    def embed(self, steps: DecodeStep, table: Tensor, draws: Draws) -> Tensor:
        return self.strategy.embed(steps, table, self.draws(draws))


@dataclass(frozen=True)
class Swapped(Draws):
    """Draws some of whose streams come out of another one."""

    drawn: Draws
    token_from: str = "token"
    explore_from: str = "explore"
    noise_from: str = ""

    @cached_property
    def token(self) -> Tensor:
        return getattr(self.drawn, self.token_from)

    @cached_property
    def explore(self) -> Tensor:
        return getattr(self.drawn, self.explore_from)

    def uniforms(self, width: int) -> Tensor:
        if not self.noise_from:
            return self.drawn.uniforms(width)
        return getattr(self.drawn, self.noise_from)[:, None] * torch.arange(1, width + 1).double() % 1

    def normal(self, width: int) -> Tensor:
        if not self.noise_from:
            return self.drawn.normal(width)
        return torch.special.ndtri(self.uniforms(width).clamp(2.0**-54, 1 - 2.0**-53)).float()

    def __getitem__(self, index: Any) -> "Swapped":
        part = self.drawn[index]
        return Swapped(part.rows, part.steps, part, self.token_from, self.explore_from, self.noise_from)


def mutations(strategy: Exploration, setting: Setting) -> dict[str, Mutant]:
    """Name -> every mutation that the strategy has."""
    plain = setting.play(strategy, setting.draws(COMPARED))
    return {name: m for name, m in _all(strategy) if differ(plain, setting.play(m, setting.draws(COMPARED)))}


def _all(strategy: Exploration) -> Iterator[tuple[str, Mutant]]:
    for name, sampler in _numbers(strategy):
        yield name, Mutant(strategy, sampler)
    for name, sources in STREAMS.items():
        yield f"stream: {name}", Mutant(strategy, strategy, draws=partial(_swapped, sources))
    yield "anchor: the two likeliest exchanged", Mutant(strategy, strategy, logits=exchanged)
    if hasattr(strategy, "pick"):
        sampler = copy.deepcopy(strategy)
        sampler.pick = second  # pyright: ignore
        yield "anchor: the second likeliest", Mutant(strategy, sampler)
    if strategy.start(1, torch.device("cpu")):
        yield "gate: the state is forgotten", Mutant(strategy, strategy, forgetful=True)


def _numbers(strategy: Exploration) -> Iterator[tuple[str, Exploration]]:
    """Every number that a strategy holds, a tenth off; whole ones one off."""
    for name, value in held(strategy).items():
        if isinstance(value, (bool, str)) or not value or not math.isfinite(value):
            continue
        off = value + 1 if isinstance(value, int) else value * (0.9 if value <= 1 else 1.1)
        yield f"{name}={off:.4g}", _with(strategy, name, off)
    for name, buffer in strategy.named_buffers():
        if buffer.is_floating_point():
            yield f"{name} a tenth larger", _with(strategy, name, buffer * 1.1)


def _with(strategy: Exploration, name: str, value: Any) -> Exploration:
    changed = copy.deepcopy(strategy)
    *parts, last = name.split(".")
    owner: Any = changed
    for part in parts:
        owner = getattr(owner, part)
    setattr(owner, last, value)
    return changed


def _swapped(sources: tuple[str, str, str], draws: Draws) -> Draws:
    return Swapped(draws.rows, draws.steps, draws, *sources)


def exchanged(logits: Tensor) -> Tensor:
    """Logits (B, V) in which the likeliest and the second likeliest have each other's."""
    values, ids = logits.topk(2, dim=-1)
    return logits.scatter(-1, ids.flip(-1), values)


def second(logits: Tensor, tokens: Tensor) -> Tensor:
    """(B,) the second likeliest token, in the place of an anchor."""
    return logits.topk(2, dim=-1).indices[:, 1]


def differ(ours: Played, theirs: Played) -> bool:
    """Whether two plays of the same rows differ in the record or in what was fed."""
    pairs = [(getattr(ours.step, f), getattr(theirs.step, f)) for f in DecodeStep.__dataclass_fields__]
    pairs.append((ours.fed, theirs.fed))
    return not all(a is b is None or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)

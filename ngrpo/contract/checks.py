"""Every check of one strategy: its law in each cell of the setting, and that its streams do not reach into each other."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ngrpo.contract.laws import Cell, Law, Record, resolve
from ngrpo.contract.mutations import COMPARED
from ngrpo.contract.setting import LIKELIEST, POSITIONS, Played, Samples, Setting
from ngrpo.contract.statistics import Finding, holds, near, pooled
from ngrpo.exploration.base import Exploration
from ngrpo.rollout.records import TOKEN, DecodeStep


def examine(strategy: Exploration, setting: Setting, rows: int, subject: Samples | None = None) -> Iterator[Finding]:
    """Findings about the first `rows` rows: of the strategy, or of what samples in its place while it scores."""
    law, sampler = resolve(strategy.law)(strategy, setting), subject or strategy
    played = setting.play(sampler, setting.draws(rows))
    found = []
    for cell, where in cells(setting, rows):
        for finding in _checked(law, cell, played.rows(where)):
            found.append(finding)
            yield replace(finding, what=f"{cell.name}: {finding.what}")
    yield from pooled(found)
    yield from fed(played, setting)
    yield from streams(sampler, setting, law.value("rate", 0.0))
    if subject is None:
        yield engine_gap(strategy, setting)


def _checked(law: Law, cell: Cell, seen: Record) -> Iterator[Finding]:
    """The findings of one cell; a record that the law cannot even be held against is one that fails."""
    try:
        yield from law.check(cell, seen)
    except (ValueError, IndexError, TypeError) as error:
        yield Finding("the record has the fields and shapes of its law", 0.0, " ".join(str(error).split()))


def cells(setting: Setting, rows: int) -> Iterator[tuple[Cell, Tensor]]:
    """Each case with the indices of its rows."""
    for number, (name, z) in enumerate(zip(LIKELIEST, setting.logits.double().numpy(), strict=True)):
        for thinking in (True, False):
            here = (setting.situation[:rows] == number) & (setting.answering[:rows] != thinking)
            state = "thinking" if thinking else "answer"
            yield Cell(f"{state}, {name} likeliest", z, thinking, POSITIONS[number]), here.nonzero().squeeze(-1)


def fed(played: Played, setting: Setting) -> Iterator[Finding]:
    """Where exploration did not act, the token's own embedding is fed; everything that is fed is finite."""
    plain = ~played.step.explored
    yield holds(
        "plain rows are fed their token's embedding", (played.fed == setting.table[played.step.tokens]).all(-1)[plain]
    )
    yield holds("fed vectors are finite", played.fed.isfinite())


def streams(subject: Samples, setting: Setting, rate: float | None) -> Iterator[Finding]:
    """With other token uniforms, whatever has the same token is the same in all else; with other uniforms and noise of
    exploration, rows whose gate stays closed keep their tokens."""
    ours, tokens, exploration = (
        setting.play(subject, setting.draws(COMPARED, *sources)) for sources in ((0, 0), (1, 0), (0, 1))
    )
    same = ours.step.tokens == tokens.step.tokens
    for name in DecodeStep.__dataclass_fields__:
        a, b = getattr(ours.step, name), getattr(tokens.step, name)
        if a is not None and b is not None:
            yield holds(f"{name} does not depend on the token's stream", (a == b)[same])
    yield holds("what is fed does not depend on the token's stream", (ours.fed == tokens.fed)[same])
    closed = torch.ones(COMPARED, dtype=torch.bool)
    for played in (ours, exploration):
        gate = played.draws.explore >= (1.0 if rate is None else rate)
        closed &= gate & ~played.step.explored & (played.step.role == TOKEN)
    yield holds("plain tokens do not depend on exploration", (ours.step.tokens == exploration.step.tokens)[closed])


def engine_gap(strategy: Exploration, setting: Setting) -> Finding:
    """What sampling tells of its own log-probabilities is what log_prob says of the record."""
    draws, logits = setting.draws(COMPARED), setting.logits[setting.situation[:COMPARED]]
    with torch.no_grad():
        start = strategy.start(COMPARED, torch.device("cpu"))
        step, told, _ = strategy.sample_and_log_prob(logits, start, draws, setting.table)
        return near("sample_and_log_prob is log_prob", told, strategy.log_prob(step, logits, setting.table))

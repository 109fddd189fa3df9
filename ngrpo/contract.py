"""The density contract: what a strategy draws is what its log_prob says, and what is not so would be noticed.

`python -m ngrpo.contract [exploration=<name>,<name>] [--config-dir <mine>]` plays 200,000 keyed rows of one decode step,
on a vocabulary of seven tokens at three temperatures, and then mutants of each strategy. It knows no strategy, so that
one's own has the same checks; a subclass of `Law` says what more is known of one. Exit status: 0 where every check holds
and every mutation is noticed, 1 where one does not, 2 for wrong words.
"""

import copy
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from omegaconf import DictConfig, OmegaConf
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from ngrpo import build
from ngrpo.cli import each_strategy
from ngrpo.exploration.base import Exploration, State
from ngrpo.rollout.keys import Draws, row_key
from ngrpo.rollout.records import DIRICHLET, GAUSSIAN, GUMBEL, TOKEN, DecodeStep, Vocabulary

ROWS, COMPARED = 200_000, 20_000  # of a check; on which a mutation has to change something to be one
TEMPERATURES = (0.6, 1.0, 1.3)
RESERVED, STOP, OPENS, ENDS, WORD, V, D = 0, 1, 2, 3, 5, 7, 4
VOCABULARY = Vocabulary(6, (RESERVED, STOP), (STOP,), (OPENS, ENDS), (4,))  # 2 to 5 are ordinary tokens, 6 is padding
LIKELIEST = {"word": WORD, "delimiter": ENDS, "reserved": RESERVED, "stop": STOP}  # of four rows of logits
SPREAD = 3.2  # of a row of logits: every token comes up, even at temperature 0.6
APART = 3  # decode steps between two cells
FEW = 3  # what a count that is no smaller than the vocabulary becomes: a filter of 20 of 7 tokens would filter nothing
ALPHA = 1e-6  # a test whose p-value is below fails; seeds are fixed, so what passes once passes always
ENOUGH = 5.0  # draws expected in a cell of a chi-square test; cells with fewer are counted together
UNSEEN = 20.0  # expected draws of all that never came up, at most: e^-20 is far below ALPHA
FIELDS = tuple(DecodeStep.__dataclass_fields__)
Array = NDArray[Any]
Record = dict[str, Any]  # fields of a DecodeStep, `fed` and `gate` (the uniform of exploration) as arrays, rows first


class Finding(NamedTuple):
    """One check: what was looked at, the p-value of its test or 1 or 0, and by how much it is off."""

    what: str
    p: float
    detail: str

    @property
    def fails(self) -> bool:
        """Whether the contract is broken."""
        return not self.p >= ALPHA  # the form that is true of NaN too


def counts(what: str, observed: ArrayLike, law: ArrayLike) -> Finding:
    """Chi-square test of counts against probabilities that sum to 1; where the law has 0, nothing may come up."""
    seen, p = np.asarray(observed, float).ravel(), np.asarray(law, float).ravel()
    impossible = seen[p <= 0].sum()
    if abs(p.sum() - 1) > 1e-4 or impossible:
        return Finding(what, 0.0, f"probabilities sum to {p.sum():.5f}, {impossible:.0f} draws where none may be")
    order = np.argsort(p[p > 0])
    seen, expected = seen[p > 0][order], (p[p > 0] * seen.sum())[order]
    few = max(int(np.searchsorted(expected.cumsum(), ENOUGH)) + 1, int(np.searchsorted(expected, ENOUGH)))
    seen, expected = (np.array([part[:few].sum(), *part[few:]]) for part in (seen, expected))
    statistic, freedom = float(((seen - expected) ** 2 / expected.clip(1e-300)).sum()), len(seen) - 1
    p_value = float(stats.chi2.sf(statistic, freedom)) if freedom else 1.0
    return Finding(
        what, p_value, f"chi-square {statistic:.1f} with {freedom} degrees of freedom, {seen.sum():.0f} draws"
    )


def pooled(findings: Sequence[Finding]) -> Iterator[Finding]:
    """The tests of one name in several cells as one, by Fisher's method: it sees what is a little off in each of them."""
    for what in dict.fromkeys(finding.what for finding in findings if finding.p < 1):
        p = np.array([finding.p for finding in findings if finding.what == what])
        fisher = -2 * np.log(p.clip(1e-300)).sum()
        yield Finding(f"all cells: {what}", float(stats.chi2.sf(fisher, 2 * len(p))), f"{len(p)} tests")


def near(what: str, ours: Any, theirs: Any = True, tolerance: float = 1e-5) -> Finding:
    """Two arrays that agree to `tolerance`, absolute and relative to the second; or one that is true throughout."""
    a, b = np.broadcast_arrays(np.asarray(ours, float), np.asarray(theirs, float))
    off = np.abs(a - b) - tolerance * np.abs(b)
    wrong = ~(off <= tolerance)
    return Finding(
        what, float(not wrong.any()), f"{wrong.sum()} of {off.size} are off by up to {off.max(initial=0):.3g}"
    )


class Cell(NamedTuple):
    """Rows that see the same logits z (V,) in the same state, at one position of their texts."""

    name: str
    z: Array
    thinking: bool
    position: int


class Setting:
    """B rows. The i-th sees the (i mod 4)-th row of logits; a tenth of them write their answer, the others think, with
    half of the delimiter in their texts."""

    def __init__(self, rows: int = ROWS, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(V, D, generator=generator)
        orders = torch.stack([torch.randperm(V, generator=generator) for _ in LIKELIEST]).double()
        orders[range(len(LIKELIEST)), list(LIKELIEST.values())] = V
        self.logits = (SPREAD / V * orders + 0.1 * torch.rand(orders.shape, generator=generator)).float()  # (4, V)
        place = torch.arange(rows)
        self.cell = place % 4 + 4 * (place // 4 % 10 == 0)
        keys = [place * 2 + row_key("contract", seed, name) // 4 for name in ("ours", "others")]
        self.sources = [Draws(key, self.cell * APART).precompute() for key in keys]

    def draws(self, rows: int, tokens: int = 0, exploration: int = 0) -> Draws:
        """Of the first rows; the numbers choose whose token uniforms and whose exploration they have."""
        drawn = self.sources[exploration][torch.arange(rows)]
        return _streams(drawn.rows, drawn.steps, self.sources[tokens].token[:rows], drawn.explore)

    def play(self, subject: Exploration, draws: Draws) -> Record:
        """What the subject makes of the rows that these are the draws of, float64 where they are floats."""
        cell = draws.steps // APART
        with torch.no_grad():
            state = self._states(subject, (cell >= 4).long())
            step, _ = subject.sample(self.logits[cell % 4], state, draws, self.table)
            made = {name: getattr(step, name) for name in FIELDS}
            made |= {"fed": subject.embed(step, self.table, draws), "gate": draws.explore}
        return {k: v if v is None else (v.double() if v.is_floating_point() else v).numpy() for k, v in made.items()}

    def _states(self, subject: Exploration, answering: Tensor) -> State:
        """What rows remember whose text is the beginning of the delimiter, or all of it and a first word of the answer."""
        thinking = answers = subject.start(1, torch.device("cpu"))
        for place, token in enumerate((OPENS, ENDS, *VOCABULARY.answer_prefix)):
            draws = Draws(torch.tensor([place]), torch.tensor([place]))
            _, answers = subject.sample(60.0 * F.one_hot(torch.tensor([token]), V), answers, draws, self.table)
            thinking = answers if token == OPENS else thinking
        return {name: torch.cat((thinking[name], answers[name]))[answering] for name in answers}

    def cells(self, rows: int) -> Iterator[tuple[Cell, Array]]:
        """Each case, and which of the first rows are one."""
        for number in range(8):
            name = f"{'answer' if number >= 4 else 'thinking'}, {list(LIKELIEST)[number % 4]} likeliest"
            cell = Cell(name, self.logits[number % 4].double().numpy(), number < 4, number * APART)
            yield cell, np.flatnonzero(self.cell[:rows].numpy() == number)


def _streams(rows: Tensor, steps: Tensor, token: Tensor, explore: Tensor) -> Draws:
    """Draws with these uniforms, whose noise is that of `rows`."""
    draws = Draws(rows, steps)
    vars(draws).update(token=token, explore=explore)
    return draws


def rows_of(record: Record, index: Any) -> Record:
    """Some rows of a record."""
    return {name: None if value is None else value[index] for name, value in record.items()}


class Law:
    """What is true of any strategy that keeps its word; where more is known of a class of them, a subclass `claims` it.

    held: name -> number, text or null that the strategy or a part of it holds
    """

    def __init__(self, strategy: Exploration, setting: Setting):
        self.strategy, self.table = strategy, setting.table.double()
        self.held = {name.rpartition(".")[2]: value for name, value in held(strategy)}

    def log_prob(self, seen: Record, z: Array) -> Array:
        """(N,) what the strategy says of a record under the logits z (V,), in float64."""
        step = DecodeStep(**{k: None if seen[k] is None else torch.as_tensor(seen[k]) for k in FIELDS})  # pyright: ignore
        with torch.no_grad():
            logits = torch.as_tensor(z).expand(len(step.tokens), V)
            return self.strategy.log_prob(step, logits, self.table).double().numpy()

    def density(self, cell: Cell, seen: Record) -> Array:
        """(V,) exp(log_prob) of every token, the record otherwise that of the first row."""
        every = {"tokens": np.arange(V), "role": np.full(V, TOKEN), "explored": np.zeros(V, bool)}
        return np.exp(self.log_prob(rows_of(seen, np.zeros(V, int)) | every, cell.z))

    def check(self, cell: Cell, seen: Record, deviates: bool) -> Iterator[Finding]:
        """Findings about the rows of one cell. Tokens come as exp(log_prob) says, where that deviates behind a closed gate
        only; importance weights of a density have mean 1; exploration acts behind open gates, however far they are open."""
        rate = self.held.get("rate", -1.0)  # null: always; -1: no gate
        share = 1.0 if rate is None or rate < 0 < deviates else max(rate, 0.0)
        is_open, explored = seen["gate"] < share, seen["explored"]
        rows = ~is_open if deviates else np.ones_like(explored)
        if rows.any() and (seen["role"][rows] == TOKEN).all():
            yield from drawn(seen["tokens"][rows], self.density(cell, seen), is_open[rows], 0.0 if deviates else share)
        elif rows.any() and np.isin(seen["role"], (GAUSSIAN, GUMBEL, DIRICHLET)).all():
            weights = np.exp(self.log_prob(seen, 0.9 * cell.z) - self.log_prob(seen, cell.z))
            off = (weights.mean() - 1) / (weights.std() + 1e-12) * math.sqrt(len(weights))
            yield Finding("importance weights have mean 1", float(2 * stats.norm.sf(abs(off))), f"{off:.1f} sigma")
        if share and rate != -1:
            yield near("exploration acts behind an open gate", is_open | ~explored)
            tenths = (seen["gate"][explored & is_open] / share * 10).astype(int)
            yield counts("gates behind which exploration acted", np.bincount(tenths, minlength=10), np.full(10, 0.1))
        yield from self.claims(cell, seen)

    def claims(self, cell: Cell, seen: Record) -> Iterator[Finding]:
        """What is known of this class of strategies."""
        return iter(())


def drawn(tokens: Array, density: Array, flags: Array, share: ArrayLike) -> Iterator[Finding]:
    """Tokens (N,) come with probabilities `density` (V,), flagged (N,) in a `share`, a number or (V,), of cases. A filter
    shows in tokens that never come up, without which the probabilities sum to 1."""
    table = np.bincount(2 * tokens + flags, minlength=2 * V).reshape(V, 2)
    p = np.where(table.any(axis=1), density, 0)
    missing = 1 - p.sum()
    yield near("the density of the tokens that come up sums to 1", max(missing - UNSEEN / len(tokens), -missing, 0), 0)
    yield counts("tokens", table.sum(axis=1), p / p.sum())
    yield counts("tokens with exploration", table, np.stack((p * (1 - share), p * share), axis=1) / p.sum())


def examine(strategy: Exploration, setting: Setting, rows: int = ROWS, law: type[Law] = Law) -> Iterator[Finding]:
    """Findings about the first `rows` rows of a strategy or of a mutant."""
    claimed, found, draws = law(strategy, setting), [], setting.draws(rows)
    played, original = setting.play(strategy, draws), vars(strategy).get("_original", strategy)
    dense = bool(
        np.isin(played["role"], (GAUSSIAN, GUMBEL, DIRICHLET)).any()
    )  # its tokens are what they are said to be
    for cell, where in setting.cells(rows):
        deviates = bool(strategy.deviates) and (cell.thinking or not dense)
        try:
            part = list(claimed.check(cell, rows_of(played, where), deviates))
        except (ValueError, IndexError, TypeError) as error:
            part = [Finding("the record can be held against its law", 0.0, " ".join(str(error).split()))]
        found += part
        yield from (finding._replace(what=f"{cell.name}: {finding.what}") for finding in part)
    plain = rows_of(played, ~played["explored"])
    yield from (*pooled(found), near("fed vectors are finite", np.isfinite(played["fed"])))
    yield near("plain rows are fed their token's embedding", plain["fed"], setting.table.numpy()[plain["tokens"]], 0.0)
    yield from streams(strategy, setting, claimed.held.get("rate", 0.0))
    if original is strategy or law is Law:  # of a mutant, only where nothing else is known of what it should record
        for index in torch.arange(rows).flip(0).split(rows * 2 // 3):
            yield from same("in another batch", setting.play(original, draws[index]), rows_of(played, index))


def same(what: str, ours: Record, theirs: Record) -> Iterator[Finding]:
    """Two records of the same rows, and what was fed."""
    for name in (*FIELDS, "fed"):
        a, b = ours[name], theirs[name]
        alike = a is not None and b is not None and a.shape == b.shape
        yield near(f"{name} {what}", a, b) if alike else near(f"{name} {what}", a is b)


def streams(strategy: Exploration, setting: Setting, rate: float | None) -> Iterator[Finding]:
    """With other token uniforms, whatever has the same token is the same in all else; with other uniforms and noise of
    exploration, rows whose gate stays closed keep their tokens; what sampling tells as log_prob is that of its record."""
    sources, start = ((0, 0), (1, 0), (0, 1)), strategy.start(COMPARED, torch.device("cpu"))
    ours, tokens, others = (setting.play(strategy, setting.draws(COMPARED, *source)) for source in sources)
    index = ours["tokens"] == tokens["tokens"]
    yield from same("whatever the token's stream", rows_of(ours, index), rows_of(tokens, index))
    rate = 1.0 if rate is None else rate
    closed = np.all([(p["gate"] >= rate) & ~p["explored"] & (p["role"] == TOKEN) for p in (ours, others)], axis=0)
    yield near("plain tokens do not depend on exploration", (ours["tokens"] == others["tokens"])[closed])
    logits = setting.logits[setting.cell[:COMPARED] % 4]
    with torch.no_grad():
        step, told, _ = strategy.sample_and_log_prob(logits, start, setting.draws(COMPARED), setting.table)
        yield near("sample_and_log_prob is log_prob", told, strategy.log_prob(step, logits, setting.table))


# What is drawn from another stream than its own.
STREAMS: Mapping[str, Callable[[Draws], Draws]] = {
    "tokens by the exploration's uniform": lambda d: _streams(d.rows, d.steps, d.explore, d.explore),
    "exploration by the token's uniform": lambda d: _streams(d.rows, d.steps, d.token, d.token),
    "noise from the token's uniform": lambda d: _streams((d.token * 2**62).long(), d.steps, d.token, d.explore),
}


def mutations(strategy: Exploration, setting: Setting) -> dict[str, Exploration]:
    """Name -> every mutant of a strategy that records or feeds something else. None is listed by hand."""
    second, draws = lambda logits, tokens: logits.topk(2, dim=-1).indices[:, 1], setting.draws(COMPARED)
    mutants = {
        **{name: _mutant(strategy, sampler=sampler) for name, sampler in _numbers(strategy)},
        **{f"stream: {name}": _mutant(strategy, draws=swap) for name, swap in STREAMS.items()},
        "anchor: the two likeliest exchanged": _mutant(strategy, logits=exchanged),
        "anchor: the second likeliest": _mutant(strategy, sampler=_with(strategy, "pick", second)),
        "gate: the state is forgotten": _mutant(
            strategy, state=lambda s: {k: v[:1].expand_as(v) for k, v in s.items()}
        ),
    }
    plain, played = setting.play(strategy, draws), {name: setting.play(m, draws) for name, m in mutants.items()}
    return {name: m for name, m in mutants.items() if any(f.fails for f in same("", played[name], plain))}


def _mutant(strategy: Exploration, sampler: Any = None, **changes: Callable[[Any], Any]) -> Exploration:
    """A strategy that samples as `sampler` does from `changes` of logits, state and draws, and feeds and scores as before."""
    logits, state, draws = (changes.get(name, lambda given: given) for name in ("logits", "state", "draws"))
    mutant, source = copy.copy(strategy), sampler or strategy
    vars(mutant).update(
        _original=strategy,
        sample=lambda z, s, d, table: source.sample(logits(z), state(s), draws(d), table),
        embed=lambda steps, table, d: strategy.embed(steps, table, draws(d)),
    )
    return mutant


def _numbers(strategy: Exploration) -> Iterator[tuple[str, Exploration]]:
    """Every number that a strategy holds, a tenth off; whole ones one off."""
    for name, value in held(strategy):
        if isinstance(value, int | float) and not isinstance(value, bool) and value and math.isfinite(value):
            off = value + 1 if isinstance(value, int) else value * (0.9 if value <= 1 else 1.1)
            yield f"{name}={off:.4g}", _with(strategy, name, off)
    for name, buffer in strategy.named_buffers():
        if buffer.is_floating_point():
            yield f"{name} a tenth larger", _with(strategy, name, buffer * 1.1)


def _with(strategy: Exploration, name: str, value: Any) -> Exploration:
    changed = copy.deepcopy(strategy)
    owner, _, last = name.rpartition(".")
    setattr(attrgetter(owner)(changed) if owner else changed, last, value)
    return changed


def held(owner: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of the numbers, texts and nulls that a strategy or a part of it holds, outer ones last."""
    for name, value in {**vars(owner).get("_modules", {}), **vars(owner)}.items():
        if value is None or isinstance(value, bool | int | float | str):
            yield from [(prefix + name, value)] if name[0] != "_" and name != "training" else []
        elif hasattr(value, "__dict__") and not (name == "vocabulary" or isinstance(value, type | Tensor)):
            yield from held(value, f"{prefix}{name}.") if name[0] != "_" and not inspect.isroutine(value) else []


def exchanged(logits: Tensor) -> Tensor:
    """Logits (B, V) in which the likeliest and the second likeliest have each other's."""
    values, ids = logits.topk(2, dim=-1)
    return logits.scatter(-1, ids.flip(-1), values)


def noticed(mutant: Exploration, setting: Setting, law: type[Law] = Law) -> Finding | None:
    """The first check that a mutant fails, of few rows or else of all; None where it passes for the strategy."""
    found = (finding for rows in (COMPARED, ROWS) for finding in examine(mutant, setting, rows, law))
    return next((finding for finding in found if finding.fails), None)


def built(config: DictConfig, temperature: float, setting: Setting) -> Exploration:
    """The strategy of a configuration at a temperature, ready for the setting."""
    OmegaConf.update(config, "temperature", temperature)
    node = _small(build.plain(config.exploration))
    strategy = build.instantiate(node | ({"temperature": temperature} if "temperature" in node else {}))
    strategy.bind(VOCABULARY, setting.table)
    strategy.prepare(setting.table, 0, setting.table)
    return strategy


def _small(node: Any, name: str = "") -> Any:
    """A strategy's node with every count that is too large for the vocabulary made smaller."""
    if isinstance(node, Mapping):
        return {key: _small(value, key) for key, value in node.items()}
    return FEW if type(node) is int and node >= V and name != "seed" else node


def main(argv: list[str]) -> int:
    """Prints a line for each strategy and temperature; the exit status."""
    configs, problems = each_strategy("diagnose", argv)
    print("".join(f"error: {line}\n" for line in problems), end="", file=sys.stderr)
    torch.set_num_threads(1)  # operations on so few tokens take longer on several
    setting = Setting()
    good = [_holds(name, config, setting) for name, config in configs.items()]
    return 2 if problems else int(not all(good))


def _holds(name: str, config: DictConfig, setting: Setting) -> bool:
    failures = 0
    for temperature in TEMPERATURES:
        findings = list(examine(built(config, temperature, setting), setting))
        failed = [f"{finding.what}: {finding.detail}" for finding in findings if finding.fails]
        least = min(findings, key=lambda finding: finding.p)
        told = f"{len(findings)} checks hold, the least likely with p = {least.p:.2g} ({least.what})"
        told = f"{len(failed)} of {len(findings)} checks fail: {'; '.join(failed[:3])}" if failed else told
        print(f"{name} at temperature {temperature}: {told}", flush=True)
        failures += len(failed)
    mutants = mutations(built(config, 1.0, setting), setting)
    missed = [mutation for mutation, mutant in mutants.items() if noticed(mutant, setting) is None]
    told = f"{len(mutants)} mutations are noticed: {'; '.join(mutants)}" if mutants else "it has no mutation"
    print(f"{name} tampered with: {'not noticed: ' + '; '.join(missed) if missed else told}", flush=True)
    return bool(mutants) and not (failures or missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The density contract: a strategy draws what its log_prob says, and the checks would notice if it did not.

`python -m ngrpo.contract [exploration=<name>,<name>] [--config-dir <mine>]` samples 200,000 rows of one decode step from
each strategy, your own included, on a vocabulary of seven tokens at three temperatures, and then from mutants of it. Exit
status: 0 if all checks hold and mutants of temperature and token stream fail, 1 if not, 2 for a wrong command line.
"""

import copy
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from omegaconf import DictConfig, OmegaConf
from scipy import stats
from torch import Tensor

from ngrpo import composed
from ngrpo.cli import each_strategy
from ngrpo.exploration.base import Exploration, State, settings_of
from ngrpo.rollout.keys import Draws, row_key
from ngrpo.rollout.records import DIRICHLET, GAUSSIAN, GUMBEL, TOKEN, DecodeStep, Vocabulary
from ngrpo.rundir import interrupts

ROWS, COMPARED = 200_000, 20_000  # rows of a check; rows on which a mutation must change something to count
TEMPERATURES = (0.6, 1.0, 1.3)
RESERVED, STOP, OPENS, ENDS, WORD, V, D = 0, 1, 2, 3, 5, 7, 4
VOCABULARY = Vocabulary(6, (RESERVED, STOP), (STOP,), (OPENS, ENDS), (4,))  # 2 to 5 are ordinary tokens, 6 is padding
LIKELIEST = {"word": WORD, "delimiter": ENDS, "reserved": RESERVED, "stop": STOP}  # in each of four rows of logits
SPREAD = 3.2  # of a row of logits, so that every token is drawn, even at temperature 0.6
APART = FEW = 3  # decode steps between two cells; what replaces counts no smaller than the vocabulary
DENSITIES = (GAUSSIAN, GUMBEL, DIRICHLET)
ALPHA = 1e-6  # a test with a smaller p-value fails; seeds are fixed, so what passes once passes always
ENOUGH = 5.0  # expected draws in a cell of a chi-square test; cells with fewer are pooled
UNSEEN = 20.0  # largest expected number of draws of all tokens that were never drawn: e^-20 is far below ALPHA
FIELDS = tuple(DecodeStep.__dataclass_fields__)
Array = NDArray[Any]
Record = dict[str, Any]  # fields of a DecodeStep, `fed`, `masks`, `gate` (exploration's uniform), rows first
Findings = Iterator["Finding"]
Claims = Callable[["Cell", Record], Findings] | None  # further checks of the rows of a cell


class Finding(NamedTuple):
    """One check: what was checked, the p-value of its test (1 or 0 where it is exact), and the deviation."""

    what: str
    p: float
    detail: str

    @property
    def fails(self) -> bool:
        """Whether the contract is broken."""
        return not self.p >= ALPHA  # this form is true of NaN too


def counts(what: str, observed: ArrayLike, law: ArrayLike) -> Finding:
    """Chi-square test of counts against probabilities that sum to 1; outcomes of probability 0 must not occur."""
    draws, p = np.asarray(observed, float).ravel(), np.asarray(law, float).ravel()
    impossible = draws[p <= 0].sum()
    if abs(p.sum() - 1) > 1e-4 or impossible:
        return Finding(what, 0.0, f"probabilities sum to {p.sum():.5f}, {impossible:.0f} draws of probability 0")
    order = np.argsort(p[p > 0])
    draws, expected = draws[p > 0][order], (p[p > 0] * draws.sum())[order]
    few = max(int(np.searchsorted(expected.cumsum(), ENOUGH)) + 1, int(np.searchsorted(expected, ENOUGH)))
    draws, expected = (np.array([part[:few].sum(), *part[few:]]) for part in (draws, expected))
    statistic, freedom = float(((draws - expected) ** 2 / expected.clip(1e-300)).sum()), len(draws) - 1
    p_value = float(stats.chi2.sf(statistic, freedom)) if freedom else 1.0
    return Finding(what, p_value, f"chi-square {statistic:.1f} with {freedom} degrees of freedom")


def pooled(findings: Sequence[Finding]) -> Findings:
    """Tests of the same name in several cells combined by Fisher's method, which sees small deviations in all of them."""
    for what in dict.fromkeys(finding.what for finding in findings if finding.p < 1):
        p = np.array([finding.p for finding in findings if finding.what == what]).clip(1e-300)
        yield Finding(f"all cells: {what}", float(stats.chi2.sf(-2 * np.log(p).sum(), 2 * len(p))), f"{len(p)} tests")


def near(what: str, ours: Any, theirs: Any = True, tolerance: float = 1e-5) -> Finding:
    """Whether two arrays agree to `tolerance`, absolute and relative to the second; or whether one is true everywhere."""
    a, b = np.broadcast_arrays(np.asarray(ours, float), np.asarray(theirs, float))
    off = np.abs(a - b) - tolerance * np.abs(b)
    wrong = ~(off <= tolerance)
    return Finding(what, float(not wrong.any()), f"{wrong.sum()} of {off.size} off by up to {off.max(initial=0):.3g}")


class Cell(NamedTuple):
    """Rows with the same logits z (V,) in the same state, at the same decode position."""

    name: str
    z: Array
    thinking: bool
    position: int


class Setting:
    """B rows. The i-th gets the (i mod 4)-th row of logits; a tenth of the rows write their answer, the others think, with
    half of the delimiter in their texts."""

    def __init__(self, rows: int = ROWS, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(V, D, generator=generator)
        orders = torch.stack([torch.randperm(V, generator=generator) for _ in LIKELIEST]).double()
        orders[range(len(LIKELIEST)), list(LIKELIEST.values())] = V
        self.logits = (SPREAD / V * orders + 0.1 * torch.rand(orders.shape, generator=generator)).float()  # (4, V)
        row = torch.arange(rows)
        self.cell = row % 4 + 4 * (row // 4 % 10 == 0)
        keys = [row * 2 + row_key("contract", seed, name) // 4 for name in ("ours", "others")]
        names = [f"{state}, {name} likeliest" for state in ("thinking", "answer") for name in LIKELIEST]
        self.cells = [Cell(name, self.logits[i % 4].double().numpy(), i < 4, APART * i) for i, name in enumerate(names)]
        self.sources = [Draws(key, self.cell * APART).precompute() for key in keys]

    def draws(self, rows: int, tokens: int = 0, exploration: int = 0) -> Draws:
        """Draws of the first rows; `tokens` and `exploration` (0 or 1) choose the source of each stream."""
        draws = self.sources[exploration][torch.arange(rows)]
        return _streams(draws, draws.rows, self.sources[tokens].token[:rows], draws.explore)

    def play(self, subject: Exploration, draws: Draws) -> Record:
        """What the subject samples and feeds with these draws, floats as float64."""
        cell = draws.steps // APART
        with torch.no_grad():
            state = self._states(subject, (cell >= 4).long())
            step, _ = subject.sample(self.logits[cell % 4], state, draws, self.table)
            record = {name: getattr(step, name) for name in FIELDS}
            record |= {"fed": subject.embed(step, self.table, draws), "gate": draws.explore}
            record |= {"masks": subject.masks(draws.rows, 1, D)}
        return {k: v if v is None else (v.double() if v.is_floating_point() else v).numpy() for k, v in record.items()}

    def _states(self, subject: Exploration, answering: Tensor) -> State:
        """The states of rows with half of the delimiter in their texts, or all of it and the first word of the answer."""
        thinking = answers = subject.start(1, torch.device("cpu"))
        for position, token in enumerate((OPENS, ENDS, *VOCABULARY.answer_prefix)):
            logits, draws = 60.0 * torch.eye(V)[[token]], Draws(*torch.tensor([[position], [position]]))
            _, answers = subject.sample(logits, answers, draws, self.table)
            thinking = answers if token == OPENS else thinking
        return {name: torch.cat((thinking[name], answers[name]))[answering] for name in answers}


def _streams(draws: Draws, keys: Tensor, token: Tensor, explore: Tensor) -> Draws:
    """Draws of the same decode steps with these uniforms and with the noise of `keys`."""
    streams = Draws(keys.long(), draws.steps)
    vars(streams).update(token=token, explore=explore)
    return streams


def rows_of(record: Record, index: Any) -> Record:
    """Some rows of a record."""
    return {name: None if value is None else value[index] for name, value in record.items()}


def log_prob(strategy: Exploration, setting: Setting, seen: Record, z: Array) -> Array:
    """(N,) the strategy's log_prob of a record under the logits z (V,), in float64."""
    step = DecodeStep(**{k: None if seen[k] is None else torch.as_tensor(seen[k]) for k in FIELDS})  # pyright: ignore
    with torch.no_grad():
        logits = torch.as_tensor(z).expand(len(step.tokens), V)
        return strategy.log_prob(step, logits, setting.table.double()).double().numpy()


def cell_findings(
    strategy: Exploration, setting: Setting, cell: Cell, seen: Record, rate: Any, deviates: bool
) -> Findings:
    """Findings about the rows of one cell: tokens are distributed as exp(log_prob) says, only with a closed gate if that
    deviates; importance weights of a density have mean 1; exploration acts only with an open gate, however wide."""
    share = float(deviates) if rate is None else rate
    is_open, explored = seen["gate"] < share, seen["explored"]
    rows = ~is_open if deviates else np.ones_like(explored)
    if rows.any() and (seen["role"][rows] == TOKEN).all():
        tokens = {"tokens": np.arange(V), "role": np.full(V, TOKEN), "explored": np.zeros(V, bool)}
        density = np.exp(log_prob(strategy, setting, rows_of(seen, np.zeros(V, int)) | tokens, cell.z))
        yield from token_findings(seen["tokens"][rows], density, is_open[rows], 0.0 if deviates else share)
    elif rows.any() and np.isin(seen["role"], DENSITIES).all():
        weights = np.exp(np.subtract(*(log_prob(strategy, setting, seen, z) for z in (0.9 * cell.z, cell.z))))
        score = (weights.mean() - 1) / (weights.std() + 1e-12) * len(weights) ** 0.5
        yield Finding("importance weights have mean 1", float(2 * stats.norm.sf(abs(score))), f"{score:.1f} sigma")
    if rate:
        yield near("exploration acts only with an open gate", is_open | ~explored)
        tenths = (seen["gate"][explored & is_open] / rate * 10).astype(int)
        yield counts("gate uniforms where exploration acted", np.bincount(tenths, minlength=10), np.full(10, 0.1))


def token_findings(tokens: Array, density: Array, flags: Array, share: Any) -> Findings:
    """Tokens (N,) have probabilities `density` (V,), and a `share`, a number or (V,), of each is flagged (N,). Tokens that a
    filter cuts are never drawn, and the probabilities of the others sum to 1."""
    table = np.bincount(2 * tokens + flags, minlength=2 * V).reshape(V, 2)
    p = np.where(table.any(axis=1), density, 0)
    yield near("the density of the tokens drawn sums to 1", p.sum(), p.sum().clip(1 - UNSEEN / len(tokens), 1))
    yield counts("tokens", table.sum(axis=1), p / p.sum())
    yield counts("tokens with exploration", table, np.stack((p * (1 - share), p * share), axis=1) / p.sum())


def examine(strategy: Exploration, setting: Setting, rows: int = ROWS, claims: Claims = None) -> Findings:
    """Findings about the first `rows` rows of a strategy or a mutant, those of further claims included."""
    draws, found = setting.draws(rows), []
    record = setting.play(strategy, draws)
    rate = {name.rpartition(".")[2]: value for name, value in settings_of(strategy)}.get(
        "rate"
    )  # of its gate, if it has one
    dense = bool(np.isin(record["role"], DENSITIES).any())  # then tokens outside thinking follow log_prob exactly
    for number, cell in enumerate(setting.cells):
        seen = rows_of(record, setting.cell[:rows].numpy() == number)
        deviates = bool(strategy.deviates) and (cell.thinking or not dense)
        try:
            part = [
                *cell_findings(strategy, setting, cell, seen, rate, deviates),
                *(claims(cell, seen) if claims else ()),
            ]
        except (ValueError, LookupError, TypeError) as error:
            part = [Finding("the record can be checked", 0.0, " ".join(str(error).split()))]
        found += part
        yield from (finding._replace(what=f"{cell.name}: {finding.what}") for finding in part)
    plain = rows_of(record, ~record["explored"])
    yield from (*pooled(found), near("fed vectors are finite", np.isfinite(record["fed"])))
    yield near("plain rows are fed their token's embedding", plain["fed"], setting.table.numpy()[plain["tokens"]], 0.0)
    yield from stream_findings(strategy, setting, rate)
    if not vars(strategy).get("_mutated"):  # of a mutant it would only show how it was made
        for index in torch.arange(COMPARED).flip(0).split(COMPARED * 2 // 3):
            yield from same("in another batch", setting.play(strategy, draws[index]), rows_of(record, index))


def same(what: str, ours: Record, theirs: Record) -> Findings:
    """Whether two records of the same rows, with fed vectors and masks, are the same."""
    for name in (*FIELDS, "fed", "masks"):
        a, b = ours[name], theirs[name]
        comparable = a is not None and b is not None and a.shape == b.shape
        yield near(f"{name} {what}", a, b) if comparable else near(f"{name} {what}", a is b)


def stream_findings(strategy: Exploration, setting: Setting, rate: float | None) -> Findings:
    """With other token uniforms, rows whose token is the same are the same in everything else; with other uniforms and noise
    of exploration, rows whose gate stays closed keep their tokens; sample_and_log_prob agrees with log_prob."""
    sources, start = ((0, 0), (1, 0), (0, 1)), strategy.start(COMPARED, torch.device("cpu"))
    ours, tokens, others = (setting.play(strategy, setting.draws(COMPARED, *source)) for source in sources)
    index = ours["tokens"] == tokens["tokens"]
    yield from same("whatever the token's stream", rows_of(ours, index), rows_of(tokens, index))
    closed = [~p["explored"] & (p["role"] == TOKEN) & (p["gate"] >= (rate or 0.0)) for p in (ours, others)]
    yield near("plain tokens do not depend on exploration", (ours["tokens"] == others["tokens"])[closed[0] & closed[1]])
    logits = setting.logits[setting.cell[:COMPARED] % 4]
    step, found, _ = strategy.sample_and_log_prob(logits, start, setting.draws(COMPARED), setting.table)
    yield near("log_prob while sampling", found.detach(), strategy.log_prob(step, logits, setting.table).detach())


def mutations(strategy: Exploration, setting: Setting) -> dict[str, Exploration]:
    """Name -> every mutant of a strategy that records or feeds something else."""
    changes: dict[str, dict[str, Any]] = {
        "stream: tokens by the exploration's uniform": {"draws": lambda d: _streams(d, d.rows, d.explore, d.explore)},
        "stream: exploration by the token's uniform": {"draws": lambda d: _streams(d, d.rows, d.token, d.token)},
        "stream: noise from the token's uniform": {"draws": lambda d: _streams(d, d.token * 2**62, d.token, d.explore)},
        "anchor: the two likeliest exchanged": {"logits": lambda z: z.scatter(-1, z.topk(2)[1].flip(-1), z.topk(2)[0])},
        "gate: the state is forgotten": {"state": lambda s: {k: v[-1:].expand_as(v) for k, v in s.items()}},
        **{name: {"sampler": sampler} for name, sampler in _numbers(strategy)},
    }
    mutants, draws = {name: mutant(strategy, **change) for name, change in changes.items()}, setting.draws(COMPARED)
    plain = setting.play(strategy, draws)
    return {name: m for name, m in mutants.items() if any(f.fails for f in same("", setting.play(m, draws), plain))}


def mutant(strategy: Exploration, sampler: Any = None, **changes: Callable[[Any], Any]) -> Exploration:
    """A strategy that samples as `sampler` does, from changed logits, state and draws, but feeds and scores as before."""
    logits, state, draws = (changes.get(name, lambda given: given) for name in ("logits", "state", "draws"))
    mutant, source = copy.copy(strategy), sampler or strategy
    vars(mutant).update(_mutated=True, embed=lambda steps, table, d: strategy.embed(steps, table, draws(d)))
    vars(mutant).update(sample=lambda z, s, d, table: source.sample(logits(z), state(s), draws(d), table))
    vars(mutant).update(masks=source.masks)
    return mutant


def _numbers(strategy: Exploration) -> Iterator[tuple[str, Exploration]]:
    """Copies of a strategy with one number each changed by a tenth, integers by one, and tables of numbers a tenth larger."""
    for name, value in (*settings_of(strategy), *strategy.named_buffers()):
        is_number, is_table = type(value) in (int, float) and 0 < abs(value) < np.inf, isinstance(value, Tensor)
        if is_number or (is_table and value.is_floating_point()):
            other = value + 1 if type(value) is int else value * (1.1 if is_table or value > 1 else 0.9)
            changed, (owner, _, last) = copy.deepcopy(strategy), name.rpartition(".")
            setattr(attrgetter(owner)(changed) if owner else changed, last, other)
            yield f"{name} a tenth larger" if is_table else f"{name}={other:.4g}", changed


def noticed(mutant: Exploration, setting: Setting, claims: Claims = None) -> bool:
    """Whether a mutant fails a check, on few rows or else on all."""
    return any(finding.fails for rows in (COMPARED, ROWS) for finding in examine(mutant, setting, rows, claims))


def built(config: DictConfig, temperature: float, setting: Setting) -> Exploration:
    """The strategy of a configuration at a temperature, bound to the setting."""
    OmegaConf.update(config, "temperature", temperature)
    node = json.loads(json.dumps(composed.plain(config.exploration)), parse_int=lambda n: int(n) if int(n) < V else FEW)
    strategy = composed.instantiate(node | ({"temperature": temperature} if "temperature" in node else {}))
    strategy.bind(VOCABULARY, setting.table)
    strategy.prepare(setting.table, 0, setting.table)
    return strategy


def main(argv: list[str]) -> int:
    """Prints a line for each strategy and temperature, and one for its mutants; returns the exit status."""
    configs, problems = each_strategy(argv)
    print("".join(f"error: {line}\n" for line in problems), end="", file=sys.stderr)
    torch.set_num_threads(1)  # operations on so few tokens are slower with several
    setting, good = Setting(), not problems
    for name, config in configs.items():
        for temperature in TEMPERATURES:
            findings = list(examine(built(config, temperature, setting), setting))
            failed = [f"{finding.what}: {finding.detail}" for finding in findings if finding.fails]
            outcome = f"checks fail: {'; '.join(failed[:3])}" if failed else "checks hold"
            print(f"{name} at temperature {temperature}: {len(failed) or len(findings)} {outcome}", flush=True)
            good &= not failed
        mutants = mutations(built(config, 1.0, setting), setting)
        missed = [mutation for mutation, changed in mutants.items() if not noticed(changed, setting)]
        outcome = f"{len(mutants) - len(missed)} of {len(mutants)} mutations are noticed from draws alone"
        outcome += f"; only a law of its own would tell {', '.join(missed)}" if missed else ""
        print(f"{name} tampered with: {outcome if mutants else 'it has no mutation'}", flush=True)
        good &= bool(mutants) and not any(mutation.startswith(("temperature", "stream: tokens")) for mutation in missed)
    return 2 if problems else int(not good)


if __name__ == "__main__":
    interrupts.begin()
    sys.exit(main(sys.argv[1:]))

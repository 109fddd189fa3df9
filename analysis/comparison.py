"""Every number in a report: estimates, tests against the baseline, paired checkpoints, noise, and cost."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from analysis.bands import Curve, every_k, paired_curves
from analysis.declared import Declared, primary_metrics
from analysis.fairness import SEEDS, Fairness, judge
from analysis.intervals import two_level
from analysis.load import UNTRAINED, LoadError, Study
from analysis.power import detectable, seeds_needed
from analysis.rates import Rates, trajectory
from analysis.statistics import equivalence, false_discovery, holm, paired, welch

ALPHA = 0.05
SCOPES = ("these checkpoints", "training runs")  # what the band of a curve generalizes to
SHOWN_K = 8  # besides k = n
MORE_PROBLEMS = (1, 4)  # times the problems at hand, for which seeds are counted
Match = tuple[str, str, str]  # an arm, what it is compared with, and the family of tests: primary or control


@dataclass(frozen=True)
class PairedCurve:
    """The pass@k curve of an arm minus that of another on a benchmark; `scope`: one of SCOPES."""

    arm: str
    against: str
    benchmark: str
    scope: str
    curve: Curve


@dataclass(frozen=True)
class Comparison:
    """The frames of a report, all figures in percent.

    Attributes:
        declared: the comparison as it was declared; primary: its (benchmark, metric), those by default where it names none.
        metrics: benchmark -> names of its estimates, `mean@n` first.
        estimates: arm, benchmark, metric, value, low, high (other problems and seeds), sd over seeds, seeds,
            problems, n.
        boot_best: the same for verl's best@k, which never stands beside pass@k.
        tests: arm against baseline, control or random reward, per benchmark and metric: family (primary, control or
            exploratory), gap, low, high, df, p (Welch on seed means), adjusted (Holm within the primary rows and within
            those of controls, Benjamini-Hochberg over the exploratory ones), two_low, two_high, seeds, problems, words;
            of primary rows the detectable difference at the level of Holm's first step, and p of equivalence where
            a margin was declared, Holm's too. seeds and seeds_against: of the two.
        pairs: the same pairs problem by problem: these checkpoints only.
        curves: paired pass@k curves with bands for all k and all curves of one scope at once.
        noise: two seeds of one arm, compared as papers compare two methods: gap and p over problems.
        costs: tokens and seconds of training, and the gain over the untrained model for each.
        needed: seeds that would find the declared difference: arm, against, benchmark, metric, problems, seeds.
        trajectory: every evaluation of a run with what training had cost by then; see `rates.trajectory`.
        notes: what was done to the problems, a sentence each.
    """

    baseline: str
    fairness: Fairness
    declared: Declared
    primary: list[tuple[str, str]]
    metrics: dict[str, list[str]]
    estimates: pd.DataFrame
    boot_best: pd.DataFrame
    tests: pd.DataFrame
    pairs: pd.DataFrame
    curves: list[PairedCurve]
    noise: pd.DataFrame
    costs: pd.DataFrame
    needed: pd.DataFrame
    rates: Rates
    trajectory: pd.DataFrame
    notes: list[str] = field(default_factory=list)


def compare(
    study: Study, baseline: str, ks: Sequence[int] | None = None, declared: Declared | None = None
) -> Comparison:
    """Everything that a report says about a study.

    Args:
        baseline: the arm that the others are compared with.
        ks: of the pass@k columns; 8 and the number of samples unless given.
        declared: the comparison as it was declared; one metric of each in-distribution benchmark unless given.
    Raises:
        LoadError: no such arm or primary metric, k beyond the samples, or arms with unequal problems or samples.
    """
    if baseline not in study.arms:
        raise LoadError(f"baseline={baseline}: there is no such arm; there are {', '.join(study.arms)}")
    rates, fairness, declared = Rates(study), judge(study, baseline), declared or Declared()
    primary = primary_metrics(declared, rates.n)
    metrics = {b: _metrics(b, rates.n[b], ks, [m for name, m in primary if name == b]) for b in study.benchmarks}
    boot = {
        b: [m.replace("pass@", "boot_best@") for m in names if m.startswith("pass")] for b, names in metrics.items()
    }
    matches = _matches(fairness, baseline)
    tests = _tests(rates, metrics, matches, primary, declared.margin)
    return Comparison(
        baseline,
        fairness,
        declared,
        primary,
        metrics,
        _estimates(rates, study.arms, metrics),
        _estimates(rates, study.arms, boot),
        tests,
        _pairs(rates, metrics, matches),
        _curves(rates, matches),
        _noise(rates, metrics, [baseline, *fairness.ranked]),
        _costs(study, rates, metrics),
        _needed(rates, tests, declared.detect),
        rates,
        trajectory(study, rates.problems),
        _notes(rates, matches, primary),
    )


def _notes(rates: Rates, matches: Sequence[Match], primary: Sequence[tuple[str, str]]) -> list[str]:
    """Declared comparisons that cannot be made, and benchmarks that hold a problem more than once."""
    missing = [
        f"{arm} cannot be compared with {other} on {benchmark}, which was declared: one of them was not evaluated there"
        for benchmark in dict.fromkeys(benchmark for benchmark, _ in primary)
        for arm, other, _ in matches
        if not rates.has(benchmark, arm, other)
    ]
    copied = [
        f"{benchmark}: {copies} of {len(rates.problems[benchmark])} problems have the text of another one; problems of one "
        "text count once, as their mean"
        for benchmark, copies in rates.copies.items()
        if copies
    ]
    return missing + copied


def _metrics(benchmark: str, n: int, ks: Sequence[int] | None, primary: Sequence[str]) -> list[str]:
    wrong = [k for k in ks or () if not 1 <= k <= n]
    if wrong:
        raise LoadError(f"pass_k={wrong[0]}: {benchmark} has n={n} samples per problem, so k must lie in 1..{n}")
    columns = list(ks) if ks else sorted({min(SHOWN_K, n), n} - {1})
    return list(dict.fromkeys([f"mean@{n}", *(f"pass@{k}" for k in columns), *primary]))


def _estimates(rates: Rates, arms: Sequence[str], metrics: dict[str, list[str]]) -> pd.DataFrame:
    rows = []
    for benchmark, names in metrics.items():
        for arm in rates.arms(benchmark, arms):
            for metric in names:
                values = rates.values(benchmark, arm, metric)
                low, high = two_level(None, values, top=100)
                means = values.mean(axis=1)
                sd = means.std(ddof=1) if len(means) > 1 else np.nan
                row = {"arm": arm, "benchmark": benchmark, "metric": metric, "value": means.mean(), "low": low}
                sizes = {"seeds": len(means), "problems": values.shape[1], "n": rates.n[benchmark]}
                rows.append({**row, "high": high, "sd": sd, **sizes})
    return pd.DataFrame(rows)


def _matches(fairness: Fairness, baseline: str) -> list[Match]:
    """The baseline for each ranked arm, its controls, and random rewards."""
    controls = [(arm, other) for arm, others in fairness.controls.items() for other in others if other != baseline]
    controls += [(arm, other) for other in fairness.random_rewards for arm in (baseline, *fairness.ranked)]
    return [(arm, baseline, "primary") for arm in fairness.ranked] + [(*pair, "control") for pair in controls]


TESTED = ("arm", "against", "benchmark", "metric", "family", "gap", "low", "high", "df", "p", "two_low", "two_high", "seeds",
          "seeds_against", "problems", "detectable", "equivalence")  # fmt: skip


def _tests(
    rates: Rates,
    metrics: dict[str, list[str]],
    matches: Sequence[Match],
    primary: Sequence[tuple[str, str]],
    margin: float | None,
) -> pd.DataFrame:
    rows = []
    for arm, other, why in matches:
        for benchmark, names in metrics.items():
            for metric in names if rates.has(benchmark, arm, other) else ():
                family = why if (benchmark, metric) in primary else "exploratory"
                rows.append({**_test(rates, arm, other, benchmark, metric), "family": family})
    frame = pd.DataFrame(rows, columns=[*TESTED])
    frame["adjusted"] = np.nan
    for family, correct in (("primary", holm), ("control", holm), ("exploratory", false_discovery)):
        part = frame["family"] == family
        frame.loc[part, "adjusted"] = correct(frame.loc[part, "p"].to_list())
    declared = frame["family"] == "primary"
    for at in frame.index[declared]:
        new, old = (rates.values(frame.at[at, "benchmark"], frame.at[at, side], frame.at[at, "metric"]).mean(axis=1)
                    for side in ("arm", "against"))  # fmt: skip
        frame.at[at, "detectable"] = detectable(old, new, alpha=ALPHA / declared.sum())
        if margin is not None:
            frame.at[at, "equivalence"] = equivalence(old, new, margin)
    frame.loc[declared, "equivalence"] = holm(frame.loc[declared, "equivalence"].to_list())
    frame["words"] = [_words(row, margin) for row in frame.itertuples()]
    return frame


def _test(rates: Rates, arm: str, other: str, benchmark: str, metric: str) -> dict[str, object]:
    new, old = (rates.values(benchmark, name, metric) for name in (arm, other))
    low, high = two_level(old, new, top=100) if min(len(old), len(new)) > 1 else (np.nan, np.nan)
    row = {"arm": arm, "against": other, "benchmark": benchmark, "metric": metric, "two_low": low, "two_high": high}
    row |= vars(welch(old.mean(axis=1), new.mean(axis=1)))
    sizes = {"seeds": len(new), "seeds_against": len(old), "problems": new.shape[1]}
    return {**row, **sizes, "detectable": np.nan, "equivalence": np.nan}


def _words(row: Any, margin: float | None) -> str:
    """The verdict on one row: what the data show, or why they cannot show anything."""
    if min(row.seeds, row.seeds_against) < 2:
        return f"cannot be tested: 1 seed, {SEEDS} needed"
    if np.isnan(row.p) or np.isnan(row.low):
        return "cannot be tested: seeds do not differ"
    if row.adjusted < ALPHA:
        return "better" if row.gap > 0 else "worse"
    if row.equivalence < ALPHA:
        return f"equivalent within {margin:g}"
    return "no difference shown"


def _pairs(rates: Rates, metrics: dict[str, list[str]], matches: Sequence[Match]) -> pd.DataFrame:
    rows = []
    for arm, other, _ in matches:
        for benchmark, names in metrics.items():
            if rates.has(benchmark, arm, other):
                new, old = (rates.values(benchmark, name, names[0]) for name in (arm, other))
                rows.append({"arm": arm, "against": other, "benchmark": benchmark, **vars(paired(old, new, top=100))})
    return pd.DataFrame(rows)


def _curves(rates: Rates, matches: Sequence[Match]) -> list[PairedCurve]:
    """Bands for all k and all of these curves at once (Bonferroni over the curves)."""
    found = []
    pairs = [(arm, other, benchmark) for arm, other, _ in matches for benchmark in rates.n
             if rates.has(benchmark, arm, other) and rates.size(benchmark) > 1]  # fmt: skip
    for arm, other, benchmark in pairs:
        ks, level = every_k(rates.n[benchmark]), 1 - ALPHA / len(pairs)
        old, new = (rates.curves(benchmark, name, ks) for name in (other, arm))
        for scope in SCOPES if min(len(old), len(new)) >= SEEDS else SCOPES[:1]:
            curve = paired_curves(ks, old, new, training_runs=scope == SCOPES[1], level=level)
            found.append(PairedCurve(arm, other, benchmark, scope, curve))
    return found


def _noise(rates: Rates, metrics: dict[str, list[str]], arms: Sequence[str]) -> pd.DataFrame:
    """The A/A check: two seeds of the same method, tested over problems as if they were two methods."""
    rows = []
    for benchmark, names in metrics.items():
        for arm in rates.arms(benchmark, arms):
            for one, other in combinations(rates.values(benchmark, arm, names[0]), 2):
                test = paired(one, other, draws=999, top=100)
                rows.append({"arm": arm, "benchmark": benchmark, "gap": test.gap, "p": test.p})
    return pd.DataFrame(rows, columns=["arm", "benchmark", "gap", "p"])


def _costs(study: Study, rates: Rates, metrics: dict[str, list[str]]) -> pd.DataFrame:
    rows = []
    for arm in study.arms:
        runs = study.runs[study.runs["arm"] == arm]
        if arm == UNTRAINED or runs["tokens"].isna().all():
            continue
        tokens, seconds = runs["tokens"].mean(), runs["seconds"].mean()
        for benchmark, names in metrics.items():
            if not rates.has(benchmark, arm, UNTRAINED):
                continue
            new, old = (rates.values(benchmark, name, names[0]) for name in (arm, UNTRAINED))
            gain = new.mean() - old.mean()
            answers = study.counts[(study.counts["arm"] == arm) & (study.counts["benchmark"] == benchmark)]
            row = {"arm": arm, "benchmark": benchmark, "gain": gain, "tokens": tokens, "seconds": seconds}
            row |= {
                "tokens_per_second": tokens / seconds,
                "answer_tokens": answers["tokens"].sum() / answers["n"].sum(),
            }
            rows.append({**row, "per_million_tokens": 1e6 * gain / tokens, "per_hour": 3600 * gain / seconds})
    return pd.DataFrame(rows)


def _needed(rates: Rates, tests: pd.DataFrame, detect: float | None) -> pd.DataFrame:
    """Seeds of each arm that would find the declared difference in the primary metrics, at the level that is used."""
    if detect is None:
        return pd.DataFrame()
    rows, declared = [], tests[tests["family"] == "primary"]
    for row in declared.itertuples():
        new, old = (rates.values(row.benchmark, arm, row.metric) for arm in (row.arm, row.against))
        now = min(row.seeds, row.seeds_against)
        for times in MORE_PROBLEMS if now > 1 else MORE_PROBLEMS[:1]:
            seeds = seeds_needed(detect, old, new, ALPHA / len(declared), times)
            rows.append({"arm": row.arm, "against": row.against, "benchmark": row.benchmark, "metric": row.metric,
                         "problems": times * row.problems, "seeds": seeds, "now": now})  # fmt: skip
    return pd.DataFrame(rows)

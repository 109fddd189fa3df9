"""Every number of a report: estimates, tests against the baseline, what pairs of checkpoints show, noise, and cost.

It reads a `Study` and makes frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from analysis.fairness import Fairness, judge
from analysis.intervals import Array, two_level
from analysis.load import UNTRAINED, LoadError, Study
from analysis.power import detectable
from analysis.statistics import false_discovery, paired, solved_by_one_only, welch
from ngrpo.evaluation import passk

ALPHA = 0.05
SHOWN_K = 8  # besides k = n


@dataclass(frozen=True)
class Comparison:
    """The frames of a report, all figures in percent.

    Attributes:
        metrics: benchmark -> names of its estimates, `mean@n` first.
        estimates: arm, benchmark, metric, value, low, high (other problems and seeds), sd over seeds, seeds,
            problems, n.
        boot_best: the same for verl's best@k, which never stands beside pass@k.
        tests: arm against baseline or control, per benchmark and metric: gap, low, high, df, p (Welch on seed means),
            adjusted (Benjamini-Hochberg over all rows), two_low, two_high, detectable, words.
        pairs: the same pairs problem by problem: these checkpoints only.
        noise: two seeds of one arm, compared as papers compare two methods: gap and p over problems.
        costs: tokens and seconds of training, and the gain over the untrained model for each.
        verdict: sentences, the first of which says who wins or why nobody does.
    """

    baseline: str
    fairness: Fairness
    metrics: dict[str, list[str]]
    estimates: pd.DataFrame
    boot_best: pd.DataFrame
    tests: pd.DataFrame
    pairs: pd.DataFrame
    noise: pd.DataFrame
    costs: pd.DataFrame
    verdict: list[str]


class Rates:
    """Values of estimates per training seed and problem, aligned over the arms of a study."""

    def __init__(self, study: Study):
        self.tables: dict[tuple[str, str], pd.DataFrame] = {}
        self.n: dict[str, int] = {}
        self.problems: dict[str, pd.Index] = {}
        for (benchmark, arm), part in study.counts.groupby(["benchmark", "arm"], sort=False):
            wide = part.pivot(index="seed", columns="problem_id", values="c")
            place = part["path"].iloc[-1]
            if wide.isna().to_numpy().any():
                seed = wide.index[wide.isna().any(axis=1)][0]
                place = part[part["seed"] == seed]["path"].iloc[0]
                raise LoadError(f"{place}: {arm}, seed {seed}: lacks problems of {benchmark} that other seeds have")
            known = self.problems.setdefault(str(benchmark), wide.columns)
            if set(known) != set(wide.columns):
                odd = sorted(set(known) ^ set(wide.columns))[0]
                raise LoadError(f"{place}: {arm}: {benchmark} has other problems than the first arm has, {odd} for one")
            n = int(part["n"].iloc[0])
            if self.n.setdefault(str(benchmark), n) != n:
                known_n = self.n[benchmark]
                raise LoadError(f"{place}: {arm}: {benchmark} has {n} samples per problem, other arms have {known_n}")
            self.tables[str(benchmark), str(arm)] = wide[known]

    def __call__(self, benchmark: str, arm: str, metric: str) -> Array | None:
        """(S, P) in percent, None where the arm lacks the benchmark."""
        table = self.tables.get((benchmark, arm))
        if table is None:
            return None
        correct, n = table.to_numpy(), self.n[benchmark]
        name, _, k = metric.partition("@")
        if name == "mean":
            return 100 * correct / n
        return 100 * (passk.pass_at_k if name == "pass" else passk.boot_best_at_k)(n, correct, int(k))


def compare(study: Study, baseline: str, ks: Sequence[int] | None = None) -> Comparison:
    """All that a report says of a study.

    Args:
        baseline: the arm that the others are compared with.
        ks: of the pass@k columns; 8 and the number of samples unless given.
    Raises:
        LoadError: no such arm, k beyond the samples, or arms with unequal problems or samples.
    """
    if baseline not in study.arms:
        raise LoadError(f"baseline={baseline}: there is no such arm; there are {', '.join(study.arms)}")
    rates, fairness = Rates(study), judge(study, baseline)
    metrics = {benchmark: _metrics(benchmark, rates.n[benchmark], ks) for benchmark in study.benchmarks}
    tests = _tests(rates, metrics, fairness, baseline)
    estimates = _estimates(rates, study.arms, metrics)
    boot = {
        b: [m.replace("pass@", "boot_best@") for m in names if m.startswith("pass")] for b, names in metrics.items()
    }
    return Comparison(
        baseline,
        fairness,
        metrics,
        estimates,
        _estimates(rates, study.arms, boot),
        tests,
        _pairs(rates, metrics, fairness, baseline),
        _noise(rates, metrics, [baseline, *fairness.ranked]),
        _costs(study, rates, metrics),
        _verdict(tests, fairness, baseline),
    )


def _metrics(benchmark: str, n: int, ks: Sequence[int] | None) -> list[str]:
    wrong = [k for k in ks or () if not 1 <= k <= n]
    if wrong:
        raise LoadError(f"pass_k={wrong[0]}: {benchmark} has n={n} samples per problem, so k must lie in 1..{n}")
    shown = list(ks) if ks else sorted({min(SHOWN_K, n), n} - {1})
    return [f"mean@{n}", *(f"pass@{k}" for k in shown)]


def _estimates(rates: Rates, arms: Sequence[str], metrics: dict[str, list[str]]) -> pd.DataFrame:
    rows = []
    for benchmark, names in metrics.items():
        for arm in arms:
            for metric in names:
                values = rates(benchmark, arm, metric)
                if values is None:
                    continue
                low, high = two_level(None, values, top=100)
                means = values.mean(axis=1)
                sd = means.std(ddof=1) if len(means) > 1 else np.nan
                row = {"arm": arm, "benchmark": benchmark, "metric": metric, "value": means.mean(), "low": low}
                sizes = {"seeds": len(means), "problems": values.shape[1], "n": rates.n[benchmark]}
                rows.append({**row, "high": high, "sd": sd, **sizes})
    return pd.DataFrame(rows)


def _matches(fairness: Fairness, baseline: str) -> list[tuple[str, str]]:
    """(arm, what it is compared with): the baseline for each ranked arm, and its control where it has one."""
    against = [(arm, baseline) for arm in fairness.ranked]
    return against + [pair for pair in fairness.controls.items() if pair[1] != baseline]


def _tests(rates: Rates, metrics: dict[str, list[str]], fairness: Fairness, baseline: str) -> pd.DataFrame:
    rows = []
    for arm, other in _matches(fairness, baseline):
        for benchmark, names in metrics.items():
            for metric in names:
                new, old = rates(benchmark, arm, metric), rates(benchmark, other, metric)
                if new is None or old is None:
                    continue
                test = welch(old.mean(axis=1), new.mean(axis=1))
                low, high = two_level(old, new, top=100) if min(len(old), len(new)) > 1 else (np.nan, np.nan)
                row = {"arm": arm, "against": other, "benchmark": benchmark, "metric": metric, "gap": test.value}
                row |= {"low": test.low, "high": test.high, "df": test.df, "p": test.p}
                row |= {"two_low": low, "two_high": high}
                rows.append({**row, "detectable": detectable(old.mean(axis=1), new.mean(axis=1))})
    columns = [
        "arm",
        "against",
        "benchmark",
        "metric",
        "gap",
        "low",
        "high",
        "df",
        "p",
        "two_low",
        "two_high",
        "detectable",
    ]
    frame = pd.DataFrame(rows, columns=columns)
    frame["adjusted"] = false_discovery(frame["p"].to_list())
    shown = frame["adjusted"] < ALPHA
    words = np.where(frame["gap"] > 0, "better", "worse")
    frame["words"] = np.where(shown, words, "no difference shown")
    return frame


def _pairs(rates: Rates, metrics: dict[str, list[str]], fairness: Fairness, baseline: str) -> pd.DataFrame:
    rows = []
    for arm, other in _matches(fairness, baseline):
        for benchmark, names in metrics.items():
            new, old = rates(benchmark, arm, names[0]), rates(benchmark, other, names[0])
            if new is None or old is None:
                continue
            found = paired(old, new, top=100)
            row = {"arm": arm, "against": other, "benchmark": benchmark, "gap": found.difference.value}
            row |= {"low": found.difference.low, "high": found.difference.high, "p": found.difference.p}
            row |= {"wins": found.wins, "ties": found.ties, "losses": found.losses}
            row |= {"both": found.both, "only_arm": found.only_second, "only_other": found.only_first}
            row |= {"neither": found.neither, "p_only": solved_by_one_only(found.only_first, found.only_second)}
            rows.append(row)
    return pd.DataFrame(rows)


def _noise(rates: Rates, metrics: dict[str, list[str]], arms: Sequence[str]) -> pd.DataFrame:
    """The A/A check: two seeds of the same method, tested over problems as if they were two methods."""
    rows = []
    for benchmark, names in metrics.items():
        for arm in arms:
            values = rates(benchmark, arm, names[0])
            for i, j in combinations(range(0 if values is None else len(values)), 2):
                assert values is not None
                test = paired(values[i : i + 1], values[j : j + 1], draws=999, top=100).difference
                rows.append({"arm": arm, "benchmark": benchmark, "gap": test.value, "p": test.p})
    return pd.DataFrame(rows, columns=["arm", "benchmark", "gap", "p"])


def _costs(study: Study, rates: Rates, metrics: dict[str, list[str]]) -> pd.DataFrame:
    rows = []
    for arm in study.arms:
        runs = study.runs[study.runs["arm"] == arm]
        if arm == UNTRAINED or runs["tokens"].isna().all():
            continue
        tokens, seconds = runs["tokens"].mean(), runs["seconds"].mean()
        for benchmark, names in metrics.items():
            new, old = rates(benchmark, arm, names[0]), rates(benchmark, UNTRAINED, names[0])
            if new is None or old is None:
                continue
            gain = new.mean() - old.mean()
            row = {"arm": arm, "benchmark": benchmark, "gain": gain, "tokens": tokens, "seconds": seconds}
            answers = study.counts[(study.counts["arm"] == arm) & (study.counts["benchmark"] == benchmark)]
            row |= {
                "tokens_per_second": tokens / seconds,
                "answer_tokens": answers["tokens"].sum() / answers["n"].sum(),
            }
            rows.append({**row, "per_million_tokens": 1e6 * gain / tokens, "per_hour": 3600 * gain / seconds})
    return pd.DataFrame(rows)


def _verdict(tests: pd.DataFrame, fairness: Fairness, baseline: str) -> list[str]:
    if fairness.missing:
        return ["No winner is named, because this comparison is not complete.", *fairness.missing]
    lines = []
    for arm in fairness.ranked:
        own = tests[(tests["arm"] == arm) & (tests["against"] == baseline)]
        control = fairness.controls.get(arm)
        lines.append(_sentence(arm, baseline, own))
        if control and control != baseline:
            lines.append(
                _sentence(arm, control, tests[(tests["arm"] == arm) & (tests["against"] == control)], "its control ")
            )
    better = [arm for arm in fairness.ranked if _beats(tests, arm, baseline, fairness.controls.get(arm))]
    head = f"Better than {baseline}: {', '.join(better)}." if better else f"No strategy is shown to beat {baseline}."
    return [head, *lines]


def _beats(tests: pd.DataFrame, arm: str, baseline: str, control: str | None) -> bool:
    """Better somewhere and worse nowhere, against the baseline and against its control."""
    for other in {baseline, control or baseline}:
        words = set(tests[(tests["arm"] == arm) & (tests["against"] == other)]["words"])
        if "better" not in words or "worse" in words:
            return False
    return True


def _sentence(arm: str, other: str, rows: pd.DataFrame, kind: str = "") -> str:
    if rows.empty:
        return f"{arm} against {kind}{other}: nothing to compare, for they share no benchmark."
    shown = rows[rows["words"] != "no difference shown"]
    if shown.empty:
        means = rows[rows["metric"].str.startswith("mean@")]["detectable"]
        size = f" (in mean@n, {means.min():.1f} to {means.max():.1f} points could have been found)" * bool(
            means.notna().any()
        )
        return f"{arm} against {kind}{other}: no difference shown{size}."
    parts = [f"{r.gap:+.1f} {r.metric} on {r.benchmark}" for r in shown.itertuples()]
    rest = len(rows) - len(shown)
    more = f"; no difference shown in {rest} of {len(rows)} comparisons" if rest else ""
    return f"{arm} against {kind}{other}: {', '.join(parts)}{more}."

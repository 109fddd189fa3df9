"""A comparison in sentences: the declared comparison first, then what is missing, then what is exploratory."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.comparison import SCOPES, Comparison
from analysis.statistics import p_text

FEW_SEEDS = 5  # below it, their spread is itself uncertain by half
SHOWN = 10  # rows of the declared comparison in sentences; a table has them all


def verdict(comparison: Comparison) -> list[str]:
    """Sentences, the first of which says who wins or why nobody does."""
    fairness, tests = comparison.fairness, comparison.tests
    complete = not fairness.missing
    head = _winners(comparison) if complete else "No winner is named, because this comparison is not complete."
    rows = _declared(tests)
    lines = [headline(row, len(tests[tests["family"] == row.family]), fairness.controls) for row in rows[:SHOWN]]
    if len(rows) > SHOWN:
        lines.append(f"{len(rows) - SHOWN} more declared comparisons stand in the table of differences.")
    return [head, *lines, *_needed(comparison), *fairness.missing, *_exploratory(comparison), *_of_curves(comparison),
            *comparison.notes]  # fmt: skip


def headline(row: Any, family: int, controls: Mapping[str, Sequence[str]]) -> str:
    """One row of the declared comparison: difference, interval, sizes, and what could have been found."""
    role = "" if row.against.endswith(" rewards") else "random rewards under "
    role = "its control " if row.against in controls.get(row.arm, ()) else role
    what = f"{row.arm} minus {role * (row.family == 'control')}{row.against} on {row.benchmark} {row.metric}"
    each = row.seeds if row.seeds == row.seeds_against else f"{row.seeds} and {row.seeds_against}"
    size = f"{each} seed{'s' * (each != 1)}, {row.problems} problem{'s' * (row.problems > 1)}"
    if row.words.startswith("cannot"):
        return f"{what}: {row.gap:+.1f} points, {size}; {row.words}."
    found = ""
    if np.isfinite(row.detectable):
        found = f"; differences over {row.detectable:.1f} would have been found"
        found = "; no difference could have been found" if row.detectable > 100 else found
        found += ", as far as so few seeds tell" * (min(row.seeds, row.seeds_against) < FEW_SEEDS)
    corrected = f" after Holm over {family}" if family > 1 else ""
    interval = f"[{row.low:+.1f}, {row.high:+.1f}]" + " (this row alone)" * (family > 1)
    return f"{what}: {row.gap:+.1f} points {interval}, {p_text(row.adjusted)}{corrected}, {size}: {row.words}{found}."


def _declared(tests: pd.DataFrame) -> list[Any]:
    """Primary rows, then control rows; if there are many, those that show a difference come first."""
    rows = [row for row in tests.itertuples() if row.family != "exploratory"]
    silent = len(rows) > SHOWN
    return sorted(rows, key=lambda row: (silent and row.words == "no difference shown", row.family != "primary"))


def _winners(comparison: Comparison) -> str:
    fairness, baseline = comparison.fairness, comparison.baseline
    better = [arm for arm in fairness.ranked if _beats(comparison.tests, arm, [baseline, *fairness.must_beat(arm)])]
    named = f"Better than {baseline}: {', '.join(better)}." if better else f"No strategy is shown to beat {baseline}."
    worse = comparison.tests[(comparison.tests["words"] == "worse") & (comparison.tests["against"] == baseline)]
    mixed = [
        f"{arm} is better in a declared metric and worse on {rows.iloc[0]['benchmark']} {rows.iloc[0]['metric']}: not named."
        for arm in fairness.ranked
        if len(rows := worse[worse["arm"] == arm]) and _better(comparison.tests, arm, baseline)
    ]
    return " ".join([named, *mixed])


def _beats(tests: pd.DataFrame, arm: str, others: list[str]) -> bool:
    """Whether an arm beats all `others` in the same declared metric and is worse than none in any metric."""
    rows = tests[(tests["arm"] == arm) & tests["against"].isin(others)]
    shared = set.intersection(*(_better(tests, arm, other) for other in others))
    return bool(shared) and "worse" not in set(rows["words"])


def _better(tests: pd.DataFrame, arm: str, other: str) -> set[tuple[str, str]]:
    """The declared (benchmark, metric) in which one arm is better than another."""
    rows = tests[(tests["arm"] == arm) & (tests["against"] == other) & (tests["family"] != "exploratory")]
    rows = rows[rows["words"] == "better"]
    return set(zip(rows["benchmark"], rows["metric"], strict=True))


def _of_curves(comparison: Comparison) -> list[str]:
    """Where one arm gains and where it loses over k, a sentence for each pair on a declared benchmark that shows either."""
    benchmarks = {benchmark for benchmark, _ in comparison.primary}
    # Of training runs, if there are bands for them.
    widest = {(found.arm, found.against, found.benchmark): found for found in comparison.curves}
    lines = []
    for found in widest.values():
        ranges = {word: found.curve.ranges(word) for word in ("gains", "loses")}
        parts = [f"{word} for k = {ks}" for word, ks in ranges.items() if ks]
        if found.benchmark in benchmarks and parts:
            scope = "Of training runs" if found.scope == SCOPES[1] else "Of these checkpoints only"
            subject = f"pass@k of {found.arm} against {found.against} on {found.benchmark} {' and '.join(parts)}"
            at_once = f" and all {len(widest)} curves" if len(widest) > 1 else ""
            lines.append(f"{scope}, exploratory: {subject}; the band holds for all k{at_once} at once.")
    return lines


def _needed(comparison: Comparison) -> list[str]:
    """How many seeds would find the declared difference, a sentence for each row of the declared family."""
    if comparison.needed.empty:
        return []
    lines, keys = [], ["arm", "against", "benchmark", "metric"]
    for (arm, other, benchmark, metric), part in comparison.needed.groupby(keys, sort=False):
        sizes = [
            f"{'more than 200' if pd.isna(row.seeds) else f'{row.seeds:.0f}'} seeds of each at {row.problems} problems"
            for row in part.itertuples()
        ]
        if (part["seeds"] == 0).any():
            sizes = ["the seeds at hand do not differ, so that nothing can be told"]
        many = "two seeds of each must be there to tell how many" if part["now"].min() < 2 else ", ".join(sizes)
        what = f"{comparison.declared.detect:g} points of {metric} on {benchmark} between {arm} and {other}"
        lines.append(f"To find {what} with 80 %: {many}.")
    return lines


def _exploratory(comparison: Comparison) -> list[str]:
    rows = comparison.tests[comparison.tests["family"] == "exploratory"]
    if rows.empty:
        return []
    count = int(rows["words"].isin(["better", "worse"]).sum())
    more = f"; {count} differ at 5 % after Benjamini-Hochberg, which is for the next experiment to confirm" * (
        count > 0
    )
    kind = "" if comparison.declared.primary else ", chosen by default: primary= declares others"
    primary = ", ".join(f"{benchmark} {metric}" for benchmark, metric in comparison.primary)
    return [f"Declared: {primary}{kind}. The other {len(rows)} comparisons are exploratory{more}."]

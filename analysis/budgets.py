"""Methods compared at equal budgets of generated tokens or hours, instead of equal numbers of steps or of answers."""

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.comparison import Comparison
from analysis.intervals import Array, two_level
from analysis.load import Study
from analysis.tables import Cell, Table, estimate, words
from ngrpo.evaluation.passk import k_grid

SHARES = (0.25, 0.5, 1.0)  # of what the cheapest method spent
SLACK = 1.02  # answers differ in length, so equal steps are not quite equal tokens
UNITS = {"tokens": ("million tokens", 1e6), "seconds": ("hours", 3600.0)}


def table(comparison: Comparison) -> Table:
    """A row per benchmark, metric and budget: what each method had reached, and how far the best is ahead of the next."""
    found, rows = comparison.trajectory, []
    arms = list(dict.fromkeys(found["arm"]))
    for benchmark, part in found.groupby("benchmark", sort=False):
        for metric in comparison.metrics[str(benchmark)][:2]:
            for unit in UNITS:
                cheapest = part.groupby(["arm", "seed"])[unit].max().groupby("arm").mean().min()
                for share in SHARES:
                    reached = _reached(part, comparison, metric, unit, share * cheapest)
                    if len(reached) > 1:
                        rows.append(_row(str(benchmark), metric, unit, share * cheapest, arms, reached))
    columns = ["benchmark", "metric", "budget", *arms, "best, and by how much"]
    note = ("the last evaluation within a quarter, half and all of what the cheapest method spent (RL steps, evaluations not "
            "counted); brackets: 95 % for other problems and seeds, of a difference where both have two seeds")  # fmt: skip
    return Table("budgets", "At the same budget", columns, rows, note)


def best_of(study: Study, comparison: Comparison) -> Table:
    """A row per benchmark and number of answers of the baseline: Pass@n of each method for the n that their tokens buy."""
    rates, baseline, rows = comparison.rates, comparison.baseline, []
    sums = study.counts.groupby(["benchmark", "arm"])[["tokens", "n"]].sum(min_count=1)
    length = sums["tokens"] / sums["n"]  # of an answer, nan where a file tells none
    for benchmark in study.benchmarks:
        own = {arm: length.get((benchmark, arm), np.nan) for arm in study.arms}
        for k in k_grid(rates.n[benchmark]) if own[baseline] > 0 else ():
            budget = k * own[baseline]
            cells = [_best(comparison, benchmark, arm, budget / own[arm]) for arm in study.arms]
            rows.append([Cell(benchmark), Cell(str(k), k), Cell(f"{budget:,.0f}", budget), *cells])
    columns = ["benchmark", f"answers of {baseline}", "tokens", *study.arms]
    note = ("n: unbiased pass@n in %, the best of n answers by a perfect judge, with n as many whole answers as the tokens buy "
            "(to 2 %; + where they buy more than were drawn); brackets: 95 % for other problems and seeds")  # fmt: skip
    return Table("best_of_n", "Best of n at the same number of tokens", columns, rows, note)


def _best(comparison: Comparison, benchmark: str, arm: str, bought: float) -> Cell:
    most = comparison.rates.n[benchmark]
    if not comparison.rates.has(benchmark, arm) or not SLACK * bought >= 1:  # nan buys nothing
        return Cell("-")
    n, more = min(int(SLACK * bought), most), "+" * (int(SLACK * bought) > most)
    values = comparison.rates.values(benchmark, arm, f"pass@{n}")
    cell = estimate(values.mean(), *two_level(None, values, top=100))
    return replace(cell, text=f"{n}{more}: {cell.text}")


def _reached(part: pd.DataFrame, comparison: Comparison, metric: str, unit: str, budget: float) -> dict[str, Array]:
    """arm -> (S, U) values at the last evaluation within the budget, of arms all of whose seeds have one."""
    reached = {}
    for arm, own in part[part[unit] <= SLACK * budget].groupby("arm", sort=False):
        last = own.sort_values("step").groupby("seed").tail(1)
        if len(last) == part[part["arm"] == arm]["seed"].nunique():
            benchmark = last["benchmark"].iloc[0]
            reached[str(arm)] = comparison.rates.estimate(benchmark, np.stack(last["correct"].to_list()), metric)
    return reached


def _row(
    benchmark: str, metric: str, unit: str, budget: float, arms: list[str], reached: dict[str, Array]
) -> list[Cell]:
    name, size = UNITS[unit]
    cells = [*words(benchmark, metric), Cell(f"{budget / size:,.3g} {name}", budget)]
    known = {arm: estimate(values.mean(), *two_level(None, values, top=100)) for arm, values in reached.items()}
    cells += [known.get(arm, Cell("-")) for arm in arms]
    first, second = sorted(reached, key=lambda arm: -reached[arm].mean())[:2]
    seeds = min(len(reached[first]), len(reached[second]))
    interval = two_level(reached[second], reached[first], top=100) if seeds > 1 else (np.nan, np.nan)
    gap = estimate(reached[first].mean() - reached[second].mean(), *interval, sign="+")
    return [*cells, Cell(f"{first}, {gap.text} over {second}")]

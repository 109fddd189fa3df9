"""Tests: over training seeds for the headline, over problems for what given checkpoints show.

S training seeds, P problems.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from analysis.intervals import Array, seeds_by_problems
from ngrpo.evaluation import passk

DRAWS = 9_999  # of permutation tests
BLOCK = 2_000_000  # random numbers in memory at once


@dataclass(frozen=True)
class Difference:
    """A difference of two means with its interval and test; nan where there is none. `df`: degrees of freedom."""

    gap: float
    low: float
    high: float
    p: float
    df: float | None = None


@dataclass(frozen=True)
class Pairs:
    """Two sets of checkpoints compared problem by problem; says nothing about other training seeds.

    low and high: `passk.paired_interval` of the mean gap; p: of a sign-flipping permutation test. wins, ties and losses count
    problems by solve rate; the 2 x 2 table counts those solved at least once by both, only one, or neither (N-GRPO, Table 9);
    p_only is the exact McNemar test of those that only one solves, 1 where there is none.
    """

    gap: float
    low: float
    high: float
    p: float
    wins: int
    ties: int
    losses: int
    both: int
    only_it: int
    only_other: int
    neither: int
    p_only: float


def welch(first: ArrayLike, second: ArrayLike) -> Difference:
    """mean(second) - mean(first) of the means of S seeds each, by Welch's t (1947) with its degrees of freedom.

    Args:
        first, second: (S,) one number per training seed; the numbers of seeds may differ.
    Returns:
        nan for interval and p where an arm has one seed. Where neither arm varies at all, p is 1 for equal means and nan
        otherwise: a variance of 0 from a few seeds is no evidence.
    """
    a, b = map(one_per_seed, (first, second))
    gap = float(b.mean() - a.mean())
    if min(len(a), len(b)) < 2 or (np.ptp(a) == 0 and np.ptp(b) == 0):
        same = min(len(a), len(b)) > 1 and gap == 0
        return Difference(gap, np.nan, np.nan, 1.0 if same else np.nan)
    with warnings.catch_warnings():  # at a ceiling all seeds are nearly equal, which scipy warns of
        warnings.simplefilter("ignore", RuntimeWarning)
        test: Any = stats.ttest_ind(b, a, equal_var=False)  # a tuple class that scipy makes at run time
    low, high = test.confidence_interval(0.95)
    return Difference(gap, float(low), float(high), float(test.pvalue), float(test.df))


def one_per_seed(values: ArrayLike) -> Array:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or numbers.size == 0:
        raise ValueError(f"need (S,) numbers, one per training seed, got shape {numbers.shape}")
    return numbers


def paired(first: ArrayLike, second: ArrayLike, draws: int = DRAWS, top: float = 1.0) -> Pairs:
    """Two sets of checkpoints problem by problem, second (`it`) minus first (`other`).

    Args:
        first, second: (S, P) and (S', P) solve rates in [0, top], or (P,) of one seed; seeds are averaged, so the
            checkpoints are taken as given.
    """
    other, it = map(seeds_by_problems, (first, second))
    before, after = other.mean(axis=0), it.mean(axis=0)
    low, high = passk.paired_interval(before, after, top=top)
    gaps = after - before
    p = _flipped(gaps, draws, np.random.default_rng(0))
    by_other, by_it = (values.max(axis=0) > 0 for values in (other, it))
    wins, ties, losses = (int(found.sum()) for found in (gaps > 0, gaps == 0, gaps < 0))
    solved = (by_it & by_other, by_it & ~by_other, by_other & ~by_it, ~by_it & ~by_other)
    both, only_it, only_other, neither = (int(found.sum()) for found in solved)
    p_only, gap = solved_by_one_only(only_other, only_it), float(gaps.mean())
    return Pairs(gap, float(low), float(high), p, wins, ties, losses, both, only_it, only_other, neither, p_only)


def _flipped(gaps: Array, draws: int, generator: np.random.Generator) -> float:
    """Two-sided p of the mean gap under random signs; all signs where there are at most `draws`."""
    sizes, counts = np.unique(np.abs(gaps.round(12)), return_counts=True)
    if 2 ** min(len(gaps), 62) <= draws:
        signs = 1 - 2 * (np.arange(2 ** len(gaps))[:, None] >> np.arange(len(gaps)) & 1)
        sums, extra = signs @ gaps, 0
    else:
        flips = [generator.binomial(counts, 0.5, size=(n, len(counts))) for n in _blocks(draws, len(counts))]
        sums, extra = np.concatenate([(2 * flip - counts) @ sizes for flip in flips]), 1
    tails = np.sum(sums >= gaps.sum() - 1e-9), np.sum(sums <= gaps.sum() + 1e-9)
    return float(min(1.0, 2 * (min(tails) + extra) / (len(sums) + extra)))


def _blocks(draws: int, width: int) -> list[int]:
    size = max(1, BLOCK // width)
    return [min(size, draws - start) for start in range(0, draws, size)]


def solved_by_one_only(one: int, other: int) -> float:
    """Exact McNemar p of the problems that only one of two arms solves; 1 where there is none."""
    return float(stats.binomtest(one, one + other).pvalue) if one + other else 1.0


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p of a family declared beforehand; nan stays nan and counts, because it was declared."""
    values = np.asarray(ps, dtype=np.float64)
    order = np.argsort(values)  # nan last
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def false_discovery(ps: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg adjusted p of a family of comparisons; nan stays nan and does not count."""
    values = np.asarray(ps, dtype=np.float64)
    known, adjusted = ~np.isnan(values), values.copy()
    if known.any():
        adjusted[known] = stats.false_discovery_control(values[known], method="bh")
    return adjusted.tolist()


def equivalence(first: ArrayLike, second: ArrayLike, margin: float) -> float:
    """p of two one-sided Welch tests (Schuirmann 1987) that the means of (S,) seeds differ by less than `margin`.

    Below 5 % where the 90 % interval lies within -margin and +margin; nan with one seed or no spread.
    """
    a, b = map(one_per_seed, (first, second))
    found = welch(a, b)
    if found.df is None:
        return np.nan
    return float(stats.t.sf((margin - abs(found.gap)) / standard_error(a, b), found.df))


def p_text(p: float) -> str:
    """A p value as text, never 0."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def standard_error(a: Array, b: Array) -> float:
    return float(np.sqrt(sum(values.var(ddof=1) / len(values) for values in (a, b))))

"""Tests and intervals: training seeds as the unit of the headline, problems as that of what given checkpoints show.

It takes arrays of solve rates.

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
    """A difference of two means with its interval and test. `df`: degrees of freedom, where the test has them."""

    value: float
    low: float
    high: float
    p: float
    df: float | None = None


@dataclass(frozen=True)
class Pairs:
    """What one set of checkpoints shows problem by problem: it says nothing of other training seeds.

    `difference` has the interval of `passk.paired_interval` and the p of a sign-flipping permutation test; wins, ties and
    losses count problems by solve rate; the 2 x 2 table counts those solved at least once by both, only one, or neither
    (N-GRPO, Table 9).
    """

    difference: Difference
    wins: int
    ties: int
    losses: int
    both: int
    only_first: int
    only_second: int
    neither: int


def welch(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Difference:
    """mean(second) - mean(first) of the means of S seeds each, by Welch's t (1947) with its degrees of freedom.

    Args:
        first, second: (S,) one number per training seed; the numbers of seeds may differ.
    Returns:
        nan for interval and p where an arm has one seed. Where neither arm varies at all, p is 1 for equal means and nan
        otherwise: a variance of 0 from a few seeds is no evidence.
    """
    a, b = map(one_per_seed, (first, second))
    value = float(b.mean() - a.mean())
    if min(len(a), len(b)) < 2 or (np.ptp(a) == 0 and np.ptp(b) == 0):
        same = min(len(a), len(b)) > 1 and value == 0
        return Difference(value, np.nan, np.nan, 1.0 if same else np.nan)
    with warnings.catch_warnings():  # at a ceiling all seeds are nearly equal, which scipy warns of
        warnings.simplefilter("ignore", RuntimeWarning)
        test: Any = stats.ttest_ind(b, a, equal_var=False)  # a tuple class that scipy makes at run time
    low, high = test.confidence_interval(level)
    return Difference(value, float(low), float(high), float(test.pvalue), float(test.df))


def one_per_seed(values: ArrayLike) -> Array:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or numbers.size == 0:
        raise ValueError(f"need (S,) numbers, one per training seed, got shape {numbers.shape}")
    return numbers


def paired(
    first: ArrayLike, second: ArrayLike, level: float = 0.95, draws: int = DRAWS, seed: int = 0, top: float = 1.0
) -> Pairs:
    """Two sets of checkpoints problem by problem, second minus first.

    Args:
        first, second: (S, P) and (S', P) solve rates in [0, top], or (P,) of one seed; seeds are averaged, so the
            checkpoints are taken as given.
    """
    a, b = map(seeds_by_problems, (first, second))
    before, after = a.mean(axis=0), b.mean(axis=0)
    low, high = passk.paired_interval(before, after, level, top)
    gaps = after - before
    p = _flipped(gaps, draws, np.random.default_rng(seed))
    solved_a, solved_b = (values.max(axis=0) > 0 for values in (a, b))
    return Pairs(
        Difference(float(gaps.mean()), float(low), float(high), p),
        wins=int((gaps > 0).sum()),
        ties=int((gaps == 0).sum()),
        losses=int((gaps < 0).sum()),
        both=int((solved_a & solved_b).sum()),
        only_first=int((solved_a & ~solved_b).sum()),
        only_second=int((~solved_a & solved_b).sum()),
        neither=int((~solved_a & ~solved_b).sum()),
    )


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


def solved_by_one_only(only_first: int, only_second: int) -> float:
    """Exact McNemar p of the problems that one of two arms solves and the other does not; 1 where there is none."""
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p of a family declared beforehand; those that are nan stay so and count, as declared ones do."""
    values = np.asarray(ps, dtype=np.float64)
    order = np.argsort(values)  # nan last
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def false_discovery(ps: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg adjusted p of a family of comparisons; those that are nan stay so and do not count."""
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
    return float(stats.t.sf((margin - abs(found.value)) / standard_error(a, b), found.df))


def told(p: float) -> str:
    """A p value as it is read: none is 0."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def standard_error(a: Array, b: Array) -> float:
    return float(np.sqrt(sum(values.var(ddof=1) / len(values) for values in (a, b))))

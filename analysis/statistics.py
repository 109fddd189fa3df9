"""Tests and intervals: training seeds as the unit of the headline, problems as that of what given checkpoints show.

It takes arrays of solve rates; what an arm, a benchmark or a file is, it does not know.

S training seeds, P problems.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]
DRAWS = 9_999  # of tests and BCa intervals
RESAMPLED = 2_000  # of intervals that draw problems and seeds anew


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

    `difference` has a BCa interval and the p of a sign-flipping permutation test; wins, ties and losses count problems by
    solve rate; the 2 x 2 table counts those solved at least once by both, only one, or neither (N-GRPO, Table 9).
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
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    value = float(b.mean() - a.mean())
    if min(len(a), len(b)) < 2 or (np.ptp(a) == 0 and np.ptp(b) == 0):
        same = min(len(a), len(b)) > 1 and value == 0
        return Difference(value, np.nan, np.nan, 1.0 if same else np.nan)
    with warnings.catch_warnings():  # at a ceiling all seeds are nearly equal, which scipy warns of
        warnings.simplefilter("ignore", RuntimeWarning)
        test = stats.ttest_ind(b, a, equal_var=False)
    low, high = test.confidence_interval(level)
    return Difference(value, float(low), float(high), float(test.pvalue), float(test.df))


def two_level(
    first: ArrayLike, second: ArrayLike, level: float = 0.95, draws: int = RESAMPLED, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of mean(second) - mean(first) over problems and seeds, both drawn with replacement.

    Args:
        first, second: (S, P) and (S', P), the same problem in the same column. A draw takes the same problems in both
            arms and seeds in each of them by itself.
    Returns:
        (low, high); with few seeds it is too narrow, as every bootstrap is, so it is no test.
    """
    a, b = (np.asarray(values, dtype=np.float64) for values in (first, second))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or a.shape[1] == 0:
        raise ValueError(f"need (S, P) with the same problems, got shapes {a.shape} and {b.shape}")
    generator, problems = np.random.default_rng(seed), a.shape[1]
    found = np.empty(draws)
    block = max(1, 4_000_000 // problems)
    for start in range(0, draws, block):
        size = min(block, draws - start)
        weights = generator.multinomial(problems, np.full(problems, 1 / problems), size=size).T / problems
        means = [_weighted(values, weights, generator) for values in (a, b)]
        found[start : start + size] = means[1] - means[0]
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(found, [tail, 100 - tail])
    return float(low), float(high)


def _weighted(values: Array, weights: Array, generator: np.random.Generator) -> Array:
    """(draws,) means of values (S, P) under problem weights (P, draws) and seeds drawn anew for each."""
    seeds = len(values)
    drawn = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=weights.shape[1]) / seeds
    return ((values @ weights) * drawn.T).sum(axis=0)


def paired(first: ArrayLike, second: ArrayLike, level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> Pairs:
    """Two sets of checkpoints problem by problem, second minus first.

    Args:
        first, second: (S, P) and (S', P) solve rates; seeds are averaged, so the checkpoints are taken as given.
    """
    a, b = (np.asarray(values, dtype=np.float64) for values in (first, second))
    gaps = b.mean(axis=0) - a.mean(axis=0)
    solved_a, solved_b = (values.max(axis=0) > 0 for values in (a, b))
    return Pairs(
        _bca(gaps, level, draws, seed),
        wins=int((gaps > 0).sum()),
        ties=int((gaps == 0).sum()),
        losses=int((gaps < 0).sum()),
        both=int((solved_a & solved_b).sum()),
        only_first=int((solved_a & ~solved_b).sum()),
        only_second=int((~solved_a & solved_b).sum()),
        neither=int((~solved_a & ~solved_b).sum()),
    )


def _bca(gaps: Array, level: float, draws: int, seed: int) -> Difference:
    """Mean gap with its BCa interval (Efron 1987) and the p of flipping the signs of the gaps."""
    value = float(gaps.mean())
    if np.ptp(gaps) == 0:  # no spread to resample: all equal problems, or a single one
        return Difference(value, np.nan, np.nan, 1.0 if value == 0 else np.nan)
    interval = stats.bootstrap(
        (gaps,), np.mean, n_resamples=draws, confidence_level=level, method="BCa", rng=np.random.default_rng(seed)
    ).confidence_interval
    test = stats.permutation_test(
        (gaps,),
        np.mean,
        permutation_type="samples",
        n_resamples=draws,
        rng=np.random.default_rng(seed),
        vectorized=True,
    )
    return Difference(value, float(interval.low), float(interval.high), float(test.pvalue))


def solved_by_one_only(only_first: int, only_second: int) -> float:
    """Exact McNemar p of the problems that one of two arms solves and the other does not; 1 where there is none."""
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def false_discovery(ps: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg adjusted p of a family of comparisons; those that are nan stay so and do not count."""
    values = np.asarray(ps, dtype=np.float64)
    known, adjusted = ~np.isnan(values), values.copy()
    if known.any():
        adjusted[known] = stats.false_discovery_control(values[known], method="bh")
    return adjusted.tolist()


def detectable(first: ArrayLike, second: ArrayLike, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true difference of seed means that Welch's test would find with this power.

    (t_{1 - alpha/2, df} + t_{power, df}) * sqrt(s1^2 / S1 + s2^2 / S2), from the spread of these very seeds: with three of
    them it is itself uncertain by a factor of about two. nan with one seed or no spread.
    """
    a, b = (np.asarray(values, dtype=np.float64) for values in (first, second))
    if min(len(a), len(b)) < 2:
        return np.nan
    parts = np.array([values.var(ddof=1) / len(values) for values in (a, b)])
    if parts.sum() == 0:
        return np.nan
    df = parts.sum() ** 2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    return float((stats.t.ppf(1 - alpha / 2, df) + stats.t.ppf(power, df)) * np.sqrt(parts.sum()))

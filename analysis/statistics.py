"""Tests and intervals: training seeds as the unit of the headline, problems as that of what given checkpoints show.

It takes arrays of solve rates.

S training seeds, P problems.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]
DRAWS = 9_999  # of permutation tests and BCa intervals
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
        test: Any = stats.ttest_ind(b, a, equal_var=False)  # a tuple class that scipy makes at run time
    low, high = test.confidence_interval(level)
    return Difference(value, float(low), float(high), float(test.pvalue), float(test.df))


def two_level(first: ArrayLike | None, second: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Interval of mean(second) - mean(first) where problems and training seeds are both samples of many.

    The variance is that of a table with two crossed random effects (Searle, Casella and McCulloch 1992, chapter 4): of the
    seed means over S in each arm, plus that of the problems' gaps over P, less their interaction, which both hold. The
    degrees of freedom are Satterthwaite's (1946). Resampling both instead is too narrow: with three seeds that differ by
    0.2 logits it covers a difference in 86 % of experiments, where this covers it in 94 % (tests/analysis/test_statistics.py).

    Args:
        first, second: (S, P) and (S', P), the same problem in the same column; `first` is None for mean(second) alone.
    Returns:
        (low, high). An arm of one seed tells nothing of seeds: then it speaks of other problems only. nan for one problem.
    """
    arms = [np.asarray(values, dtype=np.float64) for values in (first, second) if values is not None]
    if any(values.ndim != 2 or values.shape[1] != arms[0].shape[1] or values.size == 0 for values in arms):
        raise ValueError(f"need (S, P) with the same problems, got shapes {' and '.join(str(v.shape) for v in arms)}")
    problems = arms[0].shape[1]
    if problems < 2:
        return np.nan, np.nan
    gaps = arms[-1].mean(axis=0) - (arms[0].mean(axis=0) if len(arms) > 1 else 0.0)
    of_seeds = [(v.mean(axis=1).var(ddof=1) / len(v), len(v) - 1) for v in arms if len(v) > 1]
    parts, dfs = np.array([*of_seeds, (gaps.var(ddof=1) / problems, problems - 1)]).T
    if parts.sum() == 0:
        return float(gaps.mean()), float(gaps.mean())
    variance = max(parts.sum() - sum(map(_interaction, arms)), parts.max())
    half = stats.t.ppf((1 + level) / 2, parts.sum() ** 2 / (parts**2 / dfs).sum()) * np.sqrt(variance)
    return float(gaps.mean() - half), float(gaps.mean() + half)


def _interaction(values: Array) -> float:
    """What neither problem nor seed explains of (S, P) values, as a variance of their mean; 0 with one seed."""
    seeds, problems = values.shape
    if seeds < 2:
        return 0.0
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    return float((rest**2).sum() / ((seeds - 1) * (problems - 1) * seeds * problems))


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
    """Mean gap with its BCa interval (Efron 1987) and the p of flipping the signs of the gaps.

    Gaps of rates take few values, so draws are counts of these values: the same distribution as drawing problems one by
    one, at a cost that does not grow with their number.
    """
    value = float(gaps.mean())
    if np.ptp(gaps) == 0:  # no spread to resample: all equal problems, or a single one
        return Difference(value, np.nan, np.nan, 1.0 if value == 0 else np.nan)
    generator, problems = np.random.default_rng(seed), len(gaps)
    values, counts = np.unique(gaps.round(12), return_counts=True)  # 1/3 - 1/3 must be no value of its own
    sizes = _blocks(draws, len(values))
    means = (
        np.concatenate([generator.multinomial(problems, counts / problems, size=n) @ values for n in sizes]) / problems
    )
    below = (np.sum(means < value - 1e-12) + np.sum(means <= value + 1e-12)) / (2 * draws)
    bias, off = stats.norm.ppf(np.clip(below, 1 / draws, 1 - 1 / draws)), gaps - value
    skew = (off**3).sum() / (6 * (off**2).sum() ** 1.5)
    at = bias + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(means, stats.norm.cdf(bias + at / (1 - skew * at)))
    return Difference(value, float(low), float(high), _flipped(gaps, draws, generator))


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

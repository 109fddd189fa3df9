"""Estimators of one benchmark: mean@n, pass@k, best@k by bootstrap, and their intervals over problems.

It takes counts and 0/1 arrays.

P problems, n samples per problem, c correct samples of one problem, M statistics side by side.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Moments = tuple[Array, Array, Array]  # a mean, its variance, degrees of freedom
FADE_OF_MEANS, FADE_OF_GAPS, FADE_OF_SKEW = 12.0, 4.0, 24.0  # chosen by simulation: docs/statistics.md


def k_grid(n: int) -> list[int]:
    """The k of every table: the powers of two below `n` (samples per problem), then `n` itself."""
    if n < 1:
        raise ValueError(f"k_grid needs at least 1 sample per problem, got n={n}")
    return [2**i for i in range((n - 1).bit_length())] + [n]


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> Array:
    """Unbiased pass@k: 1 - C(n-c, k) / C(n, k), the chance that k of the n samples drawn without replacement hold a
    correct one (Chen et al. 2021, arXiv 2107.03374, eq. 1).

    Args:
        n: samples per problem, one number or the shape of `c`.
        c: correct samples per problem, any shape, integers in [0, n].
        k: draws, 1 <= k <= n.
    Returns:
        float64 of the shape of `c`, each entry the correctly rounded quotient of exact integers.
    Raises:
        ValueError: k outside [1, n], c outside [0, n], numbers that are not whole, or unequal shapes.
    """
    samples, hits = _counts(n, c, k)
    if samples.size and k > samples.min():
        raise ValueError(f"pass@{k} needs at least k={k} samples per problem, got n={samples.min()}")
    pairs, inverse = np.unique(np.stack([samples.ravel(), hits.ravel()]), axis=1, return_inverse=True)
    values = [_pass_at_k(int(n_), int(c_), k) for n_, c_ in pairs.T]
    return np.array(values, dtype=np.float64)[inverse.ravel()].reshape(hits.shape)


def boot_best_at_k(n: ArrayLike, c: ArrayLike, k: int) -> Array:
    """best@k as verl prints it: the expectation 1 - (1 - c/n)^k of its bootstrap with replacement
    (`verl/trainer/ppo/metric_utils.py`), offered to compare with numbers published that way.

    It lies below the unbiased pass@k (c=1, n=32: 0.638 against 1 at k=32), so it never goes in a pass@k table.
    Arguments, result and errors are those of `pass_at_k`, but k may exceed n.
    """
    samples, hits = _counts(n, c, k)
    return 1.0 - (1.0 - hits / samples) ** k


def mean_interval(values: ArrayLike, level: float = 0.95, top: float = 1.0) -> tuple[Array, Array]:
    """Interval of the mean over a population of problems, of which these are a sample; see `steadied_mean`.

    Args:
        values: (P,) or (P, M) in [0, top], one row per problem.
        level: coverage in (0, 1).
        top: the value of a problem that is all right: 1, or 100 for values in percent.
    Returns:
        (low, high), each of shape () or (M,), within [0, top] and never of zero width; nan where P = 1, as one problem tells
        nothing about others.
    Raises:
        ValueError: no problems, a value that is not finite, more than 2 dimensions, a level outside (0, 1).
    """
    table = _table(values, level)
    low, high = _t_interval(*steadied_mean(table, top), level)
    alone = np.where(len(table) > 1, 0.0, np.nan)
    return np.clip(low, 0, top) + alone, np.clip(high, 0, top) + alone


def paired_interval(before: ArrayLike, after: ArrayLike, level: float = 0.95, top: float = 1.0) -> tuple[Array, Array]:
    """Interval of the mean of `after - before`, both (P,) or (P, M) with the same problem in the same row.

    It speaks of these two checkpoints only: the spread over training seeds is not in it; see `steadied_gap`.
    Arguments, result and errors are those of `mean_interval`; unequal shapes are a ValueError.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"before and after must hold the same problems, got shapes {first.shape} and {second.shape}")
    gaps = _table(second - first, level)
    low, high = _t_interval(*steadied_gap(gaps, top), level)
    alone = np.where(len(gaps) > 1, 0.0, np.nan)
    return np.clip(low, -top, top) + alone, np.clip(high, -top, top) + alone


def steadied_mean(values: Array, top: float = 1.0) -> Moments:
    """Mean of (P, ...) values over problems, its variance, and degrees of freedom, with two pseudo-problems added: one all
    right, one all wrong, in the spirit of Agresti and Coull (1998, The American Statistician 52).

    Their weight fades as more problems differ: it is exp(-m / FADE_OF_MEANS), with m = (sum e^2)^2 / sum e^4 of the deviations
    e from the mean, which is P over the kurtosis: as many problems as the variance rests on. Many problems that differ
    alike need no help; where two or three of them, or none, make all the difference, Student's t alone is blind to
    those that this sample lacks (docs/statistics.md).
    """
    return _with_pseudo_problems(values, 0.0, top, FADE_OF_MEANS)


def steadied_gap(gaps: Array, top: float = 1.0) -> Moments:
    """The same for (P, ...) differences of two values in [0, top], with pseudo-problems as far off as the largest difference,
    top/2 at least; at -top and +top where there is none, as one that is missed may be as large as that.

    Their weight is also at least exp(-s / FADE_OF_SKEW) with s = (sum e^2)^3 / (sum e^3)^2, P over the squared skewness:
    where a few problems differ and all of them one way, it is the skewness that deceives Student's t.
    """
    largest = np.abs(gaps).max(axis=0)
    scale = np.where(largest > 1e-9 * top, np.maximum(top / 2, largest), top)
    return _with_pseudo_problems(gaps, -scale, scale, FADE_OF_GAPS, FADE_OF_SKEW)


def _with_pseudo_problems(
    values: Array, low: float | Array, high: float | Array, fade: float, skew: float = 0.0
) -> Moments:
    off = values - values.mean(axis=0)
    squares, fourths = (off**2).sum(axis=0), (off**4).sum(axis=0)
    some = squares > 1e-18 * len(values) * (high - low) ** 2  # rounding is no difference
    weight = np.exp(-np.divide(squares**2, fourths, out=np.zeros_like(squares), where=some) / fade)
    if skew:
        thirds = (off**3).sum(axis=0) ** 2
        rests = np.divide(squares**3, thirds, out=np.full_like(squares, np.inf), where=thirds > 0)
        weight = np.maximum(weight, np.exp(-np.where(some, rests, 0.0) / skew))
    size = len(values) + 2 * weight
    mean = (values.sum(axis=0) + weight * (low + high)) / size
    squares = ((values - mean) ** 2).sum(axis=0) + weight * ((low - mean) ** 2 + (high - mean) ** 2)
    return mean, squares / ((size - 1) * size), size - 1


def _t_interval(mean: Array, variance: Array, df: Array, level: float) -> tuple[Array, Array]:
    from scipy.special import stdtrit  # here, so that whoever only counts needs numpy alone

    half = stdtrit(df, (1 + level) / 2) * np.sqrt(variance)
    return mean - half, mean + half


def _table(values: ArrayLike, level: float) -> Array:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim not in (1, 2) or table.shape[0] == 0:
        raise ValueError(f"values must be (P,) or (P, M) with at least one problem, got shape {table.shape}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got level={level}")
    if not np.isfinite(table).all():
        raise ValueError(f"values must be finite, got {np.count_nonzero(~np.isfinite(table))} that are not")
    return table


def summarize(
    correct: ArrayLike,
    outcomes: Mapping[str, int] | None = None,
    level: float = 0.95,
) -> dict[str, Any]:
    """What results.json says of one benchmark at one RL step, as plain containers.

    Args:
        correct: (P, n) of 0/1, a row per problem, a column per sample.
        outcomes: outcome -> number of samples with it, adding up to P·n; stored as rates.
        level: of the intervals, see `mean_interval`.
    Returns:
        n_problems, n_samples (n, per problem), mean@n, and for each k of `k_grid(n)` pass@k and boot_best@k, every
        estimate as {value, low, high}; outcomes, if they were given.
    Raises:
        ValueError: not a (P, n) table of 0/1, or outcomes that do not add up.
    """
    table = np.asarray(correct)
    if table.ndim != 2 or table.size == 0 or not np.isin(table, (0, 1)).all():
        raise ValueError(f"correct must be a (P, n) table of 0 and 1 and not empty, got {table.dtype} {table.shape}")
    (problems, n), hits = table.shape, table.astype(np.int64).sum(axis=1)
    grid = k_grid(n)
    columns = [hits / n, *(pass_at_k(n, hits, k) for k in grid), *(boot_best_at_k(n, hits, k) for k in grid)]
    estimates = _estimates(np.stack(columns, axis=1), level)
    entry: dict[str, Any] = {"n_problems": problems, "n_samples": n, "mean@n": estimates[0]}
    entry["pass@k"] = {str(k): e for k, e in zip(grid, estimates[1:], strict=False)}
    entry["boot_best@k"] = {str(k): e for k, e in zip(grid, estimates[1 + len(grid) :], strict=True)}
    if outcomes is not None:
        if sum(outcomes.values()) != problems * n:
            raise ValueError(f"outcomes must add up to P·n = {problems * n} samples, got {dict(outcomes)}")
        entry["outcomes"] = {name: count / (problems * n) for name, count in outcomes.items()}
    return entry


def _counts(n: ArrayLike, c: ArrayLike, k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    samples, hits = np.asarray(n), np.asarray(c)
    if samples.shape not in ((), hits.shape):
        raise ValueError(f"n must be one number or have the shape of c, got {samples.shape} and {hits.shape}")
    for name, numbers in (("n", samples), ("c", hits)):
        if not np.issubdtype(numbers.dtype, np.number) or not np.equal(np.mod(numbers, 1), 0).all():
            raise ValueError(f"{name} must hold whole numbers, got {numbers.dtype} {numbers.ravel()[:3].tolist()}")
    samples, hits = np.broadcast_to(samples, hits.shape).astype(np.int64), hits.astype(np.int64)
    if k < 1 or k != int(k):
        raise ValueError(f"k must be a whole number of at least 1, got {k}")
    if (samples < 1).any() or (hits < 0).any() or (hits > samples).any():
        raise ValueError(f"need 0 <= c <= n and n >= 1, got c={hits.ravel()[:3].tolist()}, n={samples.ravel()[:3]}")
    return samples, hits


def _pass_at_k(n: int, c: int, k: int) -> float:
    # Python divides whole numbers of any size with one correct rounding, so no product of quotients drifts.
    every = math.comb(n, k)
    return (every - math.comb(n - c, k)) / every


def _estimates(columns: Array, level: float) -> list[dict[str, float]]:
    low, high = mean_interval(columns, level)
    rows = zip(columns.mean(axis=0), low, high, strict=True)
    return [{"value": float(v), "low": float(a), "high": float(b)} for v, a, b in rows]

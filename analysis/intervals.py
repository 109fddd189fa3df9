"""Intervals for one arm or the difference of two where both training seeds and problems are samples from populations.

`passk` has the intervals over problems alone.

S training seeds, P problems, K values side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ngrpo.evaluation import passk

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Parts:
    """A mean or difference with its two variances, each a variance of the mean with its degrees of freedom.

    `of_seeds` is what training seeds add to the noise of their samples, 0 where the seed means differ no more than that.
    """

    center: Array
    of_problems: Array
    df_problems: Array
    of_seeds: Array
    df_seeds: Array


def two_level(first: ArrayLike | None, second: ArrayLike, top: float = 1.0) -> tuple[float, float]:
    """95 % interval of mean(second) - mean(first) where problems and training seeds are both samples of many.

    half^2 = t(df_s)^2 v_s + t(df_p)^2 v_p, each variance with the t of its own degrees of freedom (the method of variance
    estimates recovery, Zou and Donner 2008, of two independent parts): v_p of the problems, steadied by pseudo-problems, v_s
    of the seeds. One t for the sum, with Satterthwaite's degrees of freedom, covers one arm in 86 % of experiments with
    two seeds that differ by a logit, this in 93 to 95 % (docs/statistics.md).

    Args:
        first, second: (S, P) and (S', P) in [0, top], the same problem in the same column; (P,) is one seed; `first` is
            None for mean(second) alone.
        top: the value of a problem that is all right: 1, or 100 for values in percent.
    Returns:
        (low, high), never of zero width. An arm of one seed tells nothing of seeds: then it speaks of other problems only.
        nan for one problem.
    """
    arms = [seeds_by_problems(values) for values in (first, second) if values is not None]
    if any(values.shape[1] != arms[0].shape[1] for values in arms):
        raise ValueError(f"need (S, P) with the same problems, got shapes {' and '.join(str(v.shape) for v in arms)}")
    if arms[0].shape[1] < 2:
        return np.nan, np.nan
    found = parts(arms, top)
    of_seeds = stats.t.ppf(0.975, found.df_seeds) ** 2 * found.of_seeds
    half = np.sqrt(of_seeds + stats.t.ppf(0.975, found.df_problems) ** 2 * found.of_problems)
    low, high = np.clip([found.center - half, found.center + half], -top if len(arms) > 1 else 0.0, top)
    return float(low), float(high)


def parts(arms: Sequence[Array], top: float = 1.0) -> Parts:
    """The mean of one arm, or the second minus the first of two; each (S, P), or (S, P, K) for K values at once.

    The seeds' part is the variance of their means (of two arms with the degrees of freedom of Satterthwaite 1946) less the
    interaction of the two crossed random effects (Searle, Casella and McCulloch 1992, chapter 4), which the problems' part
    holds already.
    """
    gaps = arms[-1].mean(axis=0) - (arms[0].mean(axis=0) if len(arms) > 1 else 0.0)
    center, of_problems, df_problems = (passk.steadied_gap if len(arms) > 1 else passk.steadied_mean)(gaps, top)
    several = [values for values in arms if len(values) > 1]
    variances = [values.mean(axis=1).var(axis=0, ddof=1) / len(values) for values in several]
    total = np.asarray(sum(variances, np.zeros_like(center)))
    shares = sum((v**2 / (len(values) - 1) for v, values in zip(variances, several, strict=True)), np.zeros_like(total))
    df_seeds = np.divide(total**2, shares, out=np.ones_like(total), where=shares > 0)
    of_seeds = np.maximum(total - sum(map(interaction, several)), 0.0)
    return Parts(center, of_problems, df_problems, of_seeds, df_seeds)


def interaction(values: Array) -> Array:
    """What neither problem nor seed explains of (S, P, ...) values, as a variance of their mean."""
    seeds, problems = values.shape[:2]
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean(axis=(0, 1))
    return (rest**2).sum(axis=(0, 1)) / ((seeds - 1) * max(problems - 1, 1) * seeds * problems)


def seeds_by_problems(values: ArrayLike) -> Array:
    """(S, P); (P,) is one seed."""
    table = np.asarray(values, dtype=np.float64)
    table = table[None] if table.ndim == 1 else table
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"need (S, P) or (P,) values, got shape {table.shape}")
    return table

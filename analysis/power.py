"""What a comparison of training seeds could have found, and how many seeds would find a given difference.

S training seeds, P problems.
"""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from analysis.intervals import Array, interaction, seeds_by_problems
from analysis.statistics import one_per_seed, standard_error

QUANTILES = 60  # of each chi-square law that a power is averaged over
POWER = 0.8  # the chance to find it
MOST_SEEDS = 200  # that a study of some size is told to train


def detectable(first: ArrayLike, second: ArrayLike, alpha: float = 0.05) -> float:
    """The smallest true difference of seed means that Welch's test at level `alpha` would find with 80 % power.

    From the spread of these very seeds, taken as that of all: with three of them it is itself uncertain by a factor of about
    two. nan with one seed or no spread.
    """
    a, b = map(one_per_seed, (first, second))
    if min(len(a), len(b)) < 2 or standard_error(a, b) == 0:
        return np.nan
    return smallest_found((a.std(ddof=1), b.std(ddof=1)), (len(a), len(b)), alpha)


def smallest_found(spreads: tuple[float, float], seeds: tuple[int, int], alpha: float = 0.05) -> float:
    """The true difference that Welch's test finds with 80 % power, where seeds of the arms have these standard deviations."""
    error = float(np.hypot(*(s / np.sqrt(n) for s, n in zip(spreads, seeds, strict=True))))
    power = partial(welch_power, spreads=spreads, seeds=seeds, alpha=alpha)
    highest = error
    while power(highest) < POWER:
        highest *= 2
    root: Any = optimize.brentq(lambda gap: power(gap) - POWER, 0.0, highest, xtol=1e-4 * error)
    return float(root)


def welch_power(gap: float, spreads: tuple[float, float], seeds: tuple[int, int], alpha: float = 0.05) -> float:
    """The chance that Welch's test at level `alpha` rejects where the true difference is `gap`.

    Given the sample variances the test statistic is normal, so the power is the mean of normal tails over their chi-square
    laws: exact for normal seeds, where fixed degrees of freedom in a noncentral t promise too much (69 % for 80 % with
    three seeds, 44 % with two).
    """
    at = (np.arange(QUANTILES) + 0.5) / QUANTILES
    drawn = [s**2 / n * stats.chi2.ppf(at, n - 1) / (n - 1) for s, n in zip(spreads, seeds, strict=True)]
    one, two = drawn[0][:, None], drawn[1][None]
    df = (one + two) ** 2 / (one**2 / (seeds[0] - 1) + two**2 / (seeds[1] - 1))
    limit = special.stdtrit(df, 1 - alpha / 2) * np.sqrt(one + two)
    error = np.hypot(*(s / np.sqrt(n) for s, n in zip(spreads, seeds, strict=True)))
    return float((special.ndtr((gap - limit) / error) + special.ndtr((-gap - limit) / error)).mean())


def seeds_needed(
    gap: float, first: ArrayLike, second: ArrayLike, alpha: float = 0.05, problems: float = 1.0
) -> int | None:
    """Training seeds of each arm with which Welch's test would find a true difference of `gap` with 80 % power.

    Args:
        first, second: (S, P) and (S', P) values of the runs at hand.
        problems: how many times as many problems: the noise of samples and problems within a seed's mean shrinks with them,
            what the seeds themselves differ by does not.
    Returns:
        None where MOST_SEEDS are too few, or the runs have one seed; 0 where seeds do not differ, which tells nothing.
    """
    spreads = [_spread(seeds_by_problems(values), problems) for values in (first, second)]
    if np.isnan(spreads).any():
        return None
    if max(spreads) == 0:
        return 0
    both = (float(spreads[0]), float(spreads[1]))
    return next((s for s in range(2, MOST_SEEDS + 1) if welch_power(gap, both, (s, s), alpha) >= POWER), None)


def _spread(values: Array, problems: float) -> float:
    """Standard deviation of seed means if there were `problems` times as many problems; nan with one seed."""
    if len(values) < 2:
        return np.nan
    within = float(interaction(values)) * len(values)
    return float(np.sqrt(max(values.mean(axis=1).var(ddof=1) - within, 0.0) + within / problems))

"""What could have been found: the promised power against experiments."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from analysis.power import detectable, seeds_needed, smallest_found, welch_power


def rejected(gap: float, spreads: tuple[float, float], seeds: tuple[int, int], alpha: float) -> float:
    """Of 20,000 experiments, how many Welch's test rejects."""
    rng = np.random.default_rng(3)
    a, b = (rng.normal(at, s, (20_000, n)) for at, s, n in zip((0, gap), spreads, seeds, strict=True))
    test: Any = stats.ttest_ind(b, a, axis=1, equal_var=False)
    return float((test.pvalue < alpha).mean())


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3])
@pytest.mark.parametrize("seeds", [(2, 2), (3, 3), (5, 5), (3, 10)])
@pytest.mark.parametrize("spreads", [(1.0, 1.0), (1.0, 0.3)])
def test_a_real_difference_is_found_as_often_as_promised(spreads, seeds, alpha):
    gap = smallest_found(spreads, seeds, alpha=alpha)
    assert rejected(gap, spreads, seeds, alpha) == pytest.approx(0.8, abs=0.015)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_arms_are_told_apart_no_more_often_than_the_level_says(seeds):
    assert rejected(0.0, (1.0, 1.0), (seeds, seeds), 0.05) < 0.055
    power = welch_power(0.0, (1.0, 1.0), (seeds, seeds))
    assert power == pytest.approx(rejected(0.0, (1.0, 1.0), (seeds, seeds), 0.05), abs=0.005)


def test_with_many_seeds_the_power_is_that_of_the_noncentral_t():
    seeds, gap = 200, 0.28
    shift, limit = gap / np.sqrt(2 / seeds), stats.t.ppf(0.975, 2 * seeds - 2)
    expected = stats.nct.sf(limit, 2 * seeds - 2, shift) + stats.nct.cdf(-limit, 2 * seeds - 2, shift)
    assert welch_power(gap, (1.0, 1.0), (seeds, seeds)) == pytest.approx(expected, abs=2e-3)


def test_detectable_takes_the_spread_of_the_seeds_at_hand():
    a, b = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 4.0])
    assert detectable(a, b, alpha=0.01) == pytest.approx(smallest_found((1.0, 2.0), (3, 3), alpha=0.01), rel=1e-3)
    assert np.isnan(detectable([1.0], b)) and np.isnan(detectable([1.0, 1.0], [2.0, 2.0]))


def test_the_seeds_that_are_needed_find_the_difference_and_one_fewer_does_not():
    rng = np.random.default_rng(6)
    a, b = rng.normal(0, 1, (4, 1)) + rng.normal(0, 3, (4, 50)), rng.normal(0, 1, (4, 1)) + rng.normal(0, 3, (4, 50))
    spreads = (a.mean(axis=1).std(ddof=1), b.mean(axis=1).std(ddof=1))
    seeds = seeds_needed(3.0, a, b)
    assert seeds is not None and seeds > 2
    assert (
        rejected(3.0, spreads, (seeds, seeds), 0.05) > 0.785 and welch_power(3.0, spreads, (seeds - 1, seeds - 1)) < 0.8
    )
    fewer = seeds_needed(3.0, a, b, problems=100)
    assert fewer is not None and 2 <= fewer <= seeds
    assert seeds_needed(1e-3, a, b) is None and seeds_needed(1.0, a[:1], b) is None

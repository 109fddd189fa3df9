"""Statistics of the report against scipy, closed forms, enumeration and simulation with a known truth."""

import itertools

import numpy as np
import pytest
from scipy import stats

from analysis.statistics import detectable, false_discovery, paired, solved_by_one_only, two_level, welch


def rates(seeds: int, problems: int, spread: float, rng, shift: float = 0.0, n: int = 32) -> np.ndarray:
    """(S, P) solve rates: difficulty by problem, one logit offset by training seed, n samples each."""
    difficulty = np.random.default_rng(1).normal(0, 1.5, problems)
    p = 1 / (1 + np.exp(-(difficulty + shift + rng.normal(0, spread, (seeds, 1)) if spread else difficulty + shift)))
    return rng.binomial(n, np.broadcast_to(p, (seeds, problems))) / n


def test_welch_is_the_textbook_formula_and_scipys():
    a, b = np.array([1.0, 2.0, 4.0]), np.array([3.0, 5.0, 6.0, 9.0])
    found = welch(a, b)
    va, vb = a.var(ddof=1) / 3, b.var(ddof=1) / 4
    df = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 3)
    half = stats.t.ppf(0.975, df) * np.sqrt(va + vb)
    gap = b.mean() - a.mean()
    assert (found.value, found.low, found.high) == pytest.approx((gap, gap - half, gap + half))
    assert found.df == pytest.approx(df) and found.p == pytest.approx(2 * stats.t.sf(gap / np.sqrt(va + vb), df))


def test_welch_claims_nothing_without_spread():
    assert np.isnan(welch([1.0], [2.0, 3.0]).p) and np.isnan(welch([1.0, 1.0], [2.0, 2.0]).p)
    assert welch([1.0, 1.0], [1.0, 1.0]).p == 1.0


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.2])
def test_the_headline_test_rejects_two_equal_arms_at_most_as_often_as_it_says(spread):
    """2,000 A/A comparisons of three seeds, 48 problems, 32 samples; resampling problems alone is the foil."""
    rng = np.random.default_rng(7)
    headline, problems_only = 0, 0
    for _ in range(2000):
        a, b = rates(3, 48, spread, rng), rates(3, 48, spread, rng)
        headline += welch(a.mean(axis=1), b.mean(axis=1)).p < 0.05
        gaps = b[0] - a[0]  # one run per arm, as papers have it
        problems_only += abs(gaps.mean()) > 1.96 * gaps.std(ddof=1) / np.sqrt(48)
    assert headline / 2000 <= 0.07
    assert problems_only / 2000 > (0.3 if spread == 0.2 else 0.03)


def test_a_real_difference_is_found_as_often_as_the_detectable_one_promises():
    """Known spread: the difference that `detectable` names from 2,000 seeds is found in about 80 % of experiments."""
    rng = np.random.default_rng(3)
    size = detectable(rng.normal(0, 1, 8), rng.normal(0, 1, 8))
    big = [detectable(rng.normal(0, 1, 8), rng.normal(0, 1, 8)) for _ in range(400)]
    assert size > 0
    gap = float(np.median(big))
    found = np.mean([welch(rng.normal(0, 1, 8), rng.normal(gap, 1, 8)).p < 0.05 for _ in range(2000)])
    assert 0.74 < found < 0.86


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.2])
@pytest.mark.parametrize("seeds", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_the_two_level_interval_covers_the_truth(seeds, spread):
    """2,000 experiments on problems drawn anew; the truth is an integral over problems and seeds."""
    x = np.linspace(-8, 8, 4001)
    weights = stats.norm.pdf(x) / stats.norm.pdf(x).sum()
    mean, shifted = (weights @ (1 / (1 + np.exp(-(s + np.hypot(1.5, spread) * x)))) for s in (0, 0.5))
    rng, inside = np.random.default_rng(1), np.zeros(3)

    def drawn(difficulty, shift=0.0):
        p = 1 / (1 + np.exp(-(difficulty + shift + spread * rng.normal(size=(seeds, 1)))))
        return rng.binomial(32, np.broadcast_to(p, (seeds, 48))) / 32

    for _ in range(2000):
        difficulty = rng.normal(0, 1.5, 48)
        a, b, c = drawn(difficulty), drawn(difficulty), drawn(difficulty, 0.5)
        for place, (pair, truth) in enumerate((((None, a), mean), ((a, b), 0.0), ((a, c), shifted - mean))):
            low, high = two_level(*pair)
            inside[place] += low <= truth <= high
    assert (inside / 2000 >= 0.92).all() and (inside / 2000 <= 0.985).all(), inside / 2000


def test_the_two_level_interval_is_that_of_the_analysis_of_variance():
    values = rates(4, 30, 0.3, np.random.default_rng(2))
    mean = values.mean()
    of_problems = 4 * ((values.mean(axis=0) - mean) ** 2).sum() / 29
    of_seeds = 30 * ((values.mean(axis=1) - mean) ** 2).sum() / 3
    rest = (((values - mean) ** 2).sum() - 29 * of_problems - 3 * of_seeds) / (29 * 3)
    df = (of_problems + of_seeds) ** 2 / (of_problems**2 / 29 + of_seeds**2 / 3)
    half = stats.t.ppf(0.975, df) * np.sqrt((of_problems + of_seeds - rest) / (4 * 30))
    assert two_level(None, values) == pytest.approx((mean - half, mean + half))
    alone = stats.t.interval(0.95, 29, values[0].mean(), stats.sem(values[0]))
    assert two_level(None, values[:1]) == pytest.approx(alone), "one seed: over problems alone"
    same = np.repeat(values[:1], 3, axis=0)
    assert two_level(same, same) == (0.0, 0.0), "problems are paired"
    assert np.isnan(two_level(None, values[:, :1])).all()
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        two_level(np.zeros((2, 3)), np.zeros((2, 4)))


def test_the_permutation_test_is_exact_where_it_can_be_enumerated():
    a, b = np.zeros((1, 6)), np.array([[0.5, 0.25, -0.125, 0.75, 0.375, 0.0625]])
    gaps = b[0]
    means = [np.mean(gaps * np.array(signs)) for signs in itertools.product((1, -1), repeat=6)]
    p = min(1.0, 2 * np.mean(np.array(means) >= gaps.mean() - 1e-12))
    assert paired(a, b).difference.p == pytest.approx(p)


@pytest.mark.parametrize("problems", [12, 60, 800])
def test_the_paired_interval_and_test_are_scipys(problems):
    rng = np.random.default_rng(4)
    a, b = rng.binomial(8, 0.4, (1, problems)) / 8, rng.binomial(8, 0.45, (1, problems)) / 8
    found = paired(a, b, draws=9_999).difference
    gaps, options = (b - a)[0], {"n_resamples": 9_999, "rng": np.random.default_rng(0), "batch": 500}
    interval = stats.bootstrap((gaps,), np.mean, method="percentile" if problems > 100 else "BCa", **options)
    spread = np.ptp(interval.confidence_interval)
    assert (found.low, found.high) == pytest.approx(tuple(interval.confidence_interval), abs=0.04 * spread)
    options["n_resamples"] = np.inf if problems == 12 else 9_999
    test = stats.permutation_test((gaps,), np.mean, permutation_type="samples", **options)
    assert found.p == pytest.approx(test.pvalue, abs=1e-9 if problems == 12 else 0.02)


def test_pairs_count_every_problem_once():
    a = np.array([[0.0, 0.5, 0.25, 0.0, 1.0], [0.0, 0.5, 0.25, 0.0, 1.0]])
    b = np.array([[0.5, 0.5, 0.0, 0.0, 1.0], [0.0, 0.5, 0.0, 0.0, 1.0]])
    found = paired(a, b)
    assert (found.wins, found.ties, found.losses) == (1, 3, 1)
    assert (found.both, found.only_first, found.only_second, found.neither) == (2, 1, 1, 1)
    assert found.difference.value == pytest.approx((0.25 - 0.25) / 5)


def test_the_paired_interval_covers_the_truth():
    rng, inside = np.random.default_rng(5), 0
    for trial in range(200):
        gaps = rng.exponential(1.0, 40) - 0.6
        found = paired(np.zeros((1, 40)), gaps[None], draws=499, seed=trial).difference
        inside += found.low < 0.4 < found.high
    assert 0.88 <= inside / 200 <= 0.98


def test_solved_by_one_only_is_the_exact_binomial():
    assert solved_by_one_only(0, 0) == 1.0
    assert solved_by_one_only(0, 5) == pytest.approx(2 / 2**5)
    assert solved_by_one_only(3, 3) == pytest.approx(1.0)


def test_false_discovery_is_benjamini_hochberg_by_hand():
    ps = [0.01, 0.04, 0.03, 0.5]
    order = np.argsort(ps)
    by_hand, worst = np.empty(4), 1.0
    for rank in range(4, 0, -1):
        worst = min(worst, ps[order[rank - 1]] * 4 / rank)
        by_hand[order[rank - 1]] = worst
    assert false_discovery(ps) == pytest.approx(by_hand.tolist())
    with_gap = false_discovery([0.01, float("nan"), 0.04])
    assert with_gap[::2] == pytest.approx([0.02, 0.04]) and np.isnan(with_gap[1])

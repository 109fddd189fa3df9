"""Statistics of the report against scipy, closed forms, enumeration and simulation with a known truth."""

import itertools

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_ind

from analysis.intervals import two_level
from analysis.power import detectable, seeds_needed
from analysis.statistics import equivalence, false_discovery, holm, p_text, paired, solved_by_one_only, welch


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
    assert (found.gap, found.low, found.high) == pytest.approx((gap, gap - half, gap + half))
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


def test_the_permutation_test_is_exact_where_it_can_be_enumerated():
    a, b = np.zeros((1, 6)), np.array([[0.5, 0.25, -0.125, 0.75, 0.375, 0.0625]])
    gaps = b[0]
    means = [np.mean(gaps * np.array(signs)) for signs in itertools.product((1, -1), repeat=6)]
    p = min(1.0, 2 * np.mean(np.array(means) >= gaps.mean() - 1e-12))
    assert paired(a, b).p == pytest.approx(p)


@pytest.mark.parametrize("problems", [12, 60, 800])
def test_the_paired_interval_and_test_are_scipys(problems):
    rng = np.random.default_rng(4)
    a, b = rng.binomial(8, 0.4, (1, problems)) / 8, rng.binomial(8, 0.45, (1, problems)) / 8
    found = paired(a, b, draws=9_999)
    if problems > 12:  # enough that differ to need no steadying
        interval = stats.ttest_rel(b[0], a[0]).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx(tuple(interval), abs=1e-3)
    options = {"n_resamples": np.inf if problems == 12 else 9_999, "rng": np.random.default_rng(0), "batch": 500}
    test = stats.permutation_test(((b - a)[0],), np.mean, permutation_type="samples", **options)
    assert found.p == pytest.approx(test.pvalue, abs=1e-9 if problems == 12 else 0.02)


def test_one_seed_may_be_one_row_and_more_dimensions_are_refused():
    a, b = np.array([0.0, 0.5, 1.0]), np.array([0.5, 0.5, 0.5])
    assert paired(a, b) == paired(a[None], b[None]) and two_level(a, b) == two_level(a[None], b[None])
    cube = np.zeros((2, 2, 2))
    for wrong in (lambda: paired(cube, cube), lambda: two_level(None, cube), lambda: seeds_needed(1, cube, cube)):
        with pytest.raises(ValueError, match=r"need \(S, P\) or \(P,\)"):
            wrong()
    for wrong in (welch, detectable, lambda one, two: equivalence(one, two, 1.0)):
        with pytest.raises(ValueError, match="one per training seed"):
            wrong(cube[0], cube[0])


def test_pairs_count_every_problem_once():
    a = np.array([[0.0, 0.5, 0.25, 0.0, 1.0, 0.5], [0.0, 0.5, 0.25, 0.0, 1.0, 0.5]])
    b = np.array([[0.5, 0.5, 0.0, 0.0, 1.0, 0.0], [0.0, 0.5, 0.0, 0.0, 1.0, 0.0]])
    found = paired(a, b)
    assert (found.wins, found.ties, found.losses) == (1, 3, 2)
    assert (found.both, found.only_other, found.only_it, found.neither) == (2, 2, 1, 1)
    assert found.gap == pytest.approx((0.25 - 0.25 - 0.5) / 6)


def test_solved_by_one_only_is_the_exact_binomial():
    assert solved_by_one_only(0, 0) == 1.0
    assert solved_by_one_only(0, 5) == pytest.approx(2 / 2**5)
    assert solved_by_one_only(3, 3) == pytest.approx(1.0)


def test_corrections_for_several_comparisons_are_those_of_statsmodels():
    ps = np.random.default_rng(3).random(12) ** 3
    assert false_discovery(ps.tolist()) == pytest.approx(multipletests(ps, method="fdr_bh")[1])
    assert holm(ps.tolist()) == pytest.approx(multipletests(ps, method="holm")[1])
    with_gap = false_discovery([0.01, float("nan"), 0.04])
    assert with_gap[::2] == pytest.approx([0.02, 0.04]) and np.isnan(with_gap[1])
    with_gap = holm([0.01, float("nan"), 0.02])
    assert with_gap[::2] == pytest.approx([0.03, 0.04]) and np.isnan(with_gap[1]), "what was declared counts"


@pytest.mark.parametrize("margin", [0.5, 1.0, 3.0])
def test_equivalence_is_two_one_sided_tests_as_statsmodels_makes_them(margin):
    a, b = np.array([1.0, 2.0, 4.0]), np.array([2.0, 2.5, 2.2, 3.0])
    p, *_ = ttost_ind(b, a, -margin, margin, usevar="unequal")
    assert equivalence(a, b, margin) == pytest.approx(p)
    assert np.isnan(equivalence([1.0], b, margin))


@pytest.mark.parametrize("gap", [0.99, 1.2])
def test_arms_that_differ_by_the_margin_are_called_equivalent_in_at_most_one_of_twenty(gap):
    rng = np.random.default_rng(8)
    found = [equivalence(rng.normal(0, 0.3, 4), rng.normal(gap, 0.3, 4), 0.99) < 0.05 for _ in range(2000)]
    assert np.mean(found) <= 0.06


def test_no_p_value_is_told_as_zero():
    assert (p_text(0.0), p_text(0.00099), p_text(0.00101), p_text(1.0)) == (
        "p < 0.001",
        "p < 0.001",
        "p = 0.001",
        "p = 1.000",
    )

"""pass@k and its companions against enumeration, exact fractions and the theory of the mean."""

import itertools
import json
import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from ngrpo.evaluation.passk import boot_best_at_k, k_grid, mean_interval, paired_interval, pass_at_k, summarize


def test_pass_at_k_counts_the_subsets_that_hold_a_correct_sample():
    for n in range(1, 11):
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(range(n), k))
            counted = [sum(min(s) < c for s in subsets) / len(subsets) for c in range(n + 1)]
            np.testing.assert_allclose(pass_at_k(n, np.arange(n + 1), k), counted, rtol=0, atol=1e-15)


@pytest.mark.parametrize("n", [32, 256])
def test_pass_at_k_is_the_exact_fraction_rounded_once(n):
    for k in k_grid(n):
        exact = [float(1 - Fraction(math.comb(n - c, k), math.comb(n, k))) for c in range(n + 1)]
        assert pass_at_k(n, np.arange(n + 1), k).tolist() == exact


def test_pass_at_k_takes_any_shape_and_a_number_of_samples_for_each_problem():
    c = np.array([[0, 1, 2], [3, 4, 4]])
    n = np.array([[4, 8, 16], [32, 4, 5]])
    pairs = np.stack([c, n], axis=-1).tolist()
    expected = [[1 - math.comb(b - a, 3) / math.comb(b, 3) for a, b in row] for row in pairs]
    np.testing.assert_allclose(pass_at_k(n, c, 3), expected, rtol=0, atol=1e-15)
    assert pass_at_k(4, 2, 4).shape == () and pass_at_k(4, np.zeros((0, 2), int), 2).shape == (0, 2)


@pytest.mark.parametrize(
    ("n", "c", "k", "words"),
    [
        (8, [1, 2], 9, "pass@9 needs at least k=9 samples"),
        ([8, 8, 4], [1, 2, 0], 5, "got n=4"),
        ([8, 8], [1, 2, 3], 2, "shape"),
        (8, [1, 9], 2, "0 <= c <= n"),
        (8, [-1], 2, "0 <= c <= n"),
        (0, [0], 1, "n >= 1"),
        (8, [1], 0, "at least 1"),
        (8, [0.5], 1, "whole numbers"),
        (8, [float("nan")], 1, "whole numbers"),
        (8, ["1"], 1, "whole numbers"),
    ],
)
def test_impossible_counts_are_refused_in_one_line(n, c, k, words):
    with pytest.raises(ValueError, match=words) as error:
        pass_at_k(n, c, k)
    assert "\n" not in str(error.value)


def test_boot_best_counts_the_draws_with_replacement():
    for n, k in itertools.product(range(1, 6), range(1, 6)):
        draws = list(itertools.product(range(n), repeat=k))
        counted = [sum(min(d) < c for d in draws) / len(draws) for c in range(n + 1)]
        np.testing.assert_allclose(boot_best_at_k(n, np.arange(n + 1), k), counted, rtol=0, atol=1e-12)


def test_boot_best_has_the_values_behind_the_published_ones():
    # One correct sample in 960 (30 problems, 32 samples) gives 1.33 and 2.13 %, unbiased 1.67 and 3.33 %.
    c = np.array([1] + [0] * 29)
    published = [round(float(100 * boot_best_at_k(32, c, k).mean()), 2) for k in (16, 32)]
    unbiased = [round(float(100 * pass_at_k(32, c, k).mean()), 2) for k in (16, 32)]
    assert (published, unbiased) == ([1.33, 2.13], [1.67, 3.33])


def test_best_of_k_grows_with_k_and_c_and_the_bootstrap_stays_below():
    c = np.arange(33)
    unbiased = np.stack([pass_at_k(32, c, k) for k in range(1, 33)])
    bootstrap = np.stack([boot_best_at_k(32, c, k) for k in range(1, 33)])
    assert (np.diff(unbiased, axis=0) >= 0).all() and (np.diff(unbiased, axis=1) >= 0).all()
    apart = (bootstrap < 1 - 1e-9) & (bootstrap > 0) & (np.arange(1, 33)[:, None] > 1)
    assert (bootstrap <= unbiased + 1e-15).all() and (bootstrap < unbiased)[apart].all() and apart.sum() > 700
    np.testing.assert_allclose(bootstrap[0], unbiased[0], rtol=0, atol=1e-15)


@pytest.mark.parametrize(("n", "grid"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (24, [1, 2, 4, 8, 16, 24])])
def test_the_grid_doubles_and_ends_with_n(n, grid):
    assert k_grid(n) == grid
    with pytest.raises(ValueError, match="n=0"):
        k_grid(0)


def test_the_interval_of_many_problems_is_that_of_the_normal_law():
    values = np.random.default_rng(1).random((2000, 2))
    for level, z in ((0.95, 1.959964), (0.8, 1.281552)):
        low, high = mean_interval(values, level)
        np.testing.assert_allclose((high - low) / 2, z * values.std(axis=0) / math.sqrt(2000), rtol=0.01)
        np.testing.assert_allclose((high + low) / 2, values.mean(axis=0), atol=0.002)


def test_the_interval_is_students_t_with_a_share_of_a_problem_all_right_and_one_all_wrong():
    values = np.random.default_rng(3).random((12, 4))
    found = np.array(mean_interval(values))
    for column in range(4):
        kurtosis = stats.kurtosis(values[:, column], fisher=False)
        weights = np.append(np.ones(12), 2 * [np.exp(-12 / kurtosis / 12)])
        more = np.append(values[:, column], [0, 1])
        mean = np.average(more, weights=weights)
        variance = (weights * (more - mean) ** 2).sum() / (weights.sum() - 1) / weights.sum()
        expected = stats.t.interval(0.95, weights.sum() - 1, mean, np.sqrt(variance))
        np.testing.assert_allclose(found[:, column], np.clip(expected, 0, 1), atol=1e-12)
        np.testing.assert_allclose(
            np.divide(mean_interval(100 * values[:, column], top=100), 100), expected, atol=1e-12
        )


@pytest.mark.parametrize("problems", [30, 120])
def test_an_interval_at_the_end_of_the_scale_is_about_that_of_clopper_and_pearson(problems):
    for right in (0, problems):
        low, high = mean_interval(np.repeat(float(right > 0), problems))
        exact = proportion_confint(right, problems, method="beta")
        assert (low == 0, high == 1) == (right == 0, right > 0)
        assert high - low == pytest.approx(exact[1] - exact[0], rel=0.25) and high - low > 0


@pytest.mark.parametrize(("a", "b"), [(1, 1), (8, 0.5), (0.3, 3)])
@pytest.mark.parametrize("k", [1, 8, 32])
def test_the_interval_covers_the_mean_over_the_population(a, b, k):
    """2,000 benchmarks of 48 problems with 32 samples; the truth of beta rates is 1 - B(a, b + k) / B(a, b)."""
    rng = np.random.default_rng(2)
    truth = 1 - math.exp(math.lgamma(b + k) + math.lgamma(a + b) - math.lgamma(b) - math.lgamma(a + b + k))
    values = pass_at_k(32, rng.binomial(32, rng.beta(a, b, (48, 2000))), k)
    low, high = mean_interval(values)
    assert np.mean((low <= truth) & (truth <= high)) >= 0.93


def test_a_pairing_takes_away_what_the_problems_have_in_common():
    generator = np.random.default_rng(5)
    before = generator.random(200)
    after = before + generator.normal(0.02, 0.01, 200)
    low, high = paired_interval(before, after)
    assert 0.017 < low < np.mean(after - before) < high < 0.023
    np.testing.assert_allclose(paired_interval(after, before), (-high, -low), atol=1e-12)
    expected = stats.ttest_rel(after, before).confidence_interval(0.95)
    np.testing.assert_allclose((low, high), expected, atol=1e-6)


@pytest.mark.parametrize("differ", [0, 1, 2])
@pytest.mark.parametrize("gap", [0.0, 1.0])
def test_an_interval_of_differences_never_collapses(differ, gap):
    before, after = np.zeros(48), np.full(48, gap)
    after[:differ] = 1 - gap
    low, high = paired_interval(before, after)
    assert high - low > 0.05 and low <= np.mean(after - before) <= high
    assert low >= -1 and high <= 1


@pytest.mark.parametrize(("a", "b"), [(1, 1), (8, 0.5), (0.3, 3)])
@pytest.mark.parametrize("k", [1, 8, 32])
def test_the_interval_of_differences_covers_the_mean_over_the_population(a, b, k):
    """2,000 pairs of checkpoints whose problems differ by 0.3 logits and noise, 48 problems, 32 samples."""
    rng = np.random.default_rng(4)

    def pair(size):
        p = rng.beta(a, b, size).clip(1e-12, 1 - 1e-12)
        return p, 1 / (1 + (1 - p) / p * np.exp(rng.normal(-0.3, 0.3, size)))

    p, q = pair(400_000)
    truth = np.mean((1 - p) ** k - (1 - q) ** k)
    before, after = (pass_at_k(32, rng.binomial(32, rates), k) for rates in pair((48, 2000)))
    low, high = paired_interval(before, after)
    assert np.mean((low <= truth) & (truth <= high)) >= 0.93


def test_one_problem_has_no_interval():
    assert np.isnan(mean_interval([0.5])).all() and np.isnan(paired_interval([0.5], [1.0])).all()
    assert np.isnan(mean_interval([[0.5, 1.0]])).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean_interval([]), "at least one problem"),
        (lambda: mean_interval(np.zeros((2, 2, 2))), "shape"),
        (lambda: mean_interval([1.0, math.nan]), "finite"),
        (lambda: mean_interval([1.0, 0.0], level=95), "level=95"),
        (lambda: paired_interval([1.0, 0.0], [1.0]), "same problems"),
        (lambda: summarize([1, 0]), "table"),
        (lambda: summarize([[1, 2]]), "table"),
        (lambda: summarize(np.zeros((0, 4))), "table"),
        (lambda: summarize([[1, 0]], outcomes={"correct": 1}), "add up to P·n = 2"),
    ],
)
def test_what_is_no_table_of_problems_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_summary_holds_plain_numbers_that_agree_with_the_estimators():
    correct = np.random.default_rng(6).random((40, 12)) < np.linspace(0, 1, 40)[:, None]
    hits = int(correct.sum())
    entry = summarize(correct, outcomes={"correct": hits, "wrong": 480 - hits})
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert list(entry) == ["n_problems", "n_samples", "mean@n", "pass@k", "boot_best@k", "outcomes"]
    assert (entry["n_problems"], entry["n_samples"]) == (40, 12)
    assert list(entry["pass@k"]) == list(entry["boot_best@k"]) == ["1", "2", "4", "8", "12"]
    assert entry["outcomes"] == {"correct": hits / 480, "wrong": 1 - hits / 480}
    c = correct.sum(axis=1)
    for k, found in entry["pass@k"].items():
        assert found["value"] == pytest.approx(pass_at_k(12, c, int(k)).mean(), abs=1e-14)
        interval = mean_interval(pass_at_k(12, c, int(k)))
        np.testing.assert_allclose([found["low"], found["high"]], interval, rtol=0, atol=1e-12)
        assert found["low"] < found["value"] < found["high"]
    assert entry["mean@n"] == pytest.approx(entry["pass@k"]["1"], abs=1e-12)
    assert entry["boot_best@k"]["12"]["value"] == pytest.approx(boot_best_at_k(12, c, 12).mean(), abs=1e-14)


def test_the_estimators_need_numpy_alone():
    code = "import sys, ngrpo.evaluation.passk; print({'torch', 'pandas', 'scipy', 'hydra'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

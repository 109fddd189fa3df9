"""Bands over whole pass@k curves: real counts, the published package as an oracle, simulations with a known truth."""

import json

import numpy as np
import passk_inference
import pytest
from places import REPOSITORY
from scipy import stats

from analysis.bands import NEITHER, Curve, curves, every_k, paired_curves
from ngrpo.evaluation.passk import paired_interval, pass_at_k

COUNTS = REPOSITORY / "tests" / "data" / "deepscaler32k"


def compared(n: int, first: np.ndarray, second: np.ndarray, top: float = 100.0, ks=None, **options) -> Curve:
    """The curve of the difference from (S, P) right answers of n."""
    chosen = list(ks or range(1, n + 1))
    return paired_curves(chosen, *(curves(n, counts, chosen, top) for counts in (first, second)), top=top, **options)


@pytest.fixture(scope="module")
def real():
    """(1, 1060) right answers of 128, of the base model and after reinforcement learning."""
    found = [
        {row["id"]: row["c"] for row in map(json.loads, (COUNTS / name).read_text("utf-8").splitlines())}
        for name in ("base.jsonl", "rl.jsonl")
    ]
    return [np.array([[counts[problem] for problem in found[0]]]) for counts in found]


def test_real_counts_gain_at_small_k_and_lose_at_large_k(real):
    (gain,), (loss,) = (compared(128, *real).stretches(verdict) for verdict in ("gains", "loses"))
    assert gain == (1, pytest.approx(10, abs=1)) and loss == (pytest.approx(61, abs=3), 128)


def test_the_band_over_problems_is_that_of_the_published_package(real):
    found = compared(128, *real, top=1.0)
    known = passk_inference.compare(*(x for counts in real for x in (counts[0], 128)))
    np.testing.assert_allclose(found.value, known["mean"], atol=1e-14)
    np.testing.assert_allclose(found.low, known["lower"], atol=5e-4)
    np.testing.assert_allclose(found.high, known["upper"], atol=5e-4)


def test_swapped_arms_turn_the_curve_around(real):
    one, other = compared(128, *real), compared(128, *real[::-1])
    np.testing.assert_allclose(one.value, -other.value, atol=1e-12)
    np.testing.assert_allclose(one.low, -other.high, atol=1e-9)
    assert one.stretches("gains") == other.stretches("loses")


def test_a_curve_is_pass_at_k_and_a_single_k_has_the_interval_of_one():
    counts = np.random.default_rng(0).binomial(8, 0.4, (2, 1, 300))
    made = curves(8, counts[0], [1, 3, 8], top=1.0)
    for place, k in enumerate((1, 3, 8)):
        np.testing.assert_allclose(made[:, :, place], pass_at_k(8, counts[0], k), atol=1e-15)
    found = compared(8, *counts, ks=[3], top=1.0, draws=200_000)
    low, high = paired_interval(pass_at_k(8, counts[0][0], 3), pass_at_k(8, counts[1][0], 3))
    assert (found.low[0], found.high[0]) == pytest.approx((float(low), float(high)), abs=5e-4)


def test_curves_are_exact_for_many_samples_and_k_are_thinned_out_beyond_what_is_drawn():
    every = every_k(5000)
    assert every_k(256) == list(range(1, 257)) and len(every) <= 256 and (every[0], every[-1]) == (1, 5000)
    counts = np.array([[0, 1, 7, 2500, 4999, 5000]])
    made = curves(5000, counts, every, top=1.0)
    for place in (0, 100, len(every) - 1):
        np.testing.assert_allclose(made[:, :, place], pass_at_k(5000, counts, every[place]), atol=1e-12)


def test_bands_do_not_collapse():
    counts = np.full((2, 1, 40), 8)
    found = compared(8, counts[0], counts[1])
    assert (found.low < 0).all() and (found.high > 0).all() and set(found.verdicts) == {NEITHER}


def test_stretches_are_unbroken_runs_of_one_verdict():
    low, high = np.array([1, 1, -1, -2, 2, -3, -3]), np.array([2, 2, 1, 1, 3, -1, -1])
    curve = Curve([1, 2, 4, 8, 16, 32, 64], (low + high) / 2, low, high)
    assert curve.stretches("gains") == [(1, 2), (16, 16)] and curve.stretches("loses") == [(32, 64)]
    assert curve.stretches(NEITHER) == [(4, 8)]


NODES = np.linspace(-8, 8, 801)
WEIGHTS = stats.norm.pdf(NODES) / stats.norm.pdf(NODES).sum()


def cover(problems: int, seeds: int, spread: float, shift: float, draws: int) -> float:
    """How often the whole true curve of a difference lies within the band, 32 samples a problem."""
    rng, inside, ks = np.random.default_rng(1), 0, np.arange(1, 33)

    def curve(shift):
        rates = 1 / (1 + np.exp(-(shift + np.hypot(1.5, spread) * NODES)))
        return WEIGHTS @ (1 - (1 - rates[:, None]) ** ks)

    def arm(difficulty, shift):
        return rng.binomial(32, 1 / (1 + np.exp(-(difficulty + shift + spread * rng.normal(size=(seeds, 1))))))

    for _ in range(draws):
        difficulty = rng.normal(0, 1.5, (1, problems))
        pair = arm(difficulty, 0.0), arm(difficulty, shift)
        found = compared(32, *pair, training_runs=seeds > 1, top=1.0, draws=1000)
        truth = curve(shift) - curve(0.0)
        inside += bool(((found.low <= truth) & (truth <= found.high)).all())
    return inside / draws


@pytest.mark.parametrize(("problems", "seeds", "spread", "shift"), [(48, 1, 0.0, 0.3), (48, 3, 0.2, 0.0)])
def test_the_band_holds_the_whole_curve(problems, seeds, spread, shift):
    assert cover(problems, seeds, spread, shift, 300) >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 0.3])
@pytest.mark.parametrize(("problems", "seeds", "spread"), [(120, 1, 0.0), (200, 3, 0.2), (48, 3, 0.5), (120, 5, 0.2)])
def test_the_band_holds_the_whole_curve_in_a_thousand_draws(problems, seeds, spread, shift):
    assert cover(problems, seeds, spread, shift, 1000) >= 0.93

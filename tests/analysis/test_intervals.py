"""Intervals of runs against the analysis of variance and simulations with a known truth."""

import numpy as np
import pytest
from scipy import stats

from analysis.intervals import parts, two_level
from ngrpo.evaluation.passk import mean_interval, paired_interval, pass_at_k, steadied_mean

NODES = np.linspace(-8, 8, 2001)
WEIGHTS = stats.norm.pdf(NODES) / stats.norm.pdf(NODES).sum()


def truth(k: int, level: float, shift: float, spread: float) -> float:
    """Mean of pass@k over problems N(level, 1.5) and seeds N(shift, spread) in logits."""
    rates = 1 / (1 + np.exp(-(level + shift + np.hypot(1.5, spread) * NODES)))
    return float(WEIGHTS @ (1 - (1 - rates) ** k))


def coverage(seeds: int, problems: int, spread: float, k: int, level: float, draws: int = 1000) -> np.ndarray:
    """How often the intervals of one arm, of two equal ones, and of two that differ by half a logit hold the truth."""
    rng, inside = np.random.default_rng(1), np.zeros(3)
    known = pass_at_k(32, np.arange(33), k)
    one, shifted = (truth(k, level, shift, spread) for shift in (0.0, 0.5))

    def arm(difficulty, shift=0.0):
        logits = difficulty + shift + spread * rng.normal(size=(seeds, 1))
        return known[rng.binomial(32, 1 / (1 + np.exp(-logits)))]

    for _ in range(draws):
        difficulty = rng.normal(level, 1.5, (1, problems))
        a, b, c = arm(difficulty), arm(difficulty), arm(difficulty, 0.5)
        for place, (pair, value) in enumerate((((None, a), one), ((a, b), 0.0), ((a, c), shifted - one))):
            low, high = two_level(*pair)
            inside[place] += low <= value <= high
    return inside / draws


@pytest.mark.parametrize("spread", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("seeds", [2, 3])
def test_the_two_level_interval_covers_the_truth(seeds, spread):
    found = coverage(seeds, 48, spread, k=1, level=0.0)
    assert (found >= 0.93).all() and (found[:1] <= 0.99).all(), found


def test_it_covers_near_the_ceiling():
    assert (coverage(3, 48, 0.2, k=8, level=3.0) >= 0.93).all()


def test_the_two_level_interval_is_made_of_the_analysis_of_variance():
    rng = np.random.default_rng(2)
    values = rng.random((4, 30)) * 0.5 + rng.random((4, 1)) * 0.5
    mean = values.mean()
    of_seeds = 30 * ((values.mean(axis=1) - mean) ** 2).sum() / 3
    center, of_problems, df = map(float, steadied_mean(values.mean(axis=0)))
    rest = (((values - mean) ** 2).sum() - 4 * ((values.mean(axis=0) - mean) ** 2).sum() - 3 * of_seeds) / (29 * 3)
    variances = (of_seeds - rest) / (4 * 30), of_problems
    half = np.sqrt(sum(stats.t.ppf(0.975, df) ** 2 * v for df, v in zip((3, df), variances, strict=True)))
    assert two_level(None, values) == pytest.approx((max(center - half, 0), min(center + half, 1)))
    low, high = two_level(None, 100 * values, top=100)
    assert (low / 100, high / 100) == pytest.approx(two_level(None, values))


def test_one_seed_leaves_the_interval_over_problems():
    a, b = np.random.default_rng(3).random((2, 1, 20))
    assert two_level(None, a) == pytest.approx(tuple(map(float, mean_interval(a[0]))))
    assert two_level(a, b) == pytest.approx(tuple(map(float, paired_interval(a[0], b[0]))))
    assert np.isnan(two_level(None, a[:, :1])).all()
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        two_level(np.zeros((2, 3)), np.zeros((2, 4)))


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_no_interval_collapses_where_all_is_right_or_wrong(level):
    values = np.full((3, 48), level)
    for arms in ((None, values), (values, values), (1 - values, values)):
        low, high = two_level(*arms)
        assert 0.03 < high - low < 0.2
        assert low <= values.mean() - (0 if arms[0] is None else arms[0].mean()) <= high


def test_several_values_side_by_side_are_those_one_by_one():
    arms = [np.random.default_rng(seed).random((3, 20, 5)) for seed in (4, 5)]
    together = parts(arms)
    for k in range(5):
        alone = parts([values[:, :, k] for values in arms])
        for name in ("center", "of_problems", "df_problems", "of_seeds", "df_seeds"):
            assert getattr(together, name)[k] == pytest.approx(getattr(alone, name))


@pytest.mark.parametrize("problems", [30, 48, 100, 500])
def test_a_few_problems_that_change_all_one_way_are_covered(problems):
    """Exactly: gaps of +1 with chance q and 0 otherwise, whatever q is; Student's t covers next to nothing there."""
    counts = np.arange(problems + 1)
    gaps = (np.arange(problems)[:, None] < counts).astype(float)
    low, high = paired_interval(np.zeros_like(gaps), gaps)
    chances = np.linspace(0.1 / problems, min(0.5, 40 / problems), 200)
    held = [float((stats.binom.pmf(counts, problems, q) * ((low <= q) & (q <= high))).sum()) for q in chances]
    assert min(held) >= 0.92 and np.mean(held) >= 0.94

"""Weights for an engine that differs from the policy: worked values, an independent computation, and what they never do."""

import math

import numpy as np
import pytest
import torch

from ngrpo.algorithm.algorithm import Algorithm
from ngrpo.algorithm.correction import LARGE_GAP, Correction, large_gap, settled
from ngrpo.algorithm.inputs import LossInputs, TokenLoss
from ngrpo.targets import SettingsError

OLD, ENGINE = torch.tensor([[-1.0, -2.0, -0.5, -3.0]]), torch.tensor([[-1.2, -3.5, -0.4, -0.5]])
ALL = torch.ones(1, 4, dtype=torch.bool)
RHO, PRODUCT = [1.221403, 4.481689, 0.904837, 0.082085], 0.406570
ALL_STAY, NONE_STAYS = [True] * 4, [False] * 4
# kind, level, bounds, measure: weights and what stays, of the worked example of the sources (verl, TRL, SkyRL)
WORKED = {
    ("tis", "token", 0.0, 2.0, "ratio"): ([1.221403, 2.0, 0.904837, 0.082085], ALL_STAY),
    ("mis", "token", 0.0, 2.0, "ratio"): ([1.221403, 0.0, 0.904837, 0.082085], ALL_STAY),
    ("mis", "token", 0.5, 5.0, "ratio"): ([1.221403, 4.481689, 0.904837, 0.0], ALL_STAY),  # IcePop
    ("tis", "sequence", 0.0, 2.0, "ratio"): ([PRODUCT] * 4, ALL_STAY),
    ("mis", "sequence", 0.0, 3.0, "ratio"): ([PRODUCT] * 4, ALL_STAY),  # TRL's sequence_mask
    ("tis", "mean", 0.0, 2.0, "ratio"): ([0.798516] * 4, ALL_STAY),
    ("rejection", "token", 0.5, 2.0, "ratio"): ([1.0] * 4, [True, False, True, False]),
    ("rejection", "mean", 0.999, 1.001, "ratio"): ([1.0] * 4, NONE_STAYS),
    ("rejection", "mean", 0.79, 1.001, "ratio"): ([1.0] * 4, ALL_STAY),
    ("rejection_tis", "sequence", 0.5, 2.0, "ratio"): ([PRODUCT] * 4, NONE_STAYS),  # verl's sequence MIS
    ("rejection", "mean", 0.0, 0.897505, "k3"): ([1.0] * 4, ALL_STAY),
    ("rejection", "mean", 0.0, 0.897503, "k3"): ([1.0] * 4, NONE_STAYS),
    ("rejection", "mean", 0.0, 1.068751, "k2"): ([1.0] * 4, ALL_STAY),
    ("rejection", "mean", 0.0, 1.068749, "k2"): ([1.0] * 4, NONE_STAYS),
    ("none", "token", 0.0, 2.0, "ratio"): ([1.0] * 4, ALL_STAY),
    ("bypass", "token", 0.0, 2.0, "ratio"): ([1.0] * 4, ALL_STAY),
}


def correction(case, **more) -> Correction:
    kind, level, floor, cap, measure = case
    return Correction(kind, level, cap, floor, measure, **more)


@pytest.mark.parametrize("case", WORKED)
def test_worked_values(case):
    weights, kept = correction(case).weigh(OLD, ENGINE, ALL)
    np.testing.assert_allclose(weights[0], WORKED[case][0], atol=1e-6)
    assert kept[0].tolist() == WORKED[case][1]


def test_a_mean_of_one():
    own = Correction("tis", normalize=True)
    weights = own.normalized(own.weigh(OLD, ENGINE, ALL)[0], ALL, lambda sizes: sizes)
    np.testing.assert_allclose(weights[0], [1.160940, 1.900994, 0.860045, 0.078022], atol=1e-6)
    answers = Correction("tis", "sequence", normalize=True)
    old, engine = torch.tensor([[-1.0, -1.0, -9.0], [-1.0, -9.0, -9.0]]), torch.full((2, 3), -1.2)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    weights = answers.normalized(answers.weigh(old, engine, mask)[0], mask, lambda sizes: sizes)
    two, one = math.exp(0.4), math.exp(0.2)  # a mean over answers, of whatever length
    np.testing.assert_allclose(weights[:, 0], [2 * two / (two + one), 2 * one / (two + one)], rtol=1e-6)
    assert (Correction("mis", cap=1e-9, normalize=True).normalized(torch.zeros(1, 4), ALL, lambda s: s) == 0).all()


KINDS, LEVELS = ("tis", "mis", "rejection", "rejection_tis"), ("token", "sequence", "mean")
SENSIBLE = [(kind, level, "ratio") for kind in KINDS for level in LEVELS]
SENSIBLE += [("rejection", level, measure) for level in (*LEVELS, "max") for measure in ("k2", "k3")]


@pytest.mark.parametrize(("kind", "level", "measure"), SENSIBLE)
def test_every_weight_is_that_of_the_definition(kind, level, measure):
    """One number at a time, float64, with rows of several lengths."""
    generator = np.random.default_rng(0)
    old = -generator.exponential(2.0, (24, 11))
    rollout = old + generator.normal(0, 0.4, old.shape)
    rollout[0, 0], rollout[1, :] = old[0, 0] - 50, old[1, :] - 9  # beyond where an exponential is worth taking
    mask = np.arange(11)[None] < generator.integers(1, 12, 24)[:, None]
    floor, cap = (0.7, 1.5) if measure == "ratio" else (0.0, {"token": 0.05, "max": 0.2}.get(level, 0.3))
    pool = {"token": lambda v: v[0], "sequence": math.fsum, "mean": lambda v: math.fsum(v) / len(v), "max": max}[level]
    weights, stays = np.ones_like(old), np.ones(old.shape, dtype=bool)
    for row, time in np.ndindex(old.shape):
        places = [t for t in ([time] if level == "token" else range(11)) if mask[row, t]]
        off = [old[row, t] - rollout[row, t] for t in places] or [0.0]
        near = [max(min(d, 20.0), -20.0) for d in off]
        if measure == "ratio":
            looked = weight = math.exp(max(min(pool(off), 20.0), -20.0))
        else:
            looked, weight = pool([d * d / 2 if measure == "k2" else math.exp(d) - 1 - d for d in near]), 1.0
        inside = floor <= looked <= cap
        stays[row, time] = inside or not kind.startswith("rejection")
        weights[row, time] = {"mis": weight * inside, "rejection": 1.0}.get(kind, min(weight, cap))
    given = [torch.from_numpy(value) for value in (old, rollout, mask)]
    found, kept = Correction(kind, level, cap, floor, measure).weigh(*given)
    np.testing.assert_allclose(found, weights, rtol=1e-12)
    assert kept.tolist() == stays.tolist() and (kind in ("tis", "mis") or 0 < stays[mask].mean() < 1)


@pytest.mark.parametrize("case", [case for case in WORKED if case[2] <= 1 <= case[3]])
def test_the_same_engine_weighs_every_token_with_one(case):
    weights, kept = correction(case).weigh(OLD, OLD, ALL)
    assert (weights == 1).all() and kept.all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "tis", "measure": "k3"}, "correction_measure=k3"),
        ({"kind": "rejection", "level": "max"}, "correction_level=max"),
        ({"kind": "mis", "floor": 3.0}, "correction_floor=3"),
        ({"kind": "rejection", "normalize": True}, "correction_normalize=true"),
    ],
)
def test_what_does_not_go_together_is_one_line(given, words):
    with pytest.raises(SettingsError, match=words):
        Correction(**given)
    named = {f"correction_{name}" if name != "kind" else "correction": value for name, value in given.items()}
    with pytest.raises(SettingsError, match=words):
        Algorithm(lambda rewards: rewards, lambda inputs: None, "token_mean", {"coefficient": 0.0}, **named)  # pyright: ignore


def inputs(weights):
    log_probs = OLD.clone().requires_grad_()
    return LossInputs(log_probs, OLD, torch.ones_like(OLD), ALL, correction=weights)


def test_weights_multiply_the_policy_s_loss_after_its_clip_and_neither_the_kl_nor_the_entropy_bonus():
    weights, _ = Correction("tis").weigh(OLD, ENGINE, ALL)
    kl = {"coefficient": 0.5, "estimator": "k1", "placement": "loss"}

    def loss(inputs):
        return TokenLoss(3 * inputs.log_probs, torch.ones_like(inputs.mask))

    algorithm = Algorithm(lambda rewards: rewards, loss, "token_mean", kl, correction="tis")
    (found, _), divergence = algorithm.token_loss(inputs(weights), ENGINE)
    expected = 3 * OLD.double() * weights.double() + 0.5 * (OLD.double() - ENGINE.double())
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-6)
    np.testing.assert_allclose(divergence, OLD - ENGINE, rtol=1e-6)


def test_nothing_is_corrected_unless_asked_and_weights_have_no_gradient():
    algorithm = Algorithm(lambda rewards: rewards, lambda inputs: None, "token_mean", {"coefficient": 0.0})  # pyright: ignore
    assert algorithm.correction_weights(OLD, ENGINE, ALL) is None
    old = OLD.clone().requires_grad_()
    assert not Correction("tis", "sequence").weigh(old, ENGINE, ALL)[0].requires_grad


def test_the_effective_sample_size_is_a_share_of_the_tokens():
    weights = np.array([2.0, 0.5, 0.0, 1.0])
    figures = settled({"loss": 1.0, "correction": weights.mean(), "correction_squared": (weights**2).mean()})
    assert figures == {
        "loss": 1.0,
        "correction": weights.mean(),
        "effective_sample_size": pytest.approx(weights.sum() ** 2 / (weights**2).sum() / 4),
    }
    assert settled({"correction": 0.0, "correction_squared": 0.0})["effective_sample_size"] == 0.0
    assert settled({"loss": 1.0}) == {"loss": 1.0}


def test_a_gap_is_told_above_its_bound_only():
    assert large_gap(LARGE_GAP, "none") is None
    for kind in ("none", "tis"):
        told = large_gap(1.01 * LARGE_GAP, kind)
        assert told and "\n" not in told and f"above {LARGE_GAP}" in told

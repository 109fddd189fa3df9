"""Weights for an engine that differs from the policy: worked values, an independent computation, and what they never do."""

import math

import numpy as np
import pytest
import torch

from ngrpo.algorithm.algorithm import Algorithm
from ngrpo.algorithm.correction import LARGE_GAP, importance_weights, large_gap, settled
from ngrpo.algorithm.inputs import LossInputs, TokenLoss

OLD, ENGINE = torch.tensor([[-1.0, -2.0, -0.5, -3.0]]), torch.tensor([[-1.2, -3.5, -0.4, -0.5]])
ALL = torch.ones(1, 4, dtype=torch.bool)
WORKED = {
    ("tis", "token"): [1.221403, 2.0, 0.904837, 0.082085],
    ("mis", "token"): [1.221403, 0.0, 0.904837, 0.082085],
    ("tis", "sequence"): [0.406570] * 4,
    ("mis", "sequence"): [0.406570] * 4,
}


@pytest.mark.parametrize(("kind", "level"), WORKED)
def test_worked_values(kind, level):
    found = importance_weights(kind, level, 2.0, OLD, ENGINE, ALL)
    np.testing.assert_allclose(found[0], WORKED[kind, level], atol=1e-6)


@pytest.mark.parametrize("kind", ["tis", "mis"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_every_weight_is_that_of_the_definition(kind, level):
    """One number at a time, float64, with rows of several lengths."""
    generator = np.random.default_rng(0)
    old = -generator.exponential(2.0, (24, 11))
    rollout = old + generator.normal(0, 0.4, old.shape)
    rollout[0, 0], rollout[1, :] = old[0, 0] - 50, old[1, :] - 9  # beyond where an exponential is worth taking
    mask = np.arange(11)[None] < generator.integers(1, 12, 24)[:, None]
    expected = np.ones_like(old)
    for row, time in np.ndindex(old.shape):
        places = [time] if level == "token" else range(11)
        product = sum(old[row, t] - rollout[row, t] for t in places if mask[row, t])
        weight = math.exp(max(min(product, 20.0), -20.0))
        expected[row, time] = min(weight, 1.5) if kind == "tis" else weight * (weight <= 1.5)
    given = [torch.from_numpy(value) for value in (old, rollout, mask)]
    np.testing.assert_allclose(importance_weights(kind, level, 1.5, *given), expected, rtol=1e-12)
    assert len({bool(expected[row, 0] == 1.5) for row in range(24)}) == (2 if kind == "tis" else 1)


def test_the_same_engine_weighs_every_token_with_one():
    for kind, level in WORKED:
        assert (importance_weights(kind, level, 2.0, OLD, OLD, ALL) == 1).all()


def inputs(correction):
    log_probs = OLD.clone().requires_grad_()
    return LossInputs(log_probs, OLD, torch.ones_like(OLD), ALL, correction=correction)


def test_weights_multiply_the_policy_s_loss_after_its_clip_and_neither_the_kl_nor_the_entropy_bonus():
    weights = importance_weights("tis", "token", 2.0, OLD, ENGINE, ALL)
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
    assert algorithm.corrections(OLD, ENGINE, ALL) is None
    old = OLD.clone().requires_grad_()
    assert not importance_weights("tis", "sequence", 2.0, old, ENGINE, ALL).requires_grad


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

"""Bonuses on representations against worked values and an inverse written out."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import torch
from test_groups import groups

from ngrpo.algorithm.advantages import group_normalized
from ngrpo.algorithm.bonus import elliptical, leverage, sparse_projection

POINTS = torch.tensor([[[1.0, 0.0], [1.0, 0.2], [0.8, 0.0], [-0.5, 1.0]]], dtype=torch.float64)
LEVERAGE = [0.130623, 0.519089, 0.399135, 0.741926]


def random_features(count: int = 5, size: int = 6, width: int = 40) -> torch.Tensor:
    return torch.randn(count, size, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def right(*counts: int, size: int = 6):
    return groups([[1.0] * count + [0.0] * (size - count) for count in counts])


def test_leverage_at_worked_values_with_its_answer_and_without():
    made = leverage(POINTS - POINTS.mean(dim=1, keepdim=True), 0.01)[0]
    assert made.tolist() == pytest.approx(LEVERAGE, abs=1e-6)
    alone = [0.150249, 1.079386, 0.664267, 2.874860]
    assert (made / (1 - made)).tolist() == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize(
    ("rewards", "beta", "expected"),
    [
        ([1.0, 0, 0, 0], 0.01, [1.499991, -0.500686, -0.503095, -0.496210]),
        ([1.0, 1, 1, 1], 0.01, [-1.244563, 0.280242, -0.190601, 1.154922]),
        ([1.0, 1, 1, 1], 1.0, [-1.245047, 0.280351, -0.190675, 1.155371]),
    ],
)
def test_advantages_with_the_bonus_and_how_beta_cancels_where_all_are_right(rewards, beta, expected):
    earned = torch.tensor([rewards], dtype=torch.float64) + beta * torch.tensor([LEVERAGE], dtype=torch.float64)
    assert group_normalized(earned)[0].tolist() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("kind", ["leverage", "leave_one_out"])
@pytest.mark.parametrize(("dimensions", "ridge"), [(3, 0.5), (32, 0.01)])
def test_the_bonus_is_the_quadratic_form_of_the_inverse_covariance(kind, dimensions, ridge):
    features, given = random_features(), right(1, 3, 5, 2, 4)
    made = elliptical(given, features, 11, beta=0.7, dimensions=dimensions, ridge=ridge, kind=kind)
    seen = features.numpy() @ sparse_projection(40, dimensions, 11).numpy()
    for p, group in enumerate(seen):
        z = group - group.mean(axis=0)
        whole = ridge * np.eye(dimensions) + sum(np.outer(v, v) for v in z)
        for i, v in enumerate(z):
            matrix = whole - np.outer(v, v) if kind == "leave_one_out" else whole
            assert made[p, i].item() == pytest.approx(0.7 * v @ np.linalg.inv(matrix) @ v, rel=1e-8)


def test_the_projection_keeps_lengths_on_average_and_is_sparse():
    x = torch.randn(400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = torch.stack([sparse_projection(400, 16, key) for key in range(300)])
    assert sorted(made.unique().tolist()) == pytest.approx([-1 / sqrt(0.8), 0, 1 / sqrt(0.8)])
    assert (made != 0).double().mean().item() == pytest.approx(1 / 20, abs=1e-3)
    lengths = (x @ made).square().sum(dim=1) / x.square().sum()
    assert lengths.mean().item() == pytest.approx(1, abs=4 * lengths.std().item() / sqrt(300))
    assert not torch.equal(made[0], made[1]) and torch.equal(made[1], sparse_projection(400, 16, 1))


def test_groups_without_a_right_answer_earn_nothing_and_those_that_are_all_right_as_asked():
    features, given = random_features(3), right(0, 3, 6)
    made = elliptical(given, features, 5)
    assert made[0].tolist() == [0] * 6 and (made[1:] > 0).all()
    partly = elliptical(given, features, 5, all_correct=False)
    assert partly[2].tolist() == [0] * 6 and torch.equal(partly[1], made[1])


def test_answers_that_look_alike_earn_alike():
    features, given = random_features(2), right(2, 2)
    features[0, 4] = features[0, 1]
    features[1] = features[1, :1]
    made = elliptical(given, features, 5)
    assert made[0, 4].item() == pytest.approx(made[0, 1].item(), rel=1e-9)
    assert made[1].abs().max() < 1e-12, "nothing sets identical answers apart"


def test_the_bonus_follows_the_answers_of_its_group_and_sees_no_other():
    features, given, order = random_features(), right(1, 3, 5, 2, 4), torch.tensor([3, 0, 5, 1, 4, 2])
    made = elliptical(given, features, 5, kind="leave_one_out")
    turned = replace(given, correct=given.correct[:, order])
    torch.testing.assert_close(
        elliptical(turned, features[:, order], 5, kind="leave_one_out"), made[:, order], rtol=1e-8, atol=1e-12
    )
    part = replace(given, correct=given.correct[2:4])
    torch.testing.assert_close(
        elliptical(part, features[2:4], 5, kind="leave_one_out"), made[2:4], rtol=1e-8, atol=1e-12
    )

"""Advantages against hand values and against the formulas in plain Python floats."""

import math
import statistics

import pytest
import torch

from ngrpo.advantages import group_centred, group_normalised, homogeneous, leave_one_out


def tensor(*groups) -> torch.Tensor:
    return torch.tensor(groups, dtype=torch.float64)


RANDOM = torch.randn(50, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
BINARY = (RANDOM > 0.6).double()


@pytest.mark.parametrize(
    ("rewards", "ddof", "right", "wrong"),
    [
        ([1, 0, 0, 0], 1, 1.5, -0.5),
        ([1, 0, 0, 0], 0, 1.7320508, -0.5773503),
        ([1, 0, 0, 0, 0, 0, 0, 0], 1, 2.4748737, -0.3535534),
        ([1, 0, 0, 0, 0, 0, 0, 0], 0, 2.6457513, -0.3779645),
    ],
)
def test_hand_values_of_one_right_answer(rewards, ddof, right, wrong):
    advantages = group_normalised(tensor(rewards), ddof=ddof, eps=0.0)[0].tolist()
    assert advantages == pytest.approx([right] + [wrong] * (len(rewards) - 1), abs=1e-7)
    assert group_normalised(tensor(rewards), ddof=ddof)[0, 0].item() == pytest.approx(right, rel=2.1e-6 / 0.33)


@pytest.mark.parametrize("ddof", [0, 1])
def test_normalised_is_the_formula(ddof):
    for group, advantages in zip(RANDOM.tolist(), group_normalised(RANDOM, ddof=ddof, eps=1e-3).tolist(), strict=True):
        spread = (statistics.stdev if ddof else statistics.pstdev)(group)
        mean = statistics.fmean(group)
        assert advantages == pytest.approx([(r - mean) / (spread + 1e-3) for r in group], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("estimator", [group_normalised, group_centred, leave_one_out])
@pytest.mark.parametrize("rewards", [RANDOM, BINARY, tensor([0.1, 0.2, 0.3, 0.7])])
def test_advantages_of_a_group_sum_to_zero_and_ignore_an_offset(estimator, rewards):
    advantages = estimator(rewards)
    assert advantages.dtype == torch.float64 and advantages.shape == rewards.shape
    assert advantages.sum(dim=1).abs().max() < 1e-12
    torch.testing.assert_close(estimator(rewards + 3.25), advantages, rtol=1e-12, atol=1e-12)


def test_a_positive_factor_leaves_normalised_and_scales_centred():
    torch.testing.assert_close(
        group_normalised(7 * RANDOM - 2, eps=0), group_normalised(RANDOM, eps=0), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(group_centred(7 * RANDOM - 2), 7 * group_centred(RANDOM), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(group_normalised(-RANDOM), -group_normalised(RANDOM), rtol=1e-12, atol=1e-12)


def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others():
    advantages = leave_one_out(RANDOM)
    for group, row in zip(RANDOM.tolist(), advantages.tolist(), strict=True):
        others = [(sum(group) - reward) / (len(group) - 1) for reward in group]
        assert row == pytest.approx([r - o for r, o in zip(group, others, strict=True)], rel=1e-12, abs=1e-12)
    torch.testing.assert_close(advantages, 8 / 7 * group_centred(RANDOM), rtol=1e-12, atol=1e-12)
    assert leave_one_out(tensor([1, 0, 0, 0]))[0].tolist() == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3], abs=1e-12)


@pytest.mark.parametrize("estimator", [group_normalised, group_centred, leave_one_out])
@pytest.mark.parametrize(
    "group",
    [
        [0.0] * 4,
        [1.0] * 4,
        [0.3, 0.1 + 0.2, 0.3, 0.1 + 0.2],
        [-1e6 / 3, -1e6 / 3 * (1 + 1e-15), -1e6 / 3, -1e6 / 3],
        [1e-12, 0, 0, 0],
    ],
)
def test_a_group_without_preference_has_exactly_no_advantage(estimator, group):
    assert homogeneous(tensor(group)).item()
    assert estimator(tensor(group, [1, 0, 0, 0]))[0].tolist() == [0.0] * 4
    assert estimator(tensor(group, [1, 0, 0, 0]))[1, 0] > 0.5


def test_a_small_but_real_difference_counts():
    assert not homogeneous(tensor([1, 1, 1, 1 - 1e-6])).item()
    assert group_normalised(tensor([1, 1, 1, 1 - 1e-6]), eps=0)[0, 3].item() == pytest.approx(-1.5, rel=1e-6)


def test_groups_do_not_mix():
    torch.testing.assert_close(group_normalised(RANDOM)[7:8], group_normalised(RANDOM[7:8]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", [group_normalised, leave_one_out])
def test_a_group_of_one_is_refused_in_one_line_that_names_the_setting(estimator):
    with pytest.raises(ValueError, match=r"group_size=1: .*group_size=2") as told:
        estimator(torch.ones(3, 1, dtype=torch.float64))
    assert "\n" not in str(told.value)


def test_every_right_answer_of_a_binary_group_has_the_closed_form():
    for correct in range(1, 8):
        group = [1.0] * correct + [0.0] * (8 - correct)
        advantages = group_normalised(tensor(group), ddof=0, eps=0)[0]
        assert advantages[0].item() == pytest.approx(math.sqrt((8 - correct) / correct), rel=1e-12)
        assert advantages[-1].item() == pytest.approx(-math.sqrt(correct / (8 - correct)), rel=1e-12)

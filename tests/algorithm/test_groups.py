"""Reward shaping and filters of groups against published points and plain loops over answers."""

from dataclasses import replace
from functools import partial
from math import exp, prod

import numpy as np
import pytest
import torch

from ngrpo.algorithm import advantages, losses
from ngrpo.algorithm.algorithm import Algorithm
from ngrpo.algorithm.groups import (
    boundary,
    correct_only,
    finished,
    focal,
    format_rewards,
    mixed,
    not_all_correct,
    not_all_wrong,
    over_success_rate,
    overlong_punishment,
    partly_rewarded,
    random_rewards,
    shuffled_rewards,
    uniform_correct,
    unlikeliness,
    wrong_only,
)
from ngrpo.algorithm.inputs import Groups


def groups(rewards, lengths=None, truncated=None, log_probs=None, correct=None, limit: int = 20_480) -> Groups:
    rewards = torch.as_tensor(rewards, dtype=torch.float64)
    return Groups(
        rewards=rewards,
        correct=rewards > 0 if correct is None else torch.as_tensor(correct),
        lengths=torch.as_tensor(torch.ones_like(rewards) if lengths is None else lengths).long(),
        truncated=torch.as_tensor(torch.zeros_like(rewards) if truncated is None else truncated).bool(),
        log_probs=torch.as_tensor(-torch.ones_like(rewards) if log_probs is None else log_probs).double(),
        parsed=torch.ones_like(rewards).bool(),
        keys=torch.arange(rewards.numel()).view(rewards.shape) * 7919,
        limit=limit,
    )


def random_groups(seed: int = 0, count: int = 60, size: int = 6) -> Groups:
    generator = torch.Generator().manual_seed(seed)
    rewards = (torch.rand(count, size, generator=generator) < torch.rand(count, 1, generator=generator)).double()
    return groups(
        rewards,
        lengths=torch.randint(1, 41, (count, size), generator=generator),
        truncated=torch.rand(count, size, generator=generator) < 0.3,
        log_probs=-torch.randint(1, 6, (count, size), generator=generator),  # few values: ties
        limit=40,
    )


def test_the_punishment_at_its_published_points():
    points = {1: 0.0, 16_384: 0.0, 18_432: -0.5, 20_480: -1.0, 16_385: -1 / 4096, 30_000: -1.0}
    shaped = overlong_punishment(groups([[1.0] * 6], lengths=[list(points)]), buffer=4096)
    assert shaped[0].tolist() == pytest.approx([1 + value for value in points.values()], abs=1e-12)
    halved = overlong_punishment(groups([[0.0] * 6], lengths=[list(points)]), buffer=4096, factor=0.5)
    assert halved[0].tolist() == pytest.approx([value / 2 for value in points.values()], abs=1e-12)


@pytest.mark.parametrize(("buffer", "factor"), [(10, 1.0), (40, 0.3), (1, 2.0)])
def test_the_punishment_is_linear_in_the_tokens_of_the_buffer(buffer, factor):
    given = random_groups()
    made = overlong_punishment(given, buffer=buffer, factor=factor)
    assert made.dtype == torch.float64
    for answer in zip(given.rewards.flatten().tolist(), given.lengths.flatten().tolist(), made.flatten(), strict=True):
        reward, length, shaped = answer
        used = max(0, length - (given.limit - buffer))
        assert shaped.item() == pytest.approx(reward - factor * min(used, buffer) / buffer, abs=1e-12)


def test_a_right_answer_that_is_punished_stays_right():
    given = groups([[1.0, 1.0], [0.0, 1.0]], lengths=[[20_480, 20_480], [5, 20_480]])
    assert overlong_punishment(given, buffer=10, factor=2.0).tolist() == [[-1.0, -1.0], [0.0, -1.0]]
    assert given.correct.tolist() == [[True, True], [False, True]] and not_all_correct(given).tolist() == [False, True]


def test_hand_values_of_unlikeliness():
    given = groups([[1, 1, 0, 1]], log_probs=[[-1.0, -4.0, -2.0, -3.0]])
    made = unlikeliness(given, strength=0.25)[0].tolist()
    assert made == pytest.approx([1 - 0.25 * 3 / 4, 1.0, 0.0, 1 - 0.25 * 1 / 4], abs=1e-12)


def test_ties_share_the_lower_rank():
    given = groups([[1, 1, 1, 1]], log_probs=[[-2.0, -1.0, -2.0, -3.0]])
    made = unlikeliness(given, strength=1.0)[0].tolist()
    assert made == pytest.approx([2 / 4, 1 / 4, 2 / 4, 1.0], abs=1e-12)
    alike = unlikeliness(groups([[1, 1, 0]], log_probs=[[-5.0] * 3]), strength=0.3)[0].tolist()
    assert alike == pytest.approx([0.8, 0.8, 0.0], abs=1e-12)


@pytest.mark.parametrize("likelihood", ["mean", "sum"])
@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_unlikeliness_against_a_loop_over_answers(strength, likelihood):
    given = random_groups()
    made = unlikeliness(given, strength=strength, likelihood=likelihood)
    values = given.log_probs / given.lengths if likelihood == "mean" else given.log_probs
    for p, (rewards, likelihoods) in enumerate(zip(given.rewards.tolist(), values.tolist(), strict=True)):
        for i, reward in enumerate(rewards):
            rank = sorted(likelihoods, reverse=True).index(likelihoods[i]) + 1
            factor = 1 - strength * (6 - rank) / 6 if given.correct[p, i] else 1.0
            assert made[p, i].item() == pytest.approx(reward * factor, abs=1e-12)


def test_a_longer_answer_can_be_the_likelier_one_per_token():
    """-6 over 6 tokens is -1 each, -4 over 2 is -2 each: which of the two is the likelier depends on what is asked."""
    given = groups([[1, 1]], lengths=[[6, 2]], log_probs=[[-6.0, -4.0]])
    assert unlikeliness(given, strength=0.5)[0].tolist() == [0.75, 1.0]
    assert unlikeliness(given, strength=0.5, likelihood="sum")[0].tolist() == [1.0, 0.75]


@pytest.mark.parametrize("strength", [0.25, 0.8])
def test_unlikeliness_is_what_its_authors_compute(strength):
    """Their ranks count from 0, the least likely answer per token, and are a share of the group's size."""
    generator = np.random.default_rng(0)
    lengths, right = generator.integers(1, 30, (40, 8)), generator.random((40, 8)) < 0.5
    log_probs = -generator.exponential(1.0, (40, 8)) * lengths
    made = unlikeliness(groups(right, lengths=lengths, log_probs=log_probs), strength=strength).numpy()
    for row in range(40):
        rank = np.argsort(np.argsort(log_probs[row] / lengths[row])) / 8
        assert made[row] == pytest.approx(right[row] * (1 - rank * strength), abs=1e-12)


def test_wrong_answers_keep_what_they_earned():
    given = groups([[-0.7, 0.4, 1.0]], log_probs=[[-1.0, -2.0, -3.0]], correct=[[False, False, True]])
    assert unlikeliness(given, strength=1.0).tolist() == [[-0.7, 0.4, 1.0]]


def test_group_filters_follow_the_verdict_and_not_the_reward():
    verdicts = [[True, True, True], [False, False, False], [True, False, True]]
    for rewards in ([[1.0] * 3, [0.0] * 3, [1.0, 0.0, 1.0]], [[-1.0, 1.0, 0.0], [5.0, 0.0, 5.0], [0.0, 0.0, 0.5]]):
        given = groups(rewards, correct=verdicts)
        assert mixed(given).tolist() == [False, False, True]
        assert not_all_correct(given).tolist() == [False, True, True]
        assert not_all_wrong(given).tolist() == [True, False, True]


def test_group_filters_count_right_answers():
    given = random_groups(count=300)
    right = [sum(row) for row in given.correct.tolist()]
    assert mixed(given).tolist() == [0 < number < 6 for number in right]
    assert not_all_correct(given).tolist() == [number < 6 for number in right]
    assert not_all_wrong(given).tolist() == [number > 0 for number in right]
    kept = given.rewards[mixed(given)]
    assert (kept.amax(dim=1) > kept.amin(dim=1)).all() and 0 < len(kept) < 300


def test_a_mixed_group_whose_rewards_are_level_teaches_nothing_and_goes():
    verdicts = [[True, False, False]] * 4
    given = groups([[0.0, 0.0, 0.0], [0.3, 0.3, 0.3], [0.0, 0.0, -1e-6], [1.0, 0.0, 0.0]], correct=verdicts)
    assert mixed(given).tolist() == [False, False, True, True]
    assert not_all_correct(given).all() and not_all_wrong(given).all()


def filtered(group_filter) -> Algorithm:
    """GRPO whose rewards are punished for the last 10 of 40 tokens before a filter sees them."""
    shaping, kl = {"overlong": partial(overlong_punishment, buffer=10)}, {"coefficient": 0.0}
    return Algorithm(
        advantages.group_normalized,
        losses.clipped_surrogate,
        "token_mean",
        kl,
        reward_shaping=shaping,
        group_filter=group_filter,
    )


def test_a_filter_sees_rewards_after_shaping_and_verdicts_before():
    """Right answers at the limit earn 1 - 1 = 0, what wrong short ones earn: no advantage, though the group is mixed."""
    right = [[1, 0, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]]
    lengths = [[40, 5, 30], [35, 5, 30], [5, 40, 35], [5, 40, 35], [40, 40, 5]]
    given = groups(right, lengths=lengths, limit=40)
    kept = filtered(mixed).keeps(given)
    assert kept.tolist() == [False, True, False, False, True]
    shaped = filtered(mixed).shaped(given).rewards
    assert (
        not advantages.group_normalized(shaped)[0].any() and advantages.group_normalized(shaped)[kept].any(dim=1).all()
    )
    assert filtered(mixed).rows_in_loss(given).tolist() == [[k] * 3 for k in kept.tolist()]
    plain = Algorithm(advantages.group_normalized, losses.clipped_surrogate, "token_mean", {}, group_filter=mixed)
    assert plain.keeps(given).tolist() == [True, True, False, False, True]


def test_no_group_that_a_mixed_filter_keeps_is_without_variance():
    given = random_groups(count=400, size=4)
    algorithm = filtered(mixed)
    shaped, kept = algorithm.shaped(given).rewards, algorithm.keeps(given)
    verdict = given.correct.any(dim=1) & ~given.correct.all(dim=1)
    level = torch.tensor([max(row) - min(row) < 1e-12 for row in shaped.tolist()])
    assert torch.equal(kept, verdict & ~level) and kept.any()


def test_where_earnings_decide_a_right_answer_with_a_heavy_punishment_is_wrong():
    """NGRPO's released filter: what counts is whether the shaped reward is above 0."""
    right, lengths = [[1, 0], [1, 0], [1, 1], [0, 0]], [[40, 5], [35, 5], [40, 5], [5, 40]]
    given = groups(right, lengths=lengths, limit=40)
    assert filtered(partly_rewarded).shaped(given).rewards.tolist() == [[0, 0], [0.5, 0], [0, 1], [0, -1]]
    assert filtered(partly_rewarded).keeps(given).tolist() == [False, True, True, False]


def test_row_filters_look_at_one_answer_each():
    given = random_groups()
    assert torch.equal(finished(given), ~given.truncated)
    assert torch.equal(correct_only(given), given.rewards == 1)
    assert torch.equal(wrong_only(given), given.rewards == 0)
    alone = groups([[1.0], [0.0]], truncated=[[True], [False]])
    assert finished(alone).tolist() == [[False], [True]]
    assert correct_only(alone).tolist() == [[True], [False]] and wrong_only(alone).tolist() == [[False], [True]]


# --- weights ------------------------------------------------------------------------------------------------------------


def right(count: int, size: int = 8) -> Groups:
    return groups([[1.0] * count + [0.0] * (size - count)])


def grpo(given: Groups) -> torch.Tensor:
    return advantages.group_normalized(given.rewards, eps=0)


def over(given: Groups) -> list[float]:
    return over_success_rate(advantages.group_centered(given.rewards), given)[0].tolist()


def test_over_the_success_rate_a_right_answer_is_worth_the_failures_for_each():
    assert over(groups([[1.0, 0, 0, 0]])) == pytest.approx([3, -1, -1, -1], abs=1e-12)
    assert over(right(1)) == pytest.approx([7] + [-1] * 7, abs=1e-12)
    assert over(right(3)) == pytest.approx([5 / 3] * 3 + [-1] * 5, abs=1e-12)
    assert over(right(0)) == over(right(8)) == [0.0] * 8


def test_the_estimate_over_the_success_rate_is_that_of_the_truncated_likelihood():
    """With one parameter theta = logit p: E[sum_i A_i d log pi / G] = (1 - (1 - p)^(G - 1)) / p times dp / dtheta."""
    size, p = 5, 0.3
    total = 0.0
    for pattern in np.ndindex(*[2] * size):
        chance = prod(p if r else 1 - p for r in pattern)
        score = np.array([1 - p if r else -p for r in pattern])  # d log pi / d theta
        total += chance * np.mean(over(groups([[float(r) for r in pattern]])) * score)
    assert total == pytest.approx((1 - (1 - p) ** (size - 1)) / p * p * (1 - p), abs=1e-12)


@pytest.mark.parametrize(
    ("rewards", "correct"),
    [([[1.0, -1]], [[True, False]]), ([[1.0, 0.1]], [[True, False]]), ([[2.0, 0]], [[True, False]])],
)
def test_rewards_that_are_no_success_rate_are_refused(rewards, correct):
    given = groups(rewards, correct=correct)
    with pytest.raises(ValueError, match="wrong answers must have reward 0; algorithm=grpo"):
        over_success_rate(given.rewards, given)


@pytest.mark.parametrize(
    ("count", "gamma", "best", "rest"),
    [
        (1, 0.5, 2.315032, -0.330719),
        (4, 0.5, 0.661438, -0.661438),
        (7, 0.5, 0.125, -0.875),
        (7, 1.0, 0.044194, -0.309359),
    ],
)
def test_focal_weights_at_their_published_points(count, gamma, best, rest):
    made = focal(grpo(right(count)), right(count), gamma=gamma)[0].tolist()
    assert made == pytest.approx([best] * count + [rest] * (8 - count), abs=1e-6)


def test_focal_weights_change_no_sign_and_none_at_gamma_0():
    given = random_groups()
    plain = grpo(given)
    assert torch.equal(focal(plain, given, gamma=0.0), plain)
    assert torch.equal(focal(plain, given, gamma=2.0).sign(), plain.sign() * ~given.correct.all(dim=1, keepdim=True))


def test_right_answers_that_are_less_likely_learn_more():
    mean, lengths = [-0.2, -0.4, -0.9, -0.5], [10, 20, 40, 5]
    given = groups([[1.0, 1, 1, 0]], lengths=[lengths], log_probs=[[m * n for m, n in zip(mean, lengths, strict=True)]])
    made = uniform_correct(grpo(given), given)[0]
    assert made.tolist() == pytest.approx([0.470836, 0.486519, 0.542645, -1.5], abs=1e-6)
    whole = uniform_correct(grpo(given), given, length_norm=False)[0] / grpo(given)[0]
    assert whole.tolist() == pytest.approx([0.800001, 0.800243, 1.399757, 1], abs=1e-6)


def test_shifted_advantages_keep_their_sum_and_follow_the_closed_form():
    given = random_groups()
    plain = grpo(given)
    made = uniform_correct(plain, given, tau=0.3)
    torch.testing.assert_close((made * given.correct).sum(1), (plain * given.correct).sum(1), rtol=1e-12, atol=1e-12)
    assert torch.equal(made[~given.correct], plain[~given.correct])
    assert torch.equal(uniform_correct(plain, given, tau=0.0), plain)
    for row in range(len(plain)):
        members = given.correct[row].nonzero().flatten().tolist()
        if len(members) > 1:
            values = [float(given.log_probs[row, i] / given.lengths[row, i]) for i in members]
            total = sum(exp(-v) for v in values)
            weights = [0.7 + 0.3 * len(members) * exp(-v) / total for v in values]
            expected = [w * float(plain[row, i]) for w, i in zip(weights, members, strict=True)]
            assert made[row, members].tolist() == pytest.approx(expected, abs=1e-9)


def test_right_answers_that_earn_differently_are_refused():
    given = groups([[1.0, 0.5, 0]])
    with pytest.raises(ValueError, match="rewards of right answers of a group differ"):
        uniform_correct(given.rewards, given)


def test_the_boundary_is_the_expected_gain_of_pass_at_k():
    """u(m) by numerical integration over the posterior Beta(m + 1, n - m + 1)."""
    from scipy import integrate, stats

    for k, size, most in ((16, 8, 3), (4, 6, 6)):
        gain = [
            integrate.quad(lambda p, m=m: k * (1 - p) ** (k - 1) * stats.beta.pdf(p, m + 1, size - m + 1), 0, 1)[0]  # noqa: B023
            for m in range(size + 1)
        ]
        for m in range(1, size + 1):
            made = boundary(torch.ones(1, size, dtype=torch.float64), right(m, size), k=k)[0]
            kept = gain[m] >= 0.01 * (size + 1)
            assert made.tolist() == pytest.approx([gain[m] / gain[1] * kept] * size, abs=1e-6)
            assert kept == (m <= most) or k == 4


@pytest.mark.parametrize("weigh", [focal, uniform_correct, boundary])
def test_weights_look_at_one_group_at_a_time_and_follow_its_answers(weigh):
    given, order = random_groups(), torch.tensor([3, 0, 5, 1, 4, 2])
    plain = grpo(given)
    turned = replace(
        given, rewards=given.rewards[:, order], correct=given.correct[:, order],
        log_probs=given.log_probs[:, order], lengths=given.lengths[:, order],
    )  # fmt: skip
    torch.testing.assert_close(weigh(plain[:, order], turned), weigh(plain, given)[:, order], rtol=1e-12, atol=1e-12)
    part = replace(given, **{f: getattr(given, f)[7:9] for f in ("rewards", "correct", "log_probs", "lengths")})
    torch.testing.assert_close(weigh(plain[7:9], part), weigh(plain, given)[7:9], rtol=1e-12, atol=1e-12)


# --- controls -----------------------------------------------------------------------------------------------------------


def test_random_rewards_have_their_rate_and_know_no_answer():
    given = groups(torch.zeros(4000, 8))
    for rate in (0.0, 0.3, 1.0):
        made = random_rewards(given, rate=rate)
        assert made.mean() == pytest.approx(rate, abs=0.01) and set(made.unique().tolist()) <= {0.0, 1.0}
    same = replace(given, rewards=torch.ones_like(given.rewards), correct=torch.ones_like(given.correct))
    assert torch.equal(random_rewards(same), random_rewards(given))


def test_shuffled_rewards_are_those_of_the_group_anywhere():
    given = groups([[1.0, 0, 0, 0]] * 4000)
    made = shuffled_rewards(given)
    assert torch.equal(made.sort(dim=1).values, given.rewards.sort(dim=1).values)
    assert made.mean(dim=0).tolist() == pytest.approx([0.25] * 4, abs=0.03)


def test_a_control_stands_in_for_rewards_and_verdicts_wherever_they_are_asked_for():
    given = replace(groups([[1.0, 0], [1.0, 0]]), parsed=torch.tensor([[True, True], [False, True]]))
    algorithm = replace(filtered(mixed), control=format_rewards, row_filter=correct_only)
    shaped = algorithm.shaped(given)
    assert shaped.rewards.tolist() == [[1, 1], [0, 1]] and shaped.correct.tolist() == [[True, True], [False, True]]
    assert algorithm.keeps(given).tolist() == [False, True]
    assert algorithm.rows_in_loss(given).tolist() == [[False, False], [False, True]]

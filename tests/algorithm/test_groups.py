"""Reward shaping and filters of groups against published points and plain loops over answers."""

from functools import partial

import numpy as np
import pytest
import torch

from ngrpo.algorithm import advantages, losses
from ngrpo.algorithm.algorithm import Algorithm
from ngrpo.algorithm.groups import (
    correct_only,
    finished,
    mixed,
    not_all_correct,
    not_all_wrong,
    overlong_punishment,
    partly_rewarded,
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
    shaped = filtered(mixed).shaped(given)
    assert (
        not advantages.group_normalized(shaped)[0].any() and advantages.group_normalized(shaped)[kept].any(dim=1).all()
    )
    assert filtered(mixed).counts(given).tolist() == [[k] * 3 for k in kept.tolist()]
    plain = Algorithm(advantages.group_normalized, losses.clipped_surrogate, "token_mean", {}, group_filter=mixed)
    assert plain.keeps(given).tolist() == [True, True, False, False, True]


def test_no_group_that_a_mixed_filter_keeps_is_without_variance():
    given = random_groups(count=400, size=4)
    algorithm = filtered(mixed)
    shaped, kept = algorithm.shaped(given), algorithm.keeps(given)
    verdict = given.correct.any(dim=1) & ~given.correct.all(dim=1)
    level = torch.tensor([max(row) - min(row) < 1e-12 for row in shaped.tolist()])
    assert torch.equal(kept, verdict & ~level) and kept.any()


def test_where_earnings_decide_a_right_answer_with_a_heavy_punishment_is_wrong():
    """NGRPO's released filter: what counts is whether the shaped reward is above 0."""
    right, lengths = [[1, 0], [1, 0], [1, 1], [0, 0]], [[40, 5], [35, 5], [40, 5], [5, 40]]
    given = groups(right, lengths=lengths, limit=40)
    assert filtered(partly_rewarded).shaped(given).tolist() == [[0, 0], [0.5, 0], [0, 1], [0, -1]]
    assert filtered(partly_rewarded).keeps(given).tolist() == [False, True, True, False]


def test_row_filters_look_at_one_answer_each():
    given = random_groups()
    assert torch.equal(finished(given), ~given.truncated)
    assert torch.equal(correct_only(given), given.rewards == 1)
    assert torch.equal(wrong_only(given), given.rewards == 0)
    alone = groups([[1.0], [0.0]], truncated=[[True], [False]])
    assert finished(alone).tolist() == [[False], [True]]
    assert correct_only(alone).tolist() == [[True], [False]] and wrong_only(alone).tolist() == [[False], [True]]

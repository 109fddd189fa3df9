"""Advantages against hand values and against the formulas in plain Python floats."""

import itertools
import math
import statistics

import numpy as np
import pytest
import torch

from ngrpo.algorithm.advantages import (
    entropy_shaped,
    group_centered,
    group_normalized,
    homogeneous,
    leave_one_out,
    pass_at_k,
    policy_at_k,
    signed,
    with_virtual_samples,
    zero_variance,
)
from ngrpo.algorithm.critic import generalized
from ngrpo.algorithm.inputs import AnswerTokens, Groups


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
    advantages = group_normalized(tensor(rewards), ddof=ddof, eps=0.0)[0].tolist()
    assert advantages == pytest.approx([right] + [wrong] * (len(rewards) - 1), abs=1e-7)
    assert group_normalized(tensor(rewards), ddof=ddof)[0, 0].item() == pytest.approx(right, rel=2.1e-6 / 0.33)


@pytest.mark.parametrize("ddof", [0, 1])
def test_normalized_is_the_formula(ddof):
    for group, advantages in zip(RANDOM.tolist(), group_normalized(RANDOM, ddof=ddof, eps=1e-3).tolist(), strict=True):
        spread = (statistics.stdev if ddof else statistics.pstdev)(group)
        mean = statistics.fmean(group)
        assert advantages == pytest.approx([(r - mean) / (spread + 1e-3) for r in group], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("estimator", [group_normalized, group_centered, leave_one_out])
@pytest.mark.parametrize("rewards", [RANDOM, BINARY, tensor([0.1, 0.2, 0.3, 0.7])])
def test_advantages_of_a_group_sum_to_zero_and_ignore_an_offset(estimator, rewards):
    advantages = estimator(rewards)
    assert advantages.dtype == torch.float64 and advantages.shape == rewards.shape
    assert advantages.sum(dim=1).abs().max() < 1e-12
    torch.testing.assert_close(estimator(rewards + 3.25), advantages, rtol=1e-12, atol=1e-12)


def test_a_positive_factor_leaves_normalized_and_scales_centered():
    torch.testing.assert_close(
        group_normalized(7 * RANDOM - 2, eps=0), group_normalized(RANDOM, eps=0), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(group_centered(7 * RANDOM - 2), 7 * group_centered(RANDOM), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(group_normalized(-RANDOM), -group_normalized(RANDOM), rtol=1e-12, atol=1e-12)


def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others():
    advantages = leave_one_out(RANDOM)
    for group, row in zip(RANDOM.tolist(), advantages.tolist(), strict=True):
        others = [(sum(group) - reward) / (len(group) - 1) for reward in group]
        assert row == pytest.approx([r - o for r, o in zip(group, others, strict=True)], rel=1e-12, abs=1e-12)
    torch.testing.assert_close(advantages, 8 / 7 * group_centered(RANDOM), rtol=1e-12, atol=1e-12)
    assert leave_one_out(tensor([1, 0, 0, 0]))[0].tolist() == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3], abs=1e-12)


@pytest.mark.parametrize("estimator", [group_normalized, group_centered, leave_one_out])
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
    assert group_normalized(tensor([1, 1, 1, 1 - 1e-6]), eps=0)[0, 3].item() == pytest.approx(-1.5, rel=1e-6)


def test_groups_do_not_mix():
    torch.testing.assert_close(group_normalized(RANDOM)[7:8], group_normalized(RANDOM[7:8]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "estimator", [group_normalized, leave_one_out, with_virtual_samples, lambda rewards: pass_at_k(rewards, pass_k=1)]
)
def test_a_group_of_one_is_refused_in_one_line_that_names_the_setting(estimator):
    with pytest.raises(ValueError, match=r"group_size=1: .*group_size=2") as told:
        estimator(torch.ones(3, 1, dtype=torch.float64))
    assert "\n" not in str(told.value)


def test_every_right_answer_of_a_binary_group_has_the_closed_form():
    for correct in range(1, 8):
        group = [1.0] * correct + [0.0] * (8 - correct)
        advantages = group_normalized(tensor(group), ddof=0, eps=0)[0]
        assert advantages[0].item() == pytest.approx(math.sqrt((8 - correct) / correct), rel=1e-12)
        assert advantages[-1].item() == pytest.approx(-math.sqrt(correct / (8 - correct)), rel=1e-12)


def binary_group(size: int, correct: int) -> torch.Tensor:
    return tensor([1.0] * correct + [0.0] * (size - correct))


@pytest.mark.parametrize(
    ("size", "ddof", "expected"),
    [(4, 1, -0.4472), (8, 1, -0.3333), (16, 1, -0.2425), (4, 0, -0.5), (8, 0, -0.3536), (16, 0, -0.25)],
)
def test_a_virtual_sample_gives_an_all_wrong_group_its_published_value(size, ddof, expected):
    advantages = with_virtual_samples(binary_group(size, 0), ddof=ddof, eps=0)[0].tolist()
    assert advantages == pytest.approx([-1 / math.sqrt(size + ddof)] * size, rel=1e-12)
    assert advantages[0] == pytest.approx(expected, abs=5e-5)


def test_a_virtual_sample_gives_one_right_answer_of_eight_its_published_value():
    advantages = with_virtual_samples(binary_group(8, 1), eps=0)[0]
    assert advantages[:2].tolist() == pytest.approx([1.7638342, -0.5039526], abs=1e-7)
    assert with_virtual_samples(binary_group(8, 8))[0].tolist() == [0.0] * 8


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("virtual", [1, 2, 5])
def test_virtual_samples_have_the_closed_forms_of_binary_rewards(virtual, ddof):
    for size in (2, 3, 8, 32):
        whole = size + virtual
        for correct in range(size):
            top = correct + virtual
            wrong = -math.sqrt(top * (whole - ddof) / (whole * (whole - top)))
            right = math.sqrt((whole - top) * (whole - ddof) / (whole * top))
            made = with_virtual_samples(binary_group(size, correct), virtual=virtual, ddof=ddof, eps=0)[0].tolist()
            assert made == pytest.approx([right] * correct + [wrong] * (size - correct), rel=1e-10)
            plain = group_normalized(binary_group(size, correct), ddof=ddof, eps=0)[0].tolist()
            assert all(a <= b + 1e-12 for a, b in zip(made, plain, strict=True)), "the sample never raises an advantage"
        assert not with_virtual_samples(binary_group(size, size), virtual=virtual, ddof=ddof).any()


@pytest.mark.parametrize("ddof", [0, 1])
def test_virtual_samples_are_the_formula_and_sum_to_what_they_would_have_earned(ddof):
    made = with_virtual_samples(RANDOM, virtual=3, maximum=4.5, ddof=ddof, eps=1e-3)
    for group, advantages in zip(RANDOM.tolist(), made.tolist(), strict=True):
        whole = [*group, 4.5, 4.5, 4.5]
        mean, spread = statistics.fmean(whole), (statistics.stdev if ddof else statistics.pstdev)(whole)
        assert advantages == pytest.approx([(r - mean) / (spread + 1e-3) for r in group], rel=1e-10, abs=1e-10)
        assert sum(advantages) == pytest.approx(-3 * (4.5 - mean) / (spread + 1e-3), rel=1e-10)
    assert (made.sum(dim=1) < 0).all()


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("rewards", [RANDOM, BINARY])
def test_without_virtual_samples_nothing_changes(rewards, ddof):
    ours = with_virtual_samples(rewards, virtual=0, maximum=-9.0, ddof=ddof)
    torch.testing.assert_close(ours, group_normalized(rewards, ddof=ddof), rtol=0, atol=0)


def test_a_virtual_sample_must_earn_the_most():
    with pytest.raises(
        ValueError, match=r"algorithm\.advantage\.maximum=1\.0: a reward is 2\.5, .*maximum=2\.5$"
    ) as told:
        with_virtual_samples(tensor([0, 1], [2.5, 0]))
    assert "\n" not in str(told.value)
    assert with_virtual_samples(tensor([0, 1], [2.5, 0]), maximum=2.5)[1, 0] > 0


@pytest.mark.parametrize("correct", [1.0, 0.1])
def test_signed_looks_at_nothing_but_the_answer(correct):
    made = signed(BINARY, correct=correct, wrong=-1.0)
    assert made.dtype == torch.float64
    for group, advantages in zip(BINARY.tolist(), made.tolist(), strict=True):
        assert advantages == pytest.approx([correct if r else -1.0 for r in group], rel=1e-6)
    for alone in (0.0, 1.0):
        assert torch.equal(signed(tensor([alone]), correct=correct)[0, 0], made[alone == BINARY][0])


@pytest.mark.parametrize("estimator", [signed, lambda rewards: pass_at_k(rewards, pass_k=2)])
@pytest.mark.parametrize("strange", ["0.5", "-1", "2", "nan"])
def test_rewards_that_are_not_binary_are_refused(estimator, strange):
    with pytest.raises(ValueError, match=rf"^a reward is {strange}: .*0 and 1; algorithm=grpo$"):
        estimator(tensor([0, 1], [float(strange), 1]))


@pytest.mark.parametrize(
    ("size", "correct", "pass_k", "right", "wrong"),
    [(8, 1, 4, 1.0, -0.1429), (8, 2, 4, 0.5222, -0.1741)],
)
def test_hand_values_of_pass_at_k(size, correct, pass_k, right, wrong):
    made = pass_at_k(binary_group(size, correct), pass_k=pass_k)[0].tolist()
    assert made == pytest.approx([right] * correct + [wrong] * (size - correct), abs=5e-5)


def test_pass_at_k_normalizes_the_reward_of_k_random_answers():
    for size, pass_k in ((2, 2), (5, 1), (5, 3), (6, 4), (8, 2), (8, 4), (8, 8)):
        subsets = list(itertools.combinations(range(size), pass_k))
        groups = torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)), dtype=torch.float64)
        for group, advantages in zip(groups.tolist(), pass_at_k(groups, pass_k=pass_k).tolist(), strict=True):
            best = [max(group[i] for i in subset) for subset in subsets]
            mean, spread = statistics.fmean(best), statistics.pstdev(best)
            for i, advantage in enumerate(advantages):
                own = statistics.fmean(b for b, subset in zip(best, subsets, strict=True) if i in subset)
                assert advantage == pytest.approx((own - mean) / (spread + 1e-6), abs=1e-6)


def test_pass_at_one_is_normalized_with_the_population_deviation():
    torch.testing.assert_close(pass_at_k(BINARY, pass_k=1), group_normalized(BINARY, ddof=0), rtol=1e-6, atol=1e-9)


def test_pass_at_k_has_nothing_to_learn_where_any_k_answers_pass_or_none_do():
    for pass_k in range(1, 9):
        assert not pass_at_k(binary_group(8, 0), pass_k=pass_k).any()
        for correct in range(1, 9):
            made = pass_at_k(binary_group(8, correct), pass_k=pass_k)
            assert made.any().item() == (correct <= 8 - pass_k)
            assert made.sum().abs() < 1e-6


@pytest.mark.parametrize(
    ("estimator", "pass_k", "least"),
    [(pass_at_k, 0, 1), (pass_at_k, 9, 1), (policy_at_k, 1, 2), (policy_at_k, 9, 2)],
)
def test_k_must_be_possible_in_the_group(estimator, pass_k, least):
    with pytest.raises(ValueError, match=rf"algorithm\.pass_k={pass_k}: must be from {least} to group_size=8; "):
        estimator(BINARY, pass_k=pass_k)


def best_without(group: list[float], pass_k: int) -> list[float]:
    """G times the mean over all subsets of size k, those without i counting 0, of what the best loses without i."""
    total = [0.0] * len(group)
    for subset in itertools.combinations(range(len(group)), pass_k):
        for i in subset:
            total[i] += max(group[j] for j in subset) - max(group[j] for j in subset if j != i)
    return [len(group) * value / math.comb(len(group), pass_k) for value in total]


@pytest.mark.parametrize(
    "rewards",
    [
        RANDOM[:6],
        BINARY,
        tensor([0.5, 0.5, -1, 2, 2, -1], [0, 0, 0, 0, 0, 0], [3, 3, 3, 3, 3, 3], [1, 2, 3, 4, 5, 6]),
        tensor([1, 0], [0, 1], [-1, -1]),
    ],
    ids=["real", "binary", "ties", "pairs"],
)
def test_policy_at_k_is_the_sum_over_all_subsets(rewards):
    for pass_k in range(2, rewards.shape[1] + 1):
        made = policy_at_k(rewards, pass_k=pass_k)
        assert made.dtype == torch.float64 and made.min() >= -1e-12
        for group, weights in zip(rewards.tolist(), made.tolist(), strict=True):
            assert weights == pytest.approx(best_without(group, pass_k), rel=1e-9, abs=1e-9)


def test_policy_at_k_follows_its_answers_and_ignores_an_offset():
    order = torch.randperm(8, generator=torch.Generator().manual_seed(5))
    made = policy_at_k(RANDOM, pass_k=3)
    torch.testing.assert_close(policy_at_k(RANDOM[:, order], pass_k=3), made[:, order], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(policy_at_k(2 * RANDOM + 5, pass_k=3), 2 * made, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pass_k", [2, 3])
def test_policy_at_k_is_an_unbiased_gradient_of_the_best_of_k(pass_k):
    logits = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64, requires_grad=True)
    earned = torch.tensor([0.2, 1.5, -0.4], dtype=torch.float64)
    log_p = logits.log_softmax(0)
    draws = torch.tensor(list(itertools.product(range(3), repeat=pass_k)))
    wanted = (log_p[draws].sum(dim=1).exp() * earned[draws].amax(dim=1)).sum()
    samples = torch.tensor(list(itertools.product(range(3), repeat=4)))
    chance = log_p[samples].sum(dim=1).exp().detach()
    estimate = (chance * (policy_at_k(earned[samples], pass_k=pass_k) * log_p[samples]).mean(dim=1)).sum()
    exact, made = (torch.autograd.grad(part, logits, retain_graph=True)[0] for part in (wanted, estimate))
    torch.testing.assert_close(made, exact, rtol=1e-10, atol=1e-12)


def token_inputs(seed: int = 0, rows: int = 12, length: int = 9):
    generator = np.random.default_rng(seed)
    rewards, values = generator.normal(0, 1, (2, rows, length))
    mask = generator.random((rows, length)) < 0.7
    mask[0], mask[1], mask[2, :5] = True, False, False
    return torch.tensor(rewards), torch.tensor(values), torch.tensor(mask)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.8), (1.0, 0.95), (0.7, 1.0), (0.9, 0.0)])
def test_generalized_is_the_discounted_sum_of_temporal_differences(gamma, lam):
    rewards, values, mask = token_inputs()
    advantages, returns = generalized(rewards, values, mask, gamma=gamma, lam=lam)
    assert not advantages[~mask].any() and not returns[~mask].any()
    for row in range(len(mask)):
        r, v = rewards[row, mask[row]].tolist(), [*values[row, mask[row]].tolist(), 0.0]
        deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
        expected = [sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, len(r))) for t in range(len(r))]
        assert advantages[row, mask[row]].tolist() == pytest.approx(expected, rel=1e-10, abs=1e-10)
        assert returns[row, mask[row]].tolist() == pytest.approx([a + b for a, b in zip(expected, v, strict=False)])


def test_generalized_in_the_limits_of_its_parameters():
    rewards, values, mask = token_inputs()
    future = torch.tensor((rewards * mask).numpy()[:, ::-1].cumsum(axis=1)[:, ::-1].copy()) * mask
    made = generalized(rewards, torch.zeros_like(values), mask)
    torch.testing.assert_close(made[0], future, rtol=0, atol=1e-12)
    torch.testing.assert_close(generalized(rewards, values, mask)[1], future, rtol=0, atol=1e-12)
    assert generalized(rewards, future, mask)[0].abs().max() < 1e-12
    terminal = torch.zeros(1, 5, dtype=torch.float64).index_fill(1, torch.tensor(3), 2.5)
    until = torch.tensor([[True, True, True, True, False]])
    advantages, returns = generalized(terminal, torch.zeros(1, 5).double(), until)
    assert advantages.tolist() == returns.tolist() == [[2.5, 2.5, 2.5, 2.5, 0.0]]


def test_generalized_does_not_read_what_does_not_count():
    rewards, values, mask = token_inputs()
    wild = generalized(rewards.masked_fill(~mask, 1e6), values.masked_fill(~mask, -1e6), mask, gamma=0.9, lam=0.8)
    for ours, theirs in zip(wild, generalized(rewards, values, mask, gamma=0.9, lam=0.8), strict=True):
        assert torch.equal(ours, theirs)


def tokens_of(advantages, entropy, correct=None, mask=None) -> AnswerTokens:
    """`correct` in groups of two."""
    right = torch.ones(len(advantages), 1) if correct is None else torch.tensor(correct).view(-1, 2)
    no = torch.zeros_like(right)
    groups = Groups(right.double(), right.bool(), no.long(), no.bool(), no.double(), no.bool(), no.long(), 9)
    return AnswerTokens(advantages, entropy, torch.ones_like(entropy).bool() if mask is None else mask, groups)


def test_groups_without_variance_learn_by_the_entropy_of_each_token():
    right, wrong = [1, 1, 0, 0, 1, 0], tensor([0.2, 0.8], [0.5, 0.7], [0.2, 0.8], [0.5, 0.7], [0.2, 0.8], [0.5, 0.7])
    plain = tensor([0, 0], [0, 0], [0, 0], [0, 0], [1, 1], [-1, -1])
    made = zero_variance(tokens_of(plain, wrong, right), alpha=0.1)
    expected = tensor([0.02, 0.08], [0.05, 0.07], [-0.06, 0], [-0.02, 0], [1, 1], [-1, -1])
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)
    long = tensor([1.2, 0.3, 0.05], [1.2, 0.3, 0.05])
    for all_right, told in ((1, [0.12, 0.03, 0.005]), (0, [0, -0.09, -0.115])):
        made = zero_variance(tokens_of(torch.zeros_like(long), long, [all_right] * 2), alpha=0.1)
        assert made[0].tolist() == pytest.approx(told, abs=1e-12)


def test_the_peak_of_a_wrong_answer_is_that_of_its_tokens_that_count():
    entropy, mask = tensor([0.2, 0.5, 9.0], [0.4, 9.0, 9.0]), torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    made = zero_variance(tokens_of(torch.zeros_like(entropy), entropy, [0, 0], mask), alpha=1.0)
    torch.testing.assert_close(made, tensor([-0.3, 0, 0], [0, 0, 0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("strength", "bound"), [(0.4, 2.0), (0.0, 2.0), (3.0, 1.5), (0.4, 100.0)])
def test_entropy_shaped_is_the_formula_and_keeps_the_sign(strength, bound):
    advantages, values, _ = token_inputs()
    entropy = values.abs().requires_grad_()
    made = entropy_shaped(tokens_of(advantages, entropy), strength=strength, bound=bound)
    assert not made.requires_grad
    for a, h, shaped in zip(*(part.detach().flatten().tolist() for part in (advantages, entropy, made)), strict=True):
        assert shaped == pytest.approx(a + min(strength * h, abs(a) / bound), abs=1e-12)
        assert math.copysign(1, shaped) == math.copysign(1, a)
    assert entropy_shaped(tokens_of(tensor([0, 1, -1]), tensor([5, 0, 9]))).tolist() == [[0.0, 1.0, -0.5]]

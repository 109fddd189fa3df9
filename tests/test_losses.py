"""Losses, KL estimators and aggregations against hand values and an independent float64 computation."""

import numpy as np
import pytest
import torch

from ngrpo.losses import AGGREGATIONS, KL_ESTIMATORS, Counts, clipped_surrogate, kl_k1, kl_k2, kl_k3, reinforce


def random_inputs(seed: int = 0, rows: int = 12, length: int = 9):
    generator = np.random.default_rng(seed)
    old = -generator.exponential(2.0, (rows, length))
    new = old + generator.normal(0, 0.5, (rows, length))
    advantages = generator.normal(0, 1.5, (rows, length))
    mask = np.arange(length)[None] < generator.integers(1, length + 1, rows)[:, None]
    return new, old, advantages, mask


def reference_surrogate(new, old, advantages, low, high, dual):
    """-min(r A, clip(r) A), then at most -dual * A where A < 0; one number at a time."""
    out = np.empty_like(new)
    for index in np.ndindex(new.shape):
        ratio, a = np.exp(min(max(new[index] - old[index], -20), 20)), advantages[index]
        value = -min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a)
        out[index] = min(value, -dual * a) if dual is not None and a < 0 else value
    return out


@pytest.mark.parametrize(
    ("low", "high", "dual"), [(0.2, 0.2, None), (0.2, 0.28, None), (0.16, 0.24, 3.0), (0.2, 0.2, 1.5)]
)
def test_surrogate_and_its_gradient_against_a_plain_float64_computation(low, high, dual):
    new, old, advantages, mask = random_inputs()
    expected = reference_surrogate(new, old, advantages, low, high, dual)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        given = [torch.tensor(value, dtype=dtype) for value in (new, old, advantages)]
        given[0].requires_grad_()
        made = clipped_surrogate(*given, torch.tensor(mask), clip_low=low, clip_high=high, dual_clip=dual)
        torch.testing.assert_close(made.loss.detach().double(), torch.tensor(expected), rtol=tolerance, atol=tolerance)
    given = [torch.tensor(value) for value in (new, old, advantages)]
    given[0].requires_grad_()
    made = clipped_surrogate(*given, torch.tensor(mask), clip_low=low, clip_high=high, dual_clip=dual)
    made.loss.sum().backward()
    step = 1e-6
    up = reference_surrogate(new + step, old, advantages, low, high, dual)
    down = reference_surrogate(new - step, old, advantages, low, high, dual)
    torch.testing.assert_close(given[0].grad, torch.tensor((up - down) / (2 * step)), rtol=1e-6, atol=1e-7)
    flat = (given[0].grad == 0).numpy()
    assert flat.any() and (~flat).any()
    assert np.array_equal(made.clipped.numpy(), flat & mask), "clipped marks the tokens without gradient, padding aside"


def test_clipping_acts_on_one_side_only_of_each_sign():
    ratio = torch.tensor([0.5, 1.5, 0.5, 1.5], dtype=torch.float64)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    made = clipped_surrogate(ratio.log(), torch.zeros(4), advantages, torch.ones(4, dtype=torch.bool))
    assert made.loss.tolist() == pytest.approx([-0.5, -1.2, 0.8, 1.5], abs=1e-12)
    assert made.clipped.tolist() == [False, True, True, False]


def test_dual_clip_caps_the_loss_of_negative_advantages_only():
    ratio = torch.tensor([5.0, 5.0, 2.0], dtype=torch.float64)
    advantages = torch.tensor([-2.0, 2.0, -2.0], dtype=torch.float64)
    given = (ratio.log().requires_grad_(), torch.zeros(3), advantages, torch.ones(3, dtype=torch.bool))
    made = clipped_surrogate(*given, dual_clip=3.0)
    made.loss.sum().backward()
    assert made.loss.tolist() == pytest.approx([6.0, -2.4, 4.0], abs=1e-12)
    assert given[0].grad.tolist() == pytest.approx([0.0, 0.0, 4.0], abs=1e-12)
    assert made.clipped.tolist() == [True, True, False]


def test_at_ratio_one_the_loss_is_minus_the_advantage_and_the_gradient_that_of_reinforce():
    new, _, advantages, mask = (torch.tensor(value) for value in random_inputs())
    new.requires_grad_()
    surrogate = clipped_surrogate(new, new.detach(), advantages, mask)
    assert torch.equal(surrogate.loss.detach(), -advantages) and not surrogate.clipped.any()
    plain = reinforce(new, new.detach(), advantages, mask)
    ours, theirs = (torch.autograd.grad(part.loss.sum(), new)[0] for part in (surrogate, plain))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-15)
    torch.testing.assert_close(theirs, -advantages, rtol=0, atol=0)
    assert torch.equal(plain.loss.detach(), -advantages * new.detach()) and not plain.clipped.any()


def test_a_ratio_beyond_all_bounds_stays_finite():
    new = torch.tensor([0.0, -500.0, 0.0], requires_grad=True)
    made = clipped_surrogate(
        new, torch.tensor([-500.0, 0.0, -500.0]), torch.tensor([1.0, -1.0, -1.0]), torch.ones(3).bool()
    )
    made.loss.sum().backward()
    assert made.loss.isfinite().all() and new.grad.isfinite().all()


def test_kl_estimators_have_their_values():
    policy, reference = torch.tensor([-1.0, -2.0, -0.5]).double(), torch.tensor([-1.5, -1.0, -0.5]).double()
    assert kl_k1(policy, reference).tolist() == [0.5, -1.0, 0.0]
    assert kl_k2(policy, reference).tolist() == [0.125, 0.5, 0.0]
    expected = [np.exp(-0.5) + 0.5 - 1, np.exp(1.0) - 1 - 1, 0.0]
    assert kl_k3(policy, reference).tolist() == pytest.approx(expected, abs=1e-15)
    assert set(KL_ESTIMATORS) == {"k1", "k2", "k3"}


def test_k3_is_never_negative_zero_only_where_equal_and_finite_everywhere():
    gaps = torch.cat((torch.linspace(-600, 600, 4001), torch.linspace(-1, 1, 2001))).double()
    policy = torch.full_like(gaps, -1.0)
    values = kl_k3(policy, policy + gaps)
    assert values.isfinite().all() and (values >= 0).all()
    assert torch.equal(values == 0, gaps.abs() < 1e-8)


def test_k1_and_k3_are_unbiased_and_k2_is_nearly_so():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=generator).double()
    p = logits.log_softmax(0)
    q = (logits + 0.1 * torch.randn(6, generator=generator).double()).log_softmax(0)
    exact = (p.exp() * (p - q)).sum()
    for name, tolerance in (("k1", 1e-12), ("k3", 1e-12), ("k2", 0.2)):
        expected = (p.exp() * KL_ESTIMATORS[name](p, q)).sum()
        assert expected.item() == pytest.approx(exact.item(), rel=tolerance), name


def test_the_gradient_of_k2_as_a_loss_is_that_of_the_kl():
    logits = torch.randn(6, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    q = torch.randn(6, generator=torch.Generator().manual_seed(2)).double().log_softmax(0)
    p = logits.log_softmax(0)
    exact = torch.autograd.grad((p.exp() * (p - q)).sum(), logits, retain_graph=True)[0]
    as_loss = torch.autograd.grad((p.exp().detach() * kl_k2(p, q)).sum(), logits)[0]
    torch.testing.assert_close(as_loss, exact, rtol=1e-10, atol=1e-12)


def counts_of(mask: torch.Tensor, length: int) -> Counts:
    return Counts(mask.sum().float(), mask.any(dim=1).sum().float(), length)


@pytest.mark.parametrize(
    ("name", "alike", "different"),
    [
        ("token_mean", 1.0, 1.25),
        ("sequence_mean_token_mean", 1.0, 1.5),
        ("sequence_mean_token_sum", 2.0, 2.5),
        ("sequence_mean_token_sum_norm", 0.2, 0.25),
    ],
)
def test_hand_values_for_answers_of_one_and_three_tokens(name, alike, different):
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]]).bool()
    weights = AGGREGATIONS[name](mask, counts_of(mask, 10))
    assert not weights[~mask].any()
    assert weights.sum().item() == pytest.approx(alike, rel=1e-6)
    assert (torch.tensor([[2.0, 9, 9], [1, 1, 1]]) * weights).sum().item() == pytest.approx(different, rel=1e-6)


def test_aggregations_coincide_up_to_a_constant_for_answers_of_one_length():
    mask = torch.arange(7)[None].expand(5, 7) < 4
    constants = {
        "token_mean": 1,
        "sequence_mean_token_mean": 1,
        "sequence_mean_token_sum": 4,
        "sequence_mean_token_sum_norm": 0.4,
    }
    assert set(constants) == set(AGGREGATIONS)
    for name, constant in constants.items():
        weights = AGGREGATIONS[name](mask, counts_of(mask, 10))
        torch.testing.assert_close(weights, constant * mask / mask.sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_any_split_into_micro_batches_sums_to_the_whole(name):
    new, old, advantages, mask = (torch.tensor(value) for value in random_inputs(rows=13))
    mask[4] = False  # a sequence of which nothing counts
    losses = clipped_surrogate(new, old, advantages, mask).loss
    counts = counts_of(mask, 12)
    whole = (losses * AGGREGATIONS[name](mask, counts)).sum()
    for size in (1, 2, 5, 12, 13):
        order = torch.randperm(13, generator=torch.Generator().manual_seed(size))
        parts = [(losses[part, :9] * AGGREGATIONS[name](mask[part], counts)).sum() for part in order.split(size)]
        torch.testing.assert_close(torch.stack(parts).sum(), whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_a_batch_in_which_nothing_counts_has_weight_zero(name):
    mask = torch.zeros(3, 4, dtype=torch.bool)
    assert not AGGREGATIONS[name](mask, counts_of(mask, 8)).any()

"""Losses, KL estimators and aggregations against hand values and an independent float64 computation."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from ngrpo.algorithm import losses, selections
from ngrpo.algorithm.algorithm import Algorithm
from ngrpo.algorithm.critic import clipped_value_loss
from ngrpo.algorithm.inputs import Counts, LossInputs
from ngrpo.algorithm.losses import AGGREGATIONS, KL_ESTIMATORS, kl_k1, kl_k2, kl_k3
from ngrpo.targets import SettingsError


def on_tensors(loss):
    """The loss as a function of the tensors that its formula names."""

    def called(log_probs, old, advantages, mask, *, selected=None, top_log_probs=None, greedy=None, **knobs):
        extras = {"selected": selected, "top_log_probs": top_log_probs, "greedy": greedy}
        return loss(LossInputs(log_probs, old, advantages, mask, **extras), **knobs)

    return called


clipped_surrogate = on_tensors(losses.clipped_surrogate)
sequence_surrogate = on_tensors(losses.sequence_surrogate)
sequence_token_surrogate = on_tensors(losses.sequence_token_surrogate)
geometric_surrogate = on_tensors(losses.geometric_surrogate)
clipped_weight = on_tensors(losses.clipped_weight)
reinforce = on_tensors(losses.reinforce)
selected_only = on_tensors(selections.selected_only)
selected_clipped = on_tensors(selections.selected_clipped)
selected_penalized = on_tensors(selections.selected_penalized)
top_smoothed = on_tensors(selections.top_smoothed)


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
        given = [*(torch.tensor(value, dtype=dtype) for value in (new, old, advantages)), torch.tensor(mask)]
        given[0].requires_grad_()
        made = clipped_surrogate(*given, clip_low=low, clip_high=high, dual_clip=dual)
        torch.testing.assert_close(made.loss.detach().double(), torch.tensor(expected), rtol=tolerance, atol=tolerance)
    given = [torch.tensor(value) for value in (new, old, advantages, mask)]
    given[0].requires_grad_()
    made = clipped_surrogate(*given, clip_low=low, clip_high=high, dual_clip=dual)
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
    (gradient,) = torch.autograd.grad(made.loss.sum(), given[0])
    assert made.loss.tolist() == pytest.approx([6.0, -2.4, 4.0], abs=1e-12)
    assert gradient.tolist() == pytest.approx([0.0, 0.0, 4.0], abs=1e-12)
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
    (gradient,) = torch.autograd.grad(made.loss.sum(), new)
    assert made.loss.isfinite().all() and gradient.isfinite().all()


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


# Of the others every weight is settled by the whole mini-batch.
OF_WHOLES = {name: function for name, function in AGGREGATIONS.items() if name != "token_mean_of_micro_batches"}


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


def test_the_two_token_means_differ_where_answers_differ_in_length():
    """Answers of 2 and of 8 tokens in micro-batches of one: each of them is half of one mean, and a fifth of the other."""
    mask = torch.arange(8)[None] < torch.tensor([[2], [8]])
    counts = Counts(torch.tensor(10.0), torch.tensor(2.0), 8, 2)
    short, long = (AGGREGATIONS["token_mean_of_micro_batches"](row[None], counts) for row in mask)
    assert short.sum() == long.sum() == 0.5 and short[0, 0] == 0.25 and long[0, 0] == 0.0625
    assert (AGGREGATIONS["token_mean"](mask, counts)[mask] == torch.tensor(0.1)).all()
    one = Counts(torch.tensor(10.0), torch.tensor(2.0), 8, 1)
    assert torch.equal(*(AGGREGATIONS[name](mask, one) for name in ("token_mean", "token_mean_of_micro_batches")))


def test_aggregations_coincide_up_to_a_constant_for_answers_of_one_length():
    mask = torch.arange(7)[None].expand(5, 7) < 4
    constants = {
        "token_mean": 1,
        "sequence_mean_token_mean": 1,
        "sequence_mean_token_sum": 4,
        "sequence_mean_token_sum_norm": 0.4,
    }
    assert set(constants) == set(OF_WHOLES)
    for name, constant in constants.items():
        weights = AGGREGATIONS[name](mask, counts_of(mask, 10))
        torch.testing.assert_close(weights, constant * mask / mask.sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", OF_WHOLES)
def test_any_split_into_micro_batches_sums_to_the_whole(name):
    new, old, advantages, mask = (torch.tensor(value) for value in random_inputs(rows=13))
    mask[4] = False  # a sequence of which nothing counts
    made = clipped_surrogate(new, old, advantages, mask).loss
    counts = counts_of(mask, 12)
    whole = (made * AGGREGATIONS[name](mask, counts)).sum()
    for size in (1, 2, 5, 12, 13):
        order = torch.randperm(13, generator=torch.Generator().manual_seed(size))
        parts = [(made[part, :9] * AGGREGATIONS[name](mask[part], counts)).sum() for part in order.split(size)]
        torch.testing.assert_close(torch.stack(parts).sum(), whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_a_batch_in_which_nothing_counts_has_weight_zero(name):
    mask = torch.zeros(3, 4, dtype=torch.bool)
    assert not AGGREGATIONS[name](mask, counts_of(mask, 8)).any()


def ragged_inputs(seed: int = 3, rows: int = 12, length: int = 9):
    """Like random_inputs, with holes in the masks, an answer of which nothing counts and answers of one token."""
    new, old, advantages, mask = random_inputs(seed, rows, length)
    generator = np.random.default_rng(seed + 100)
    mask &= generator.random(mask.shape) < 0.8
    mask[:, 0] = True
    mask[2, 1:], mask[5, :] = False, False
    new[3], old[3] = -30.0, -1.0  # a log ratio beyond the limit
    return new, old, advantages, mask


def graded(loss, new, weights):
    """TokenLoss of `loss` at new and the gradient of its weighted sum."""
    leaf = torch.tensor(new).requires_grad_()
    made = loss(leaf)
    (made.loss * torch.tensor(weights)).sum().backward()
    assert leaf.grad is not None
    return made, leaf.grad


def slope(value, at, step=1e-6):
    """Central differences of the number value(x) in every element of x."""
    out = np.empty_like(at)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        out[index] = (value(up) - value(down)) / (2 * step)
    return out


def clamped(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def close(ours, expected, tolerance: float = 1e-6):
    torch.testing.assert_close(ours.detach(), torch.tensor(expected), rtol=tolerance, atol=tolerance)


def weights_for(mask):
    return np.random.default_rng(9).uniform(0.2, 1.0, mask.shape) * mask


def reference_sequence(new, old, advantages, mask, low, high, dual):
    out = np.zeros_like(new)
    for i, row in enumerate(mask):
        where = [t for t, counts in enumerate(row) if counts]
        if where:
            mean = math.fsum(clamped(new[i, t] - old[i, t], -20, 20) for t in where) / len(where)
            ratio = math.exp(mean)
            for t in where:
                a = advantages[i, t]
                out[i, t] = -min(ratio * a, clamped(ratio, 1 - low, 1 + high) * a)
                if dual is not None and a < 0:
                    out[i, t] = min(out[i, t], -dual * a)
    return out


@pytest.mark.parametrize(
    ("low", "high", "dual"), [(3e-4, 4e-4, None), (0.2, 0.1, None), (0.05, 0.1, 1.15), (0.9, 9.0, None)]
)
def test_sequence_surrogates_against_a_plain_float64_computation(low, high, dual):
    new, old, advantages, mask = ragged_inputs()
    weights = weights_for(mask)
    given = [torch.tensor(part) for part in (old, advantages, mask)]
    settings = {"clip_low": low, "clip_high": high, "dual_clip": dual}
    expected = reference_sequence(new, old, advantages, mask, low, high, dual)
    made, gradient = graded(lambda leaf: sequence_surrogate(leaf, *given, **settings), new, weights)
    close(made.loss[given[2]], expected[mask], 1e-10)
    exact = slope(lambda x: (weights * reference_sequence(x, old, advantages, mask, low, high, dual)).sum(), new)
    close(gradient, exact)
    by_token, token_gradient = graded(lambda leaf: sequence_token_surrogate(leaf, *given, **settings), new, weights)
    close(by_token.loss[given[2]], expected[mask], 1e-10)
    bounds = np.zeros_like(mask)
    wanted = np.zeros_like(new)
    for i, t in zip(*mask.nonzero(), strict=True):
        a = advantages[i, t]
        ratio = math.exp(np.mean(np.clip(new - old, -20, 20)[i, mask[i]]))
        beyond = ratio > 1 + high if a > 0 else ratio < 1 - low
        bounds[i, t] = beyond or (dual is not None and a < 0 and ratio > dual)
        wanted[i, t] = 0 if bounds[i, t] else -weights[i, t] * ratio * a
    close(token_gradient, wanted)
    for part in (made, by_token):
        assert np.array_equal(part.clipped.numpy(), bounds)
    assert bounds.any() and not bounds[mask].all()


def test_the_ratio_of_an_answer_of_one_token_is_the_tokens():
    new, old, advantages, _ = (torch.tensor(part[:, :1]) for part in random_inputs(rows=40))
    mask = torch.ones_like(new, dtype=torch.bool)
    parts = {}
    for loss in (clipped_surrogate, sequence_surrogate, sequence_token_surrogate):
        leaf = new.clone().requires_grad_()
        made = loss(leaf, old, advantages, mask, clip_low=0.2, clip_high=0.28, dual_clip=1.5)
        parts[loss] = (made.loss.detach(), torch.autograd.grad(made.loss.sum(), leaf)[0], made.clipped.double())
    for loss in (sequence_surrogate, sequence_token_surrogate):
        torch.testing.assert_close(parts[loss], parts[clipped_surrogate], rtol=1e-12, atol=1e-12)
    assert 0 < parts[clipped_surrogate][2].sum() < 40


def answers(rows: int = 12, length: int = 9):
    """Log-probabilities, their old values, one advantage per answer and masks without empty answers, as tensors."""
    new, old, advantages, mask = random_inputs(5, rows, length)
    advantages[:] = advantages[:, :1]
    return tuple(torch.tensor(part) for part in (new, old, advantages, mask))


def aggregated(name, loss, mask):
    counts = Counts(mask.sum().double(), mask.any(dim=1).sum().double(), 12)
    return (loss * AGGREGATIONS[name](mask, counts)).sum()


def test_at_ratio_one_the_gradient_of_a_sequence_ratio_is_that_of_the_token_ratios():
    new, _, advantages, mask = answers()
    gradients = []
    for loss in (clipped_surrogate, sequence_surrogate, sequence_token_surrogate, geometric_surrogate):
        leaf = new.clone().requires_grad_()
        made = loss(leaf, new, advantages, mask)
        assert not made.clipped.any()
        gradients.append(torch.autograd.grad(aggregated("sequence_mean_token_mean", made.loss, mask), leaf)[0])
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-12, atol=1e-14)
    assert gradients[0].abs().max() > 0.01


@pytest.mark.parametrize("bound", [4e-4, 0.2, 5.0])
def test_a_token_ratio_of_equal_advantages_has_the_gradient_of_the_sequence_ratio(bound):
    new, old, advantages, mask = answers()
    gradients = []
    for loss in (sequence_surrogate, sequence_token_surrogate):
        leaf = new.clone().requires_grad_()
        made = loss(leaf, old, advantages, mask, clip_low=min(bound, 0.9), clip_high=bound)
        gradients.append(torch.autograd.grad(aggregated("sequence_mean_token_mean", made.loss, mask), leaf)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-14)
    assert gradients[0].any()


def reference_geometric(new, old, advantages, mask, clip):
    out, cut = np.zeros_like(new), np.zeros_like(mask)
    for i, row in enumerate(mask):
        where = [t for t, counts in enumerate(row) if counts]
        if where:
            a = math.fsum(advantages[i, t] for t in where) / len(where)
            product = 1.0
            for t in where:
                log_ratio = clamped(new[i, t] - old[i, t], -20, 20)
                bounded = min(log_ratio, clip) if a > 0 else max(log_ratio, -clip)
                cut[i, t] = bounded != log_ratio
                product *= math.exp(bounded) ** (1 / len(where))
            out[i, where] = -a * product
    return out, cut


@pytest.mark.parametrize("clip", [0.4, 0.05])
def test_geometric_surrogate_against_a_plain_float64_computation(clip):
    new, old, advantages, mask = ragged_inputs()
    weights = weights_for(mask)
    given = [torch.tensor(part) for part in (old, advantages, mask)]
    made, gradient = graded(lambda leaf: geometric_surrogate(leaf, *given, clip=clip), new, weights)
    expected, cut = reference_geometric(new, old, advantages, mask, clip)
    close(made.loss[given[2]], expected[mask], 1e-10)
    close(gradient, slope(lambda x: (weights * reference_geometric(x, old, advantages, mask, clip)[0]).sum(), new))
    assert np.array_equal(made.clipped.numpy(), cut) and cut.any() and not cut[mask].all()


def test_the_geometric_mean_is_clipped_on_the_side_that_the_advantage_rewards():
    log_ratio = torch.tensor([[3.0, -3.0]] * 3, dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)[:, None].expand(3, 2)
    made = geometric_surrogate(log_ratio, torch.zeros(3, 2), advantages, torch.ones(3, 2).bool())
    up, down = math.exp((0.4 - 3) / 2), math.exp((3 - 0.4) / 2)
    assert made.loss.flatten().tolist() == pytest.approx([-up, -up, down, down, 0, 0], abs=1e-12)
    assert made.clipped.tolist() == [[True, False], [False, True], [False, False]]
    gradient = torch.autograd.grad(made.loss.mean(dim=1).sum(), log_ratio)[0]
    assert gradient.flatten().tolist() == pytest.approx([0, -up / 2, down / 2, 0, 0, 0], abs=1e-12)


@pytest.mark.parametrize(("low", "high"), [(1.0, 4.0), (0.2, 0.28), (1.0, 0.1)])
def test_clipped_weight_against_a_plain_float64_computation(low, high):
    new, old, advantages, mask = ragged_inputs()
    weights = weights_for(mask)
    given = [torch.tensor(part) for part in (old, advantages, mask)]
    made, gradient = graded(lambda leaf: clipped_weight(leaf, *given, clip_low=low, clip_high=high), new, weights)
    for i, t in np.ndindex(new.shape):
        ratio = math.exp(clamped(float(new[i, t] - old[i, t]), -20, 20))
        bounded = clamped(ratio, 1 - low, 1 + high)
        assert made.loss[i, t].item() == pytest.approx(-bounded * advantages[i, t] * new[i, t], rel=1e-10)
        assert gradient[i, t].item() == pytest.approx(-weights[i, t] * bounded * advantages[i, t], rel=1e-10)
        assert made.clipped[i, t].item() == bool(mask[i, t] and bounded != ratio)


def test_a_bounded_weight_keeps_the_gradient_that_a_clipped_ratio_loses():
    ratio = torch.tensor([2.0, 0.5, 9.0], dtype=torch.float64)
    advantages, mask = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64), torch.ones(3).bool()
    gradients = []
    for loss in (clipped_surrogate, clipped_weight):
        leaf = ratio.log().requires_grad_()
        gradients.append(torch.autograd.grad(loss(leaf, torch.zeros(3), advantages, mask).loss.sum(), leaf)[0].tolist())
    assert gradients[0] == [0, 0, 0]
    assert gradients[1] == pytest.approx([-2.0, 0.5, -5.0], rel=1e-12)


def test_negative_reinforcement_spreads_what_it_takes_in_proportion_to_the_policy():
    logits = torch.randn(7, generator=torch.Generator().manual_seed(4)).double().requires_grad_()
    log_p = logits.log_softmax(0)
    p, sampled, one = log_p.exp().detach(), 2, torch.ones(1)
    for sign in (-1.0, 1.0):
        for loss in (reinforce, clipped_surrogate):
            taken = loss(log_p[sampled : sampled + 1], log_p[sampled : sampled + 1].detach(), sign * one, one.bool())
            step = -torch.autograd.grad(taken.loss.sum(), logits, retain_graph=True)[0]
            assert step[sampled].item() == pytest.approx(sign * (1 - p[sampled].item()), rel=1e-10)
            others = torch.arange(7) != sampled
            torch.testing.assert_close(step[others], -sign * p[others], rtol=1e-10, atol=0)


def chosen_for(mask):
    generator = np.random.default_rng(11)
    return (generator.random(mask.shape) < 0.5) & mask, generator.random(mask.shape) < 0.5


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.1, 0.3)])
def test_selections_switch_the_surrogate_on_or_off(low, high):
    new, old, advantages, mask = ragged_inputs()
    selected, weights = chosen_for(mask)[0], weights_for(mask)
    given = [torch.tensor(part) for part in (old, advantages, mask)]
    for loss, kept in ((selected_only, selected), (selected_clipped, ~selected)):
        made, gradient = graded(
            lambda leaf, loss=loss: loss(leaf, *given, selected=torch.tensor(selected), clip_low=low, clip_high=high),
            new,
            weights,
        )
        expected = reference_surrogate(new, old, advantages, low, high, None) * kept
        close(made.loss[given[2]], expected[mask], 1e-10)
        exact = slope(
            lambda x, k=kept: (weights * k * reference_surrogate(x, old, advantages, low, high, None)).sum(), new
        )
        close(gradient, exact)
        flat = mask & kept & (exact == 0)
        assert np.array_equal(made.clipped.numpy(), flat if loss is selected_only else flat | selected)
        assert selected.any() and flat.any() and (gradient != 0).any()


@pytest.mark.parametrize("coefficient", [1.0, 0.03])
def test_selected_penalized_against_a_plain_float64_computation(coefficient):
    new, old, advantages, mask = ragged_inputs()
    selected, weights = chosen_for(mask)[0], weights_for(mask)
    given = [torch.tensor(part) for part in (old, advantages, mask)]

    def expected(x):
        out = np.zeros_like(x)
        for index in np.ndindex(x.shape):
            log_ratio = clamped(x[index] - old[index], -20, 20)
            out[index] = -math.exp(log_ratio) * advantages[index] + coefficient * abs(log_ratio) * selected[index]
        return out

    made, gradient = graded(
        lambda leaf: selected_penalized(leaf, *given, selected=torch.tensor(selected), coefficient=coefficient),
        new,
        weights,
    )
    close(made.loss, expected(new), 1e-10)
    close(gradient, slope(lambda x: (weights * expected(x)).sum(), new))
    assert not made.clipped.any()


def test_the_covariance_penalty_has_no_gradient_before_the_policy_moves():
    new, _, advantages, mask = answers()
    leaf = new.clone().requires_grad_()
    made = selected_penalized(leaf, new, advantages, mask, selected=mask, coefficient=7.0)
    torch.testing.assert_close(torch.autograd.grad(made.loss.sum(), leaf)[0], -advantages, rtol=0, atol=0)


@pytest.mark.parametrize(("smoothing", "penalty"), [(0.01, 1.1), (0.6, 2.0), (1.0, 1.0)])
def test_top_smoothed_against_a_plain_float64_computation(smoothing, penalty):
    new, old, advantages, mask = ragged_inputs()
    (selected, greedy), weights = chosen_for(mask), weights_for(mask)
    top = -np.random.default_rng(1).exponential(1.0, (*new.shape, 3))
    given = [torch.tensor(part) for part in (old, advantages, mask)]
    likeliest = torch.tensor(top).requires_grad_()
    made, gradient = graded(
        lambda leaf: top_smoothed(
            leaf,
            *given,
            selected=torch.tensor(selected),
            top_log_probs=likeliest,
            greedy=torch.tensor(greedy),
            smoothing=smoothing,
            penalty=penalty,
            clip_low=0.2,
            clip_high=0.28,
        ),
        new,
        weights,
    )
    own, spread, value = np.zeros_like(new), np.zeros_like(top), np.zeros_like(new)
    for index in zip(*mask.nonzero(), strict=True):
        a, log_ratio = advantages[index], float(new[index] - old[index])
        ratio = math.exp(clamped(log_ratio, -20, 20))
        scaled = a * penalty if selected[index] and greedy[index] and a < 0 else a
        value[index] = -min(ratio * scaled, clamped(ratio, 0.8, 1.28) * scaled)
        if ratio <= 1.28 if a > 0 else ratio >= 0.8:
            share = smoothing if selected[index] and a > 0 else 0.0
            own[index] = -weights[index] * scaled * ratio * (1 - share) * (abs(log_ratio) <= 20)
            spread[index] = -weights[index] * scaled * ratio * share / 3
    close(made.loss[given[2]], value[mask], 1e-10)
    close(gradient, own, 1e-10)
    assert likeliest.grad is not None
    close(likeliest.grad, spread, 1e-10)
    assert spread.any() and not spread.all()


def smoothed(log_probs, old, advantages, mask, top=None, **settings):
    top = log_probs[..., None].expand(*log_probs.shape, 3) if top is None else top
    full = {"selected": mask, "top_log_probs": top, "greedy": mask, **settings}
    return top_smoothed(log_probs, old, advantages, mask, **full)


def test_smoothing_leaves_the_value_and_without_it_nothing_changes():
    new, old, advantages, mask = answers()
    plain = clipped_surrogate(new, old, advantages, mask)
    for smoothing in (0.0, 0.01, 1.0):
        made = smoothed(
            new, old, advantages, mask, top=torch.randn(*new.shape, 3).double(), smoothing=smoothing, penalty=1
        )
        torch.testing.assert_close(made.loss, plain.loss, rtol=1e-14, atol=1e-14)
    nothing = torch.zeros_like(mask)
    leaf = new.clone().requires_grad_()
    (reference,) = torch.autograd.grad(clipped_surrogate(leaf, old, advantages, mask).loss.sum(), leaf)
    for settings in ({"smoothing": 0.0, "penalty": 1.0}, {"selected": nothing, "smoothing": 0.5, "penalty": 3.0}):
        made = smoothed(leaf, old, advantages, mask, **settings)
        assert torch.equal(made.loss, plain.loss) and torch.equal(made.clipped, plain.clipped)
        assert torch.equal(torch.autograd.grad(made.loss.sum(), leaf)[0], reference)


def test_smoothing_lifts_the_likeliest_tokens_and_the_penalty_lowers_the_greedy_one():
    logits = torch.tensor([2.0, 1.0, 0.5, -1.0, -2.0], dtype=torch.float64, requires_grad=True)
    yes = torch.ones(1).bool()

    def step(sampled, advantage, **settings):
        log_p = logits.log_softmax(0)
        own, top = log_p[sampled : sampled + 1], log_p[None, :3]
        made = smoothed(own, own.detach(), torch.tensor([advantage]).double(), yes, top=top, **settings)
        return -torch.autograd.grad(made.loss.sum(), logits)[0]

    off, on = (step(3, 1.0, smoothing=share) for share in (0.0, 0.3))
    expected = torch.tensor([0.1, 0.1, 0.1, -0.3, 0.0], dtype=torch.float64)
    torch.testing.assert_close(on - off, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(step(0, -1.0, penalty=1.5), 1.5 * step(0, -1.0, penalty=1.0), rtol=1e-12, atol=0)
    other = step(0, -1.0, penalty=1.5, greedy=~yes)
    torch.testing.assert_close(other, step(0, -1.0, penalty=1.0), rtol=0, atol=0)


@pytest.mark.parametrize("clip", [0.5, 0.1, None])
def test_value_loss_against_a_plain_float64_computation(clip):
    generator = np.random.default_rng(2)
    values, old, returns = generator.normal(0, 1, (3, 12, 9))

    def expected(x):
        out = np.zeros_like(x)
        for index in np.ndindex(x.shape):
            v, o, r = x[index], old[index], returns[index]
            bounded = v if clip is None else clamped(v, o - clip, o + clip)
            out[index] = 0.5 * max((v - r) ** 2, (bounded - r) ** 2)
        return out

    leaf = torch.tensor(values).requires_grad_()
    made = clipped_value_loss(leaf, torch.tensor(old), torch.tensor(returns), clip=clip)
    close(made, expected(values), 1e-12)
    made.sum().backward()
    assert leaf.grad is not None
    close(leaf.grad, slope(lambda x: expected(x).sum(), values))
    assert (leaf.grad == 0).any().item() == (clip is not None)


def test_the_value_moves_freely_towards_the_return_and_stops_at_the_clip():
    values = torch.tensor([0.3, 0.9, -0.9, 1.2], dtype=torch.float64, requires_grad=True)
    made = clipped_value_loss(values, torch.zeros(4), torch.tensor([1.0, 1.0, 1.0, 0.2]).double(), clip=0.5)
    assert made.tolist() == pytest.approx([0.245, 0.125, 1.805, 0.5], abs=1e-7)
    assert torch.autograd.grad(made.sum(), values)[0].tolist() == pytest.approx([-0.7, 0, -1.9, 1.0], abs=1e-7)


LOSSES = {
    "clipped_surrogate": clipped_surrogate,
    "dual_clip": partial(clipped_surrogate, dual_clip=1.5),
    "sequence_surrogate": partial(sequence_surrogate, clip_low=0.2, clip_high=0.2),
    "sequence_token_surrogate": partial(sequence_token_surrogate, clip_low=0.2, clip_high=0.2),
    "geometric_surrogate": geometric_surrogate,
    "clipped_weight": clipped_weight,
    "reinforce": reinforce,
    "selected_only": selected_only,
    "selected_clipped": selected_clipped,
    "selected_penalized": selected_penalized,
    "top_smoothed": partial(top_smoothed, smoothing=0.3, penalty=2.0),
}


def everything(seed: int = 3) -> dict[str, torch.Tensor]:
    """Names of arguments -> tensors that any loss may be given."""
    new, old, advantages, mask = ragged_inputs(seed, rows=13)
    selected, greedy = chosen_for(mask)
    top = -np.random.default_rng(1).exponential(1.0, (*new.shape, 3))
    names = ("log_probs", "old_log_probs", "advantages", "mask", "selected", "greedy", "top_log_probs")
    return dict(zip(names, map(torch.tensor, (new, old, advantages, mask, selected, greedy, top)), strict=True))


def called(name, given):
    extras = {"top_smoothed": ("selected", "greedy", "top_log_probs")}
    extra = extras.get(name, ("selected",) if name.startswith("selected") else ())
    basic = [given[part] for part in ("log_probs", "old_log_probs", "advantages", "mask")]
    return LOSSES[name](*basic, **{part: given[part] for part in extra})


@pytest.mark.parametrize("name", LOSSES)
def test_what_does_not_count_has_no_influence(name):
    outcomes = []
    for wild in (0.0, 1.0, -1.0):
        given = everything()
        mask = given["mask"]
        leaves = [given[part] for part in ("log_probs", "top_log_probs")]
        if wild:
            given["log_probs"][~mask], given["old_log_probs"][~mask] = 40 * wild - 41, -40 * wild - 41
            given["advantages"][~mask], given["top_log_probs"][~mask] = 1e3 * wild, -90.0
            given["selected"][~mask], given["greedy"][~mask] = wild > 0, wild > 0
        for leaf in leaves:
            leaf.requires_grad_()
        made = called(name, given)
        total = torch.stack([aggregated(aggregation, made.loss, mask) for aggregation in OF_WHOLES]).sum()
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        gradients = [torch.zeros(()) if part is None else part for part in gradients]
        assert not made.clipped[~mask].any() and not gradients[0][~mask].any()
        outcomes.append((total.detach(), *gradients, made.clipped.double()))
    for outcome in outcomes[1:]:
        torch.testing.assert_close(outcome, outcomes[0], rtol=1e-12, atol=1e-12)
    assert outcomes[0][1].any()


@pytest.mark.parametrize("name", LOSSES)
def test_any_split_of_any_loss_sums_to_the_whole_and_to_its_gradient(name):
    given = everything()
    mask = given["mask"]
    counts = Counts(mask.sum().double(), mask.any(dim=1).sum().double(), 12)
    leaf = given["log_probs"].requires_grad_()
    for aggregation in OF_WHOLES.values():
        whole = (called(name, given).loss * aggregation(mask, counts)).sum()
        (exact,) = torch.autograd.grad(whole, leaf)
        for size in (1, 4, 12):
            total, gradient = 0.0, torch.zeros_like(exact)
            for rows in torch.randperm(13, generator=torch.Generator().manual_seed(size)).split(size):
                longest = max(1, int(mask[rows].nonzero()[:, 1].max()) + 1 if mask[rows].any() else 1)
                part = {key: value[rows, :longest] for key, value in given.items()}
                loss = (called(name, part).loss * aggregation(part["mask"], counts)).sum()
                gradient += torch.autograd.grad(loss, leaf)[0]
                total += loss.item()
            assert total == pytest.approx(whole.item(), rel=1e-6, abs=1e-9)
            torch.testing.assert_close(gradient, exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_without_advantages_no_loss_teaches_anything(name):
    given = everything()
    given["advantages"] = torch.zeros_like(given["advantages"])
    given["selected"] = torch.zeros_like(given["selected"])
    leaf = given["log_probs"].requires_grad_()
    made = called(name, given)
    assert not made.loss.any() and not torch.autograd.grad(made.loss.sum(), leaf)[0].any()


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"dual_clip"}))
def test_a_loss_reads_what_it_declares_and_nothing_else(name):
    """What it is not given is None, so a loss that reads more than it declares would fail in training."""
    loss, given = getattr(losses if hasattr(losses, name) else selections, name), everything()
    given["old"] = given.pop("old_log_probs")
    whole = LossInputs(**given, entropy=given["old"].exp(), hidden=given["old"][..., None])
    optional = {"selected", "entropy", "top_log_probs", "greedy", "hidden"}
    declared = getattr(loss, "asks", frozenset())
    assert declared <= optional
    needed = replace(whole, **dict.fromkeys(optional - declared))
    for ours, theirs in zip(loss(needed), loss(whole), strict=True):
        assert torch.equal(ours, theirs)
    for field in declared:
        with pytest.raises((AssertionError, TypeError)):
            loss(replace(needed, **{field: None}))


def test_an_algorithm_asks_for_what_its_loss_declares_and_its_bonus_needs():
    def algorithm(loss, **changes):
        return Algorithm(lambda rewards: rewards, loss, "token_mean", {"coefficient": 0.0}, **changes)

    assert algorithm(losses.clipped_surrogate).asks == frozenset()
    smoothed = partial(selections.top_smoothed, smoothing=0.1)
    assert algorithm(smoothed, top_k=3).asks == {"selected", "top_log_probs", "greedy"}
    with pytest.raises(SettingsError, match=r"algorithm\.top_k=0"):
        algorithm(smoothed)
    assert algorithm(losses.reinforce, entropy_bonus=0.1).asks == {"entropy"}
    assert algorithm(selections.selected_only, entropy_bonus=-0.1).asks == {"selected", "entropy"}


@pytest.mark.parametrize(
    ("estimator", "placement", "expected"),
    [
        (None, "loss", kl_k3),
        (None, "reward", kl_k1),
        ("k2", "loss", kl_k2),
        ("k3", "reward", kl_k3),
        ("k1", "loss", kl_k1),
    ],
)
def test_the_placement_chooses_the_estimator_where_none_is_named(estimator, placement, expected):
    """k1 in the reward (PPO), k3 in the loss (GRPO): against hand values of a token of -1 under a reference of -1.5."""
    kl = {"coefficient": 0.5, "estimator": estimator, "placement": placement}
    algorithm = Algorithm(lambda rewards: rewards, losses.reinforce, "token_mean", kl)
    new, reference = torch.tensor([[-1.0]], dtype=torch.float64), torch.tensor([[-1.5]], dtype=torch.float64)
    value = {kl_k1: 0.5, kl_k2: 0.125, kl_k3: math.exp(-0.5) + 0.5 - 1}[expected]
    tokens, divergence = algorithm.token_loss(
        LossInputs(new, new, torch.zeros(1, 1), torch.ones(1, 1).bool()), reference
    )
    penalty = algorithm.penalty(new, reference)
    assert divergence.item() == pytest.approx(value, abs=1e-12)
    if placement == "loss":
        assert penalty == 0 and tokens.loss.item() == pytest.approx(0.5 * value, abs=1e-12)
    else:
        assert float(penalty) == pytest.approx(0.5 * value, abs=1e-12) and tokens.loss.item() == 0

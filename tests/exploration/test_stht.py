"""Soft tokens, hard truths: densities, fed vectors and how thinking ends."""

import numpy as np
import pytest
import torch
from decode_step import (
    D,
    bound,
    draws_of,
    one_step,
    ordinary_logits,
    random,
    thinking_part,
    towards,
    trapped_table,
)
from scipy import stats

from ngrpo.exploration.stht import SoftTokens, gaussian_log_density
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.records import FORCED, GAUSSIAN, TOKEN


@pytest.fixture
def table() -> torch.Tensor:
    return trapped_table()


def test_the_density_is_that_of_a_multivariate_normal():
    value, mean = random(7, D, seed=1).double(), random(7, D, seed=2).double()
    sigma = torch.rand(7, generator=torch.Generator().manual_seed(3)).double() + 0.1
    made = gaussian_log_density(value, mean, sigma)
    expected = [
        stats.multivariate_normal.logpdf(value[i].numpy(), mean[i].numpy(), sigma[i].item() ** 2)  # pyright: ignore[reportArgumentType]
        for i in range(7)
    ]
    np.testing.assert_allclose(made.numpy(), expected, rtol=1e-12)
    peer = torch.distributions.Independent(torch.distributions.Normal(mean, sigma[:, None].expand(7, D)), 1)
    torch.testing.assert_close(made, peer.log_prob(value), rtol=1e-12, atol=0)


def test_the_density_is_largest_at_its_mean_and_its_gradient_points_to_the_value():
    value, mean = random(5, D, seed=1).double(), random(5, D, seed=2).double().requires_grad_()
    sigma = torch.full((5,), 0.3, dtype=torch.float64)
    made = gaussian_log_density(value, mean, sigma)
    (gradient,) = torch.autograd.grad(made.sum(), mean)
    torch.testing.assert_close(gradient, (value - mean.detach()) / 0.09, rtol=1e-12, atol=1e-12)
    best = gaussian_log_density(mean, mean, sigma)
    assert (best > made).all() and (gaussian_log_density(mean + 1e-3, mean, sigma) < best).all()


@pytest.mark.parametrize("soft_temperature", [0.5, 1e-4])
def test_a_soft_step_feeds_the_expected_embedding_with_noise_and_scores_its_density(table, soft_temperature):
    rows, table = 2000, table.double()
    logits = ordinary_logits(rows).double()
    strategy = bound(SoftTokens(soft_temperature, 0.33), table)
    step = one_step(strategy, logits, table)
    expected = (logits / soft_temperature).softmax(-1) @ table
    sigma = 0.33 * table.square().mean().sqrt().item()
    fed = strategy.embed(step, table, draws_of(rows))
    assert (step.role == GAUSSIAN).all() and step.explored.all() and torch.equal(step.tokens, logits.argmax(-1))
    noise = fed - expected
    assert stats.kstest((noise.flatten() / sigma).numpy(), "norm").pvalue > 1e-3
    assert noise.square().sum(-1).mean().item() == pytest.approx(D * sigma**2, rel=0.05)
    peer = torch.distributions.Independent(torch.distributions.Normal(expected, sigma), 1).log_prob(fed)
    torch.testing.assert_close(strategy.log_prob(step, logits, table), peer, rtol=0, atol=1e-5)


def test_the_density_reaches_logits_and_table_through_its_mean(table):
    strategy, logits = bound(SoftTokens(0.5, 0.33), table), ordinary_logits(4).double()
    step = one_step(strategy, logits, table.double())
    inputs = (logits.requires_grad_(), table.double().requires_grad_())
    assert torch.autograd.gradcheck(lambda z, e: strategy.log_prob(step, z, e), inputs)
    gradients = torch.autograd.grad(strategy.log_prob(step, *inputs).sum(), inputs)
    assert all(gradient.abs().max() > 1e-3 for gradient in gradients)


def test_soft_tokens_without_noise_and_temperature_are_the_greedy_text(
    make_model, make_vocabulary, ready, make_rollouts
):
    compared = 0
    for seed in range(4):
        model, vocabulary = make_model(seed=seed, dtype=torch.float64), make_vocabulary(seed=seed)
        soft, greedy = ready(SoftTokens(1e-4, 1e-9), model, vocabulary), ready(TokenSampling(1e-6), model, vocabulary)
        made, expected = (make_rollouts(model, part, prompts=6, group=2) for part in (soft, greedy))
        for a, b in zip(made.answer_ids(), expected.answer_ids(), strict=True):
            assert thinking_part(a, vocabulary) == thinking_part(b, vocabulary)
            compared += len(thinking_part(a, vocabulary))
    assert compared > 200


@pytest.mark.parametrize("scale", [0, 0.0, -0.33, float("nan")])
def test_a_density_needs_noise(scale):
    with pytest.raises(ValueError, match=r"scale=.*scale > 0"):
        SoftTokens(0.5, scale)


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_at_its_limit_thinking_is_closed_by_inserted_text_and_hard_tokens_follow(table, limit):
    strategy = bound(SoftTokens(0.5, 0.33, temperature=0.7, think_limit=limit), table)
    plain, state, steps, logits = TokenSampling(0.7), strategy.start(3, torch.device("cpu")), [], []
    for time in range(limit + 7):
        logits.append(ordinary_logits(3, time))
        step, state = strategy.sample(logits[-1], state, draws_of(3, time), table)
        steps.append(step)
    roles = [set(step.role.tolist()) for step in steps]
    assert roles == [{GAUSSIAN}] * limit + [{FORCED}] * 4 + [{TOKEN}] * 3
    assert [step.tokens.tolist() for step in steps[limit : limit + 4]] == [[token] * 3 for token in (10, 11, 12, 13)]
    for time in range(limit, limit + 7):
        draws = draws_of(3, time)
        assert not steps[time].explored.any()
        assert torch.equal(strategy.embed(steps[time], table, draws), table[steps[time].tokens])
        if time >= limit + 4:
            hard = one_step(plain, logits[time], table, time)
            assert torch.equal(steps[time].tokens, hard.tokens)
            scored = [part.log_prob(steps[time], logits[time], table) for part in (strategy, plain)]
            assert torch.equal(*scored)


def test_where_thinking_ends_by_itself_only_the_prefix_is_inserted(table):
    strategy = bound(SoftTokens(0.5, 0.33, think_limit=50), table)
    state, steps = strategy.start(2, torch.device("cpu")), []
    for time in range(7):
        wanted = {1: 10, 2: 11}.get(time)
        logits = ordinary_logits(2, time) if wanted is None else towards(torch.tensor([wanted, 20]))
        step, state = strategy.sample(logits, state, draws_of(2, time), table)
        steps.append(step)
    assert [step.role[0].item() for step in steps] == [GAUSSIAN] * 3 + [FORCED] * 2 + [TOKEN] * 2
    assert [step.tokens[0].item() for step in steps[3:5]] == [12, 13]
    assert {step.role[1].item() for step in steps} == {GAUSSIAN}, "another row goes on thinking"


def test_a_stop_in_the_shadow_text_ends_it_without_a_soft_vector(table):
    strategy = bound(SoftTokens(0.5, 0.33), table)
    step = one_step(strategy, towards(torch.tensor([3, 20])), table)
    assert step.tokens.tolist() == [3, 20] and step.explored.tolist() == [False, True]
    assert step.role.tolist() == [FORCED, GAUSSIAN]


def test_think_limit_over_whole_texts(setting, ready, make_rollouts):
    model, vocabulary = setting
    strategy = ready(SoftTokens(0.5, 0.33, think_limit=4), model, vocabulary)
    rollouts = make_rollouts(model, strategy)
    inserted = [*vocabulary.answer_start, *vocabulary.answer_prefix]
    full = [
        row
        for row, text in enumerate(rollouts.answer_ids())
        if thinking_part(text, vocabulary) == [*text[:4], *inserted[:2]]
    ]
    assert len(full) > 4
    for row in full:
        assert rollouts.answer_ids()[row][4:8] == inserted
        assert rollouts.steps.role[row, :9].tolist()[:8] == [GAUSSIAN] * 4 + [FORCED] * 4
        assert rollouts.loss_mask[row, 4:8].any().item() is False

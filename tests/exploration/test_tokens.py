"""Filters and the strategies that change which token is drawn and nothing of what is fed."""

import math

import numpy as np
import pytest
import torch
from decode_step import (
    VOCABULARY,
    D,
    V,
    bound,
    one_step,
    random,
)
from scipy import stats

from ngrpo.exploration.annealed_temperature import AnnealedTemperature
from ngrpo.exploration.epsilon_greedy import EpsilonGreedy
from ngrpo.exploration.scores import candidates, entropy, filtered, gumbel, largest, near_best, nucleus
from ngrpo.exploration.thinking import TextMatch, Thinking
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import TOKEN, DecodeStep

FORBIDDEN = [0, 2, 60, 61, 62, 63]  # reserved ids that end no text, and padding


@pytest.fixture
def table() -> torch.Tensor:
    return random(V, D, seed=5)


def every_log_prob(strategy, logits, table, **fields) -> torch.Tensor:
    """(B, V) float64 log-probs of every token under logits (B, V)."""
    rows = len(logits)
    steps = DecodeStep(torch.arange(V).repeat(rows, 1), *[torch.zeros(rows, V, dtype=torch.int64)] * 2, **fields)
    return strategy.log_prob(steps, logits[:, None].expand(rows, V, V), table).double()


@pytest.mark.parametrize("count", [1, 3, 20, 64, 100])
def test_top_k_keeps_the_largest(count):
    scores = random(50, V)
    order = np.argsort(-scores.numpy(), axis=-1, kind="stable")[:, :count]
    for row, kept in enumerate(largest(scores, count)):
        assert set(kept.nonzero().squeeze(1).tolist()) == set(order[row].tolist())
    if count <= V:
        assert candidates(scores, count).tolist() == order.tolist()


def test_ties_go_to_the_lowest_id():
    scores = torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0, 1.0], [0.0] * 6])
    assert largest(scores, 3).tolist() == [[1, 1, 0, 1, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert candidates(scores, 4).tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]
    assert near_best(torch.zeros(1, 4), 1.0).all()


@pytest.mark.parametrize("count", [1, 3, 17, 40])
def test_candidates_among_many_equals_are_those_of_a_stable_sort(count):
    scores = torch.randint(0, 4, (500, 40), generator=torch.Generator().manual_seed(0)).float()
    scores[scores == 0] = -torch.inf
    expected = scores.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    assert torch.equal(candidates(scores, count), expected)
    assert torch.equal(largest(scores, count), torch.zeros(500, 40).bool().scatter(1, expected, True))


@pytest.mark.parametrize("min_p", [0.01, 0.1, 0.5, 1.0])
def test_min_p_keeps_what_is_near_the_likeliest(min_p):
    scores = random(100, V, scale=2)
    p = scores.double().softmax(-1)
    assert torch.equal(near_best(scores, min_p), p >= min_p * p.amax(-1, keepdim=True))


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"), [(20, 1.0, 0.0), (None, 1.0, 0.1), (10, 0.7, 0.0), (6, 0.9, 0.2), (None, 0.8, 0.3)]
)
def test_filters_act_in_order_each_on_what_the_last_one_left(table, top_k, top_p, min_p):
    strategy, logits = TokenSampling(0.8, top_p, top_k, min_p), random(40, V, scale=1.5)
    made = every_log_prob(strategy, logits, table)
    for row in range(40):
        p = (logits[row].double() / 0.8).softmax(-1).numpy()
        order = np.argsort(-p, kind="stable")[: top_k or V]
        left = p[order] / p[order].sum()
        order = order[: int(np.searchsorted(np.cumsum(left), top_p)) + 1]
        order = order[p[order] >= min_p * p[order[0]]]
        mass = p[order].sum()
        for token in range(V):
            alone = 0.0 if token in order else p[token]
            assert made[row, token].item() == pytest.approx(math.log(p[token] / (mass + alone)), abs=1e-5)


def test_filters_that_filter_nothing_are_token_sampling_to_the_last_bit(table):
    logits = random(20, V)
    steps = one_step(TokenSampling(), logits, table)
    plain = TokenSampling().log_prob(steps, logits, table)
    assert torch.equal(TokenSampling(top_k=V).log_prob(steps, logits, table), plain)
    assert torch.equal(TokenSampling(top_k=V, min_p=0.0).scores(logits), TokenSampling().scores(logits))


def test_a_realized_token_outside_the_filter_keeps_a_gradient():
    logits = random(1, V).requires_grad_()
    scores = filtered(logits, 0.3, torch.tensor([int(logits[0].argmin())]), top_k=3, min_p=0.5)
    assert (~torch.isneginf(scores)).sum() == nucleus_size(logits) + 1
    scores[0, int(logits[0].argmin())].backward()
    assert logits.grad is not None and logits.grad.count_nonzero() == 1


def nucleus_size(logits: torch.Tensor) -> int:
    kept = logits.detach().masked_fill(~largest(logits.detach(), 3), -torch.inf)
    kept = kept.masked_fill(~nucleus(kept, 0.3), -torch.inf)
    return int(near_best(kept, 0.5).sum())


def test_entropy_and_gumbel_noise():
    scores = random(10, V, scale=3).double()
    torch.testing.assert_close(entropy(scores), torch.distributions.Categorical(logits=scores).entropy())
    noise = gumbel(Draws(torch.arange(200)[:, None], torch.arange(20)[None]).uniforms(5))
    assert stats.kstest(noise.flatten().numpy(), stats.gumbel_r.cdf).pvalue > 1e-3
    assert gumbel(torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)).isfinite().all()


def test_thinking_ends_with_the_delimiter_and_for_good():
    thinking = Thinking(VOCABULARY, V)
    state, seen = thinking.start(2, torch.device("cpu")), []
    for tokens in ([10, 5], [11, 11], [20, 10], [21, 11], [22, 22]):
        ended, state = thinking.push(state, torch.tensor(tokens))
        seen.append((ended.tolist(), thinking.active(state).tolist()))
    assert [s[0] for s in seen] == [[0, 0], [1, 0], [1, 0], [1, 1], [1, 1]]
    assert [s[1] for s in seen] == [[1, 1], [0, 1], [0, 1], [0, 0], [0, 0]]
    never = TextMatch(VOCABULARY, (), V)
    assert not never.push(never.start(2, torch.device("cpu")), torch.tensor([1, 2]))[0].any()


# --- epsilon-greedy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_epsilon_greedy_is_the_mixture_of_softmax_and_uniform(table, epsilon):
    strategy, logits = bound(EpsilonGreedy(epsilon, 0.7), table), random(1, V, scale=2)
    p = (logits[0].double() / 0.7).softmax(-1)
    uniform = torch.ones(V).double()
    uniform[FORBIDDEN] = 0
    expected = (1 - epsilon) * p + epsilon * uniform / uniform.sum()
    torch.testing.assert_close(every_log_prob(strategy, logits, table)[0], expected.log(), rtol=0, atol=1e-5)
    step = one_step(strategy, logits.expand(40_000, -1), table)
    counts = torch.bincount(step.tokens, minlength=V).double()
    assert stats.chisquare(counts.numpy(), (expected * 40_000).numpy()).pvalue > 1e-3
    assert abs(step.explored.double().mean().item() - epsilon) < 4 * math.sqrt(epsilon * (1 - epsilon) / 40_000)
    assert not torch.isin(step.tokens[step.explored], torch.tensor(FORBIDDEN)).any()
    assert torch.isin(step.tokens, torch.tensor([1, 3])).any(), "a stop may come up"


def test_where_no_random_token_is_drawn_the_token_is_that_of_token_sampling(table):
    logits = random(500, V)
    step, plain = one_step(bound(EpsilonGreedy(0.3), table), logits, table), one_step(TokenSampling(), logits, table)
    assert torch.equal(step.tokens[~step.explored], plain.tokens[~step.explored])


def test_the_gradient_of_epsilon_greedy_is_that_of_its_density(table):
    logits = random(1, V).double().requires_grad_()
    step = DecodeStep(torch.tensor([20]), torch.tensor([TOKEN]), torch.tensor([True]))
    (made,) = torch.autograd.grad(bound(EpsilonGreedy(0.3), table).log_prob(step, logits, table).sum(), logits)
    (expected,) = torch.autograd.grad((0.7 * logits.softmax(-1)[0, 20] + 0.3 / 58).log(), logits)
    torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -0.1, float("nan")])
def test_epsilon_is_a_proper_share(epsilon):
    with pytest.raises(ValueError, match=r"epsilon=.*0 < epsilon < 1"):
        EpsilonGreedy(epsilon)


# --- annealed temperature -------------------------------------------------------------------------------------------


def test_the_temperature_falls_as_published(table):
    strategy, logits = AnnealedTemperature(1.2, 0.1, 25.0, temperature=0.9), random(1, V)
    for time in (0, 1, 10, 19, 20, 100, 100_000):
        expected = 0.9 * max(1 + 1.2 - math.exp(min(time / 25.0, 700)), 0.1)
        step = one_step(strategy, logits, table, time)
        assert step.scale is not None and step.scale.item() == pytest.approx(expected, rel=1e-6)
    first = one_step(strategy, logits, table, 0).scale
    assert first is not None and first.item() == pytest.approx(0.9 * 1.2)


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_a_step_is_drawn_and_scored_at_its_own_temperature(table, top_p):
    strategy, logits = AnnealedTemperature(1.2, 0.1, 20.0, top_p=top_p), random(200, V)
    for time in (0, 9, 50):
        step = one_step(strategy, logits, table, time)
        assert step.scale is not None
        plain = TokenSampling(step.scale[0].item(), top_p)
        assert torch.equal(step.tokens, one_step(plain, logits, table, time).tokens)
        pair = [s.log_prob(step, logits, table) for s in (strategy, plain)]
        torch.testing.assert_close(*pair, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.6), (1.0, 0.0), (1.0, float("nan"))])
def test_a_falling_temperature_falls_and_stays_positive(start, end):
    with pytest.raises(ValueError, match="start >= end > 0"):
        AnnealedTemperature(start, end, 10.0)

"""Tokens from uniforms: nuclei, filters, suffixes, log-probabilities."""

import numpy as np
import pytest
import torch
from decode_step import TRAPS, VOCABULARY, V, one_step, random, trapped_table
from scipy import stats

from ngrpo.exploration.scores import BLOCK, LARGE, draw_token, filtered, nucleus, tempered
from ngrpo.exploration.thinking import TextMatch
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import DecodeStep


@pytest.fixture
def table() -> torch.Tensor:
    return trapped_table()


@pytest.mark.parametrize(("dtype", "slack"), [(torch.float32, 1e-7), (torch.float64, 1e-14)])
@pytest.mark.parametrize("size", [V, LARGE + 1, LARGE + 5 * BLOCK])
def test_tokens_are_the_inverse_cdf_in_id_order(size, dtype, slack):
    scores, uniform = random(300, size, scale=3).to(dtype), torch.rand(300, dtype=torch.float64)
    scores[:, size // 2 :] = scores[:, size // 2 :].masked_fill(random(300, size - size // 2) > 0, -torch.inf)
    tokens = draw_token(scores, uniform)
    for row in range(300):
        weights = np.exp(scores[row].double().numpy() - scores[row].max().item())
        cdf = np.cumsum(weights) / weights.sum()
        token = int(tokens[row])
        assert weights[token] > 0
        assert cdf[token] - weights[token] / weights.sum() - slack <= uniform[row].item() <= cdf[token] + slack


def test_tokens_come_as_often_as_their_probability():
    scores, rows = random(1, 12), 40_000
    tokens = draw_token(scores.expand(rows, -1), Draws(torch.arange(rows), torch.zeros(())).token)
    expected = scores[0].double().softmax(0) * rows
    assert stats.chisquare(torch.bincount(tokens, minlength=12).numpy(), expected.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("size", [8, LARGE + 1])
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-53])
def test_a_token_of_probability_zero_never_comes(uniform, size):
    scores = torch.full((1, size), -torch.inf)
    scores[0, [2, size - 3]] = torch.tensor([0.3, -40.0])
    assert draw_token(scores, torch.tensor([uniform], dtype=torch.float64)).item() in (2, size - 3)
    scores = torch.full((1, size), -torch.inf)
    scores[0, 3] = 1.0
    assert draw_token(scores, torch.tensor([uniform], dtype=torch.float64)).item() == 3


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999])
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(top_p):
    scores = random(100, V, scale=2)
    for row, inside in zip(scores.double().softmax(-1).numpy(), nucleus(scores, top_p).numpy(), strict=True):
        order = np.argsort(-row, kind="stable")
        size = int(np.searchsorted(np.cumsum(row[order]), top_p)) + 1
        assert set(np.flatnonzero(inside)) == set(order[:size])


def test_ties_at_the_edge_of_a_nucleus_go_to_the_lowest_id():
    assert nucleus(torch.zeros(1, 10), 0.35)[0].tolist() == [True] * 4 + [False] * 6


def test_top_p_log_probs_are_normalized_over_the_nucleus_and_the_realized_token(table):
    strategy, logits = TokenSampling(temperature=0.7, top_p=0.8), random(5, V, scale=2)
    every = DecodeStep(torch.arange(V).repeat(5, 1), *[torch.zeros(5, V, dtype=torch.int64)] * 2)
    log_probs = strategy.log_prob(every, logits[:, None].expand(5, V, V), table).double()
    p, inside = (logits.double() / 0.7).softmax(-1), nucleus(logits / 0.7, 0.8)
    mass = (p * inside).sum(-1, keepdim=True)
    expected = torch.where(inside, p / mass, p / (mass + p)).log()
    assert (~inside).any() and log_probs.isfinite().all()
    torch.testing.assert_close(log_probs, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close((log_probs.exp() * inside).sum(-1), torch.ones(5).double(), rtol=0, atol=1e-5)


def test_sampled_tokens_lie_in_the_nucleus_and_all_of_it_comes_up(table):
    strategy, logits = TokenSampling(temperature=1.5, top_p=0.5), random(1, V, scale=2)
    tokens = one_step(strategy, logits.expand(4000, -1), table).tokens
    assert set(tokens.tolist()) == set(nucleus(logits / 1.5, 0.5)[0].nonzero().squeeze(1).tolist())


def test_filtering_at_one_changes_nothing():
    scores = random(3, V)
    assert filtered(scores, 1.0) is scores


def test_log_prob_is_the_tempered_softmax_in_float32_even_for_bfloat16_logits(table):
    logits = random(6, V, scale=4).bfloat16()
    steps = DecodeStep(torch.arange(6), torch.zeros(6, dtype=torch.int64), torch.zeros(6, dtype=torch.bool))
    made = TokenSampling(temperature=0.6).log_prob(steps, logits, table)
    expected = (logits.double() / 0.6).log_softmax(-1)[torch.arange(6), torch.arange(6)]
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.double(), expected, rtol=0, atol=1e-5)


def test_texts_are_found_once_they_have_ended_and_for_good():
    texts = torch.tensor([[5, 6, 7, 8], [5, 5, 6, 7], [6, 7, 5, 6], [5, 6, 6, 7]])
    match = TextMatch(VOCABULARY, ((5, 6, 7),), V)
    state, ended = match.start(4, torch.device("cpu")), []
    for time in range(4):
        found, state = match.push(state, texts[:, time])
        ended.append(found)
    assert torch.stack(ended, dim=1).tolist() == [[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_ordinary_rows_are_those_of_tokens_that_are_neither_special_nor_stops_nor_padding():
    assert (~VOCABULARY.ordinary(V)).nonzero().squeeze(1).tolist() == TRAPS


def test_scores_are_at_least_float32():
    assert tempered(torch.ones(2, dtype=torch.bfloat16), 0.5).dtype == torch.float32
    assert tempered(torch.ones(2, dtype=torch.float64), 0.5).dtype == torch.float64

"""Neighbor mixing: the published formula, one decode step at a time."""

import math

import numpy as np
import pytest
import torch
from decode_step import (
    TRAPS,
    VOCABULARY,
    D,
    V,
    bound,
    draws_of,
    one_step,
    ordinary_logits,
    recipe,
    towards,
    trapped_table,
)
from scipy import optimize
from strategies import gaussian_noise, neighbor_mix
from torch.nn import functional as F

from ngrpo.exploration.nearest import nearest
from ngrpo.exploration.neighbor_mix import Neighbors
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.records import FORCED, Vocabulary


@pytest.fixture
def table() -> torch.Tensor:
    return trapped_table()


def reference_mixture(logits, table, k: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Fed vectors (B, D) and weights (B, k) by the published formula, in float64 and plain loops."""
    z, rows = logits.double().numpy() / temperature, table.double().numpy()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    fed, weights = [], []
    for row in z:
        anchor = int(row.argmax())
        similarity = unit @ unit[anchor]
        similarity[[*TRAPS, anchor]] = -np.inf
        chosen = [anchor, *np.argsort(-similarity, kind="stable")[: k - 1].tolist()]
        weight = np.exp(row[chosen] - row[chosen].max())
        weights.append(weight / weight.sum())
        fed.append(weights[-1] @ rows[chosen])
    return np.array(fed), np.array(weights)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
def test_a_mixed_step_is_the_published_formula(table, k, temperature):
    strategy, logits = bound(neighbor_mix(1.0, k, temperature=temperature), table), ordinary_logits(50)
    step = one_step(strategy, logits, table)
    fed, weights = reference_mixture(logits, table, k, temperature)
    assert step.explored.all() and torch.equal(step.tokens, logits.argmax(-1))
    ids, found = recipe(step)
    assert ids.shape == (50, k) and torch.equal(ids[:, 0], step.tokens)
    torch.testing.assert_close(found.double(), torch.tensor(weights), rtol=0, atol=1e-6)
    torch.testing.assert_close(strategy.embed(step, table, draws_of(50)).double(), torch.tensor(fed), rtol=0, atol=1e-6)


def test_weights_are_a_distribution_led_by_the_anchor_and_blind_to_a_constant(table):
    strategy, logits = bound(neighbor_mix(1.0, 4), table), ordinary_logits(200, scale=1.0)
    _, weights = recipe(one_step(strategy, logits, table))
    assert (weights >= 0).all() and (weights.sum(-1) - 1).abs().max() < 1e-6
    assert torch.equal(weights.argmax(-1), torch.zeros(200, dtype=torch.int64)) and weights[:, 0].min() >= 0.25
    _, moved = recipe(one_step(strategy, logits + 17.0, table))
    torch.testing.assert_close(moved, weights, rtol=0, atol=1e-5)


def test_a_mixture_lies_in_the_convex_hull_of_its_candidates(table):
    strategy, logits = bound(neighbor_mix(1.0, 4), table), ordinary_logits(30, scale=1.0)
    step = one_step(strategy, logits, table)
    fed = strategy.embed(step, table, draws_of(30)).double().numpy()
    for row in range(30):
        corners = table[recipe(step)[0][row]].double().numpy()
        weights, distance = optimize.nnls(np.vstack((corners.T, np.ones(4))), np.append(fed[row], 1.0))
        assert distance < 1e-6 and weights.sum() == pytest.approx(1, abs=1e-6)


def test_cold_mixtures_are_the_anchor_and_hot_ones_the_mean(table):
    logits = ordinary_logits(40)
    cold, hot = (bound(neighbor_mix(1.0, 3, temperature=t), table) for t in (1e-6, 1e7))
    step = one_step(cold, logits, table)
    assert torch.equal(recipe(step)[1], F.one_hot(torch.zeros(40, dtype=torch.int64), 3).float())
    assert torch.equal(cold.embed(step, table, draws_of(40)), table[logits.argmax(-1)])
    step = one_step(hot, logits, table)
    torch.testing.assert_close(step.mix_weights, torch.full((40, 3), 1 / 3), rtol=0, atol=1e-5)


def test_one_candidate_feeds_the_argmax_row(table):
    logits = ordinary_logits(40)
    for text_token in ("anchor", "sampled"):
        strategy = bound(neighbor_mix(1.0, 1, text_token=text_token), table)
        step = one_step(strategy, logits, table)
        assert torch.equal(strategy.embed(step, table, draws_of(40)), table[logits.argmax(-1)])


def test_ties_of_the_argmax_go_to_the_lowest_id(table):
    logits = ordinary_logits(3)
    logits[:, [30, 25, 40]] = 50.0
    assert one_step(bound(neighbor_mix(1.0, 3), table), logits, table).tokens.tolist() == [25] * 3


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2", "l1"])
def test_no_reserved_stop_or_padded_row_is_a_neighbor(table, metric):
    strategy = bound(neighbor_mix(1.0, 6, metric), table)
    anchors = torch.tensor([i for i in range(V) if i not in TRAPS])
    assert isinstance(strategy.recipe, Neighbors)
    found = strategy.recipe.neighbors.ids[anchors]
    assert not torch.isin(found, torch.tensor(TRAPS)).any()
    assert torch.equal(found[:, 1:], nearest(table, 5, metric, VOCABULARY.ordinary(V))[anchors])


@pytest.mark.parametrize("text_token", ["anchor", "sampled"])
def test_no_reserved_stop_or_padded_token_is_mixed(table, text_token):
    strategy = bound(neighbor_mix(1.0, 3, text_token=text_token), table)
    logits = towards(torch.arange(V))
    step = one_step(strategy, logits, table)
    fed = strategy.embed(step, table, draws_of(V))
    plain = (fed == table[step.tokens]).all(-1)
    assert torch.equal(step.tokens, torch.arange(V)) and plain[TRAPS].all()
    near = one_step(strategy, logits / 80, table)  # close calls: the mixture now differs from its anchor
    fed = strategy.embed(near, table, draws_of(V))
    mixed = ~(fed == table[near.tokens]).all(-1)
    assert mixed.any() and not mixed[torch.isin(near.tokens, torch.tensor(TRAPS))].any()
    assert not mixed[torch.isin(logits.argmax(-1), torch.tensor(TRAPS))].any()


def test_a_sampled_text_token_keeps_the_sample_and_mixes_around_the_argmax(table):
    logits = ordinary_logits(300, scale=1.0)
    strategy = bound(neighbor_mix(1.0, 3, text_token="sampled", temperature=1.3), table)
    step, plain = one_step(strategy, logits, table), one_step(TokenSampling(1.3), logits, table)
    assert torch.equal(step.tokens, plain.tokens)
    ids, weights = recipe(step)
    mixed = weights[:, 0] < 1
    assert mixed.sum() > 200 and torch.equal(ids[mixed, 0], logits.argmax(-1)[mixed])
    assert (step.tokens[mixed] != ids[mixed, 0]).any()
    fed = strategy.embed(step, table, draws_of(300)).double()
    expected = torch.tensor(reference_mixture(logits, table, 3, 1.3)[0])
    torch.testing.assert_close(fed[mixed], expected[mixed], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["keep", "mask"])
def test_with_a_sampled_text_token_exploration_acts_only_where_it_mixes(table, mode):
    """A reserved argmax or token is fed as it is: then the step is a plain sample, with its place in the loss."""
    logits = ordinary_logits(400, scale=1.0)
    logits[:200, 2] = logits[:200].amax(-1) + 0.1
    strategy = bound(neighbor_mix(1.0, 3, text_token="sampled", loss_on_mixed_steps=mode), table)
    step = one_step(strategy, logits, table)
    mixed = torch.arange(400) >= 200
    mixed &= ~torch.isin(step.tokens, torch.tensor(TRAPS))
    assert torch.equal(step.explored, mixed)
    assert torch.equal(step.role == FORCED, mixed if mode == "mask" else torch.zeros(400, dtype=torch.bool))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["mix", "noise"])
def test_the_share_of_explored_steps_is_the_rate_while_thinking_and_nothing_after(table, rate, kind):
    strategy = bound(neighbor_mix(rate, 3) if kind == "mix" else gaussian_noise(rate, 0.3), table)
    rows, state = 500, strategy.start(500, torch.device("cpu"))
    explored = []
    for time in range(40):
        logits = (
            towards(torch.full((rows,), {20: 10, 21: 11}[time])) if time in (20, 21) else ordinary_logits(rows, time)
        )
        step, state = strategy.sample(logits, state, draws_of(rows, time), table)
        explored.append(step.explored)
    explored = torch.stack(explored, dim=1)
    thinking = explored[:, :20].double()
    assert abs(thinking.mean().item() - rate) <= 4 * math.sqrt(rate * (1 - rate) / thinking.numel())
    assert not explored[:, 22:].any()
    per_row = thinking.sum(dim=1).numpy()
    if 0 < rate < 1:  # steps and rows are chosen independently, so counts are binomial
        assert np.var(per_row) == pytest.approx(20 * rate * (1 - rate), rel=0.3)


@pytest.mark.parametrize("text_token", ["anchor", "sampled"])
def test_a_delimiter_ends_mixing_even_where_it_straddles_a_mixed_step(table, text_token):
    strategy = bound(neighbor_mix(0.5, 3, text_token=text_token), table)
    rows, state, steps = 200, strategy.start(200, torch.device("cpu")), []
    close = {1: 10, 2: 11}  # the delimiter is certain, but for mixtures its neighbors still weigh something
    for time in range(8):
        logits = ordinary_logits(rows, time, scale=0.5)
        if time in close:
            logits[:, [*range(4, 10), *range(12, 60)]] -= 30
            logits[:, close[time]] = logits.amax(-1) + 35
        step, state = strategy.sample(logits, state, draws_of(rows, time), table)
        steps.append(step)
    fates = {tuple(pair) for pair in torch.stack([draws_of(rows, t).explore < 0.5 for t in (1, 2)], 1).tolist()}
    assert len(fates) == 4, "every combination of mixed and plain delimiter steps comes up"
    assert (steps[1].tokens == 10).all() and (steps[2].tokens == 11).all()
    assert torch.equal(steps[1].explored, draws_of(rows, 1).explore < 0.5)
    assert torch.equal(strategy.embed(steps[2], table, draws_of(rows, 2)), table[11].expand(rows, D))
    assert steps[2].mix_ids is None or (steps[2].mix_ids == 11).all()
    assert not any(step.explored.any() for step in steps[3:])


def test_the_end_of_a_delimiter_is_fed_as_it_is_even_on_a_close_call(table):
    strategy = bound(neighbor_mix(1.0, 3, temperature=5.0), table)
    state, fed = strategy.start(9, torch.device("cpu")), []
    for time, token in enumerate((10, 11)):
        logits = ordinary_logits(9, time, scale=0.5)
        logits[:, token] = logits.amax(-1) + 0.5
        step, state = strategy.sample(logits, state, draws_of(9, time), table)
        assert (step.tokens == token).all() and step.explored.all()
        fed.append(strategy.embed(step, table, draws_of(9, time)))
    assert (fed[0] - table[10]).abs().amax(-1).min() > 0.1, "its beginning is mixed"
    assert torch.equal(fed[1], table[11].expand(9, D))


def test_half_a_delimiter_ends_nothing(table):
    strategy = bound(neighbor_mix(1.0, 3), table)
    state = strategy.start(1, torch.device("cpu"))
    for time, token in enumerate((10, 12, 11, 10, 10)):
        step, state = strategy.sample(towards(torch.tensor([token])), state, draws_of(1, time), table)
        assert step.explored.all()
    step, state = strategy.sample(towards(torch.tensor([11])), state, draws_of(1, 5), table)
    step, state = strategy.sample(ordinary_logits(1), state, draws_of(1, 6), table)
    assert not step.explored.any()


def test_without_a_delimiter_the_whole_text_is_thinking(table):
    strategy = bound(neighbor_mix(1.0, 3), table, Vocabulary(60, (0, 1, 2), (1, 3)))
    state = strategy.start(2, torch.device("cpu"))
    for time in range(6):
        step, state = strategy.sample(ordinary_logits(2, time), state, draws_of(2, time), table)
        assert step.explored.all()

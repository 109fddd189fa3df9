"""Neighbor mixing's other settings and its controls: what each feeds, against plain float64 loops."""

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
    one_step,
    ordinary_logits,
    random,
    recipe,
)
from scipy import stats
from strategies import neighbor_mix, norm_matched_noise, orthogonal_noise, random_neighbor_mix, topk_gumbel_select
from torch.nn import functional as F

from ngrpo.exploration.mixing import Mixing
from ngrpo.exploration.neighbors import nearest
from ngrpo.exploration.random_neighbor_mix import random_rows
from ngrpo.exploration.scores import nucleus
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.keys import Draws
from ngrpo.rollout.records import FORCED, TOKEN
from ngrpo.training.replay import replay


@pytest.fixture
def table() -> torch.Tensor:
    rows = random(V, D, seed=5)
    rows[TRAPS] = rows[20:28].clone()
    return rows


def fed_by(strategy, step, table, time: int = 0) -> torch.Tensor:
    rows = len(step.tokens)
    return strategy.embed(step, table, Draws(torch.arange(rows), torch.full((rows,), time)))


CONTROLS = {
    "mix": lambda rate: neighbor_mix(rate, 3, weights="filtered", entropy_threshold=0.5),
    "mix around the sample": lambda rate: neighbor_mix(rate, 3, anchor="sampled"),
    "released": lambda rate: neighbor_mix(rate, 3, compat="released_sglang"),
    "greedy": lambda rate: neighbor_mix(rate, 1),
    "random": lambda rate: random_neighbor_mix(rate, 3, seed=0),
    "norm": lambda rate: norm_matched_noise(rate, 3),
    "orthogonal": lambda rate: orthogonal_noise(rate, 3),
    "elementwise": lambda rate: orthogonal_noise(rate, 3, "elementwise"),
    "gumbel select": lambda rate: topk_gumbel_select(rate, 3),
    "gumbel select sampled": lambda rate: topk_gumbel_select(rate, 3, "sampled"),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_at_rate_zero_all_is_token_sampling_to_the_last_bit(make_model, make_vocabulary, ready, make_rollouts, name):
    model, vocabulary = make_model(), make_vocabulary()
    made, expected = (
        make_rollouts(model, ready(s, model, vocabulary), new_tokens=20) for s in (CONTROLS[name](0.0), TokenSampling())
    )
    assert torch.equal(made.steps.tokens, expected.steps.tokens) and made.steps.mix_ids is None
    assert torch.equal(made.log_probs, expected.log_probs)
    losses = []
    for strategy, rollouts in ((CONTROLS[name](0.0), made), (TokenSampling(), expected)):
        model.zero_grad()
        (replay(model, ready(strategy, model, vocabulary), rollouts).log_probs * rollouts.draws.token).sum().backward()
        losses.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))


@pytest.mark.parametrize("name", CONTROLS)
def test_no_rate_means_every_step_and_the_rate_is_kept(table, name):
    logits = ordinary_logits(2000)
    always = one_step(bound(CONTROLS[name](None), table), logits, table)
    one, half = (one_step(bound(CONTROLS[name](rate), table), logits, table) for rate in (1.0, 0.5))
    assert torch.equal(always.explored, one.explored) and torch.equal(always.tokens, one.tokens)
    share = half.explored.sum().item() / one.explored.sum().item()
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / one.explored.sum().item())
    assert not (half.explored & ~one.explored).any()


@pytest.mark.parametrize("name", CONTROLS)
def test_nothing_is_explored_after_the_thinking_part_nor_on_reserved_tokens(table, name):
    strategy = bound(CONTROLS[name](1.0), table)
    state = strategy.start(50, torch.device("cpu"))
    for time, wanted in enumerate((10, 11, 20, 21)):
        logits = F.one_hot(torch.full((50,), wanted), V) * 200.0 + random(50, V, seed=time)
        step, state = strategy.sample(logits, state, Draws(torch.arange(50), torch.full((50,), time)), table)
        assert (step.tokens == wanted).all()
        if time:
            assert torch.equal(fed_by(strategy, step, table, time), table[step.tokens])
        assert not step.explored.any() or time < 2
    traps = F.one_hot(torch.tensor(TRAPS), V) * 200.0 + random(len(TRAPS), V)
    step = one_step(strategy, traps, table)
    assert torch.equal(fed_by(strategy, step, table), table[torch.tensor(TRAPS)])


# --- neighbor mixing -----------------------------------------------------------------------------------------------


def test_a_sampled_anchor_is_realized_and_mixed_around(table):
    logits, strategy = ordinary_logits(300, scale=1.0), bound(neighbor_mix(1.0, 3, anchor="sampled"), table)
    step, plain = one_step(strategy, logits, table), one_step(TokenSampling(), logits, table)
    assert torch.equal(step.tokens, plain.tokens) and (step.tokens != logits.argmax(-1)).any()
    ids, weights = recipe(step)
    expected = nearest(table, 2, "cosine", VOCABULARY.ordinary(V))[step.tokens]
    mixed = step.explored
    assert mixed.sum() > 250 and torch.equal(ids[mixed, 0], step.tokens[mixed])
    assert torch.equal(ids[mixed, 1:], expected[mixed])
    p = logits.double().gather(1, ids).softmax(-1)
    torch.testing.assert_close(weights[mixed].double(), p[mixed], rtol=0, atol=1e-6)


def test_an_unmixed_step_around_the_sample_stays_in_the_loss(table):
    logits = F.one_hot(torch.full((20,), 2), V) * 200.0
    step = one_step(bound(neighbor_mix(1.0, 3, anchor="sampled", loss_on_mixed_steps="mask"), table), logits, table)
    assert (step.role == TOKEN).all() and not step.explored.any()
    step = one_step(bound(neighbor_mix(1.0, 3, loss_on_mixed_steps="mask"), table), logits, table)
    assert (step.role == FORCED).all(), "an argmax that replaced the sample is none"


@pytest.mark.parametrize("threshold", [0.0, 1.0, 2.5])
def test_only_uncertain_steps_are_mixed(table, threshold):
    logits = ordinary_logits(400) * torch.linspace(0.1, 3, 400)[:, None]
    h = torch.distributions.Categorical(logits=logits.double() / 0.8).entropy()
    strategy = bound(neighbor_mix(1.0, 3, entropy_threshold=threshold, temperature=0.8), table)
    assert torch.equal(one_step(strategy, logits, table).explored, h > threshold)
    assert (h < 2.5).any() and (h > 2.5).any()


def test_filtered_weights_leave_cut_neighbors_out_and_the_anchor_in(table):
    logits = ordinary_logits(300, scale=1.0)
    filtering = bound(neighbor_mix(1.0, 4, weights="filtered", top_p=0.6), table)
    plain = bound(neighbor_mix(1.0, 4, top_p=0.6), table)
    ids, weights = recipe(one_step(filtering, logits, table))
    same, full = recipe(one_step(plain, logits, table))
    inside = nucleus(logits, 0.6).gather(1, ids)
    inside[:, 0] = True
    expected = full.double() * inside
    assert torch.equal(ids, same) and (~inside).any() and inside[:, 1:].any()
    torch.testing.assert_close(weights.double(), expected / expected.sum(-1, keepdim=True), rtol=0, atol=1e-6)


def test_the_released_code_s_mixture(table):
    """Softmax twice, the sample realized, the argmax mixed, neighbors of the output embedding."""
    head, logits = random(V, D, seed=9), ordinary_logits(300, scale=1.0)
    strategy = neighbor_mix(1.0, 3, compat="released_sglang", temperature=0.7, top_p=0.9, weights="raw")
    strategy.bind(VOCABULARY, table)
    strategy.prepare(table, 0, head)
    step, plain = one_step(strategy, logits, table), one_step(TokenSampling(0.7, 0.9), logits, table)
    assert torch.equal(step.tokens, plain.tokens)
    mixed, (ids, weights) = step.explored, recipe(step)
    anchors = logits.argmax(-1)
    assert mixed.sum() > 250 and (step.tokens != anchors)[mixed].any()
    expected = torch.cat((anchors[:, None], nearest(head, 2, "cosine", VOCABULARY.ordinary(V))[anchors]), dim=1)
    assert torch.equal(ids[mixed], expected[mixed])
    p = (logits.double() / 0.7).softmax(-1) * nucleus(logits / 0.7, 0.9)
    p = p / p.sum(-1, keepdim=True)
    twice = (p.gather(1, ids) / 0.7).softmax(-1)
    torch.testing.assert_close(weights[mixed].double(), twice[mixed], rtol=0, atol=1e-6)
    torch.testing.assert_close(
        fed_by(strategy, step, table)[mixed].double(),
        (table[ids[mixed]].double() * twice[mixed][..., None]).sum(1),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize(("k", "most"), [(2, 0.7311), (3, 0.5761)])
def test_a_certain_anchor_gets_little_of_the_released_mixture(table, k, most):
    logits = F.one_hot(torch.full((5,), 20), V) * 200.0
    _, weights = recipe(one_step(bound(neighbor_mix(1.0, k, compat="released_sglang"), table), logits, table))
    assert weights[:, 0].tolist() == pytest.approx([most] * 5, abs=1e-4)


def test_mixing_is_shared(table):
    for name, make in CONTROLS.items():
        assert isinstance(make(0.5), Mixing) != name.startswith("gumbel select")


# --- random neighbors ----------------------------------------------------------------------------------------------


def test_random_rows_are_distinct_ordinary_and_uniform():
    ordinary = VOCABULARY.ordinary(V)
    counts = np.zeros(V)
    for seed in range(300):
        ids = random_rows(ordinary, 4, seed)
        own = ids[ordinary]
        assert torch.equal(ids[:, 0], torch.arange(V)) and ordinary[own].all()
        assert all(len(set(row)) == 5 for row in own.tolist())
        assert (ids[~ordinary] == torch.arange(V)[~ordinary][:, None]).all()
        counts += np.bincount(ids[30, 1:].numpy(), minlength=V)
    others = [i for i in range(V) if ordinary[i] and i != 30]
    assert stats.chisquare(counts[others]).pvalue > 1e-3 and counts.sum() == counts[others].sum()
    everyone = random_rows(ordinary, 55, 0)[ordinary]
    assert (everyone.sort(-1).values == ordinary.nonzero().squeeze(1)).all()
    with pytest.raises(ValueError, match="lower k"):
        random_rows(ordinary, 56, 0)


def test_random_neighbors_have_the_weights_of_the_nearest_ones(table):
    logits = ordinary_logits(200, scale=1.0)
    ours, again, other = (bound(random_neighbor_mix(0.7, 4, seed=s), table) for s in (0, 0, 1))
    step, near = one_step(ours, logits, table), one_step(bound(neighbor_mix(0.7, 4), table), logits, table)
    assert torch.equal(step.tokens, near.tokens) and torch.equal(step.explored, near.explored)
    (ids, weights), (near_ids, near_weights) = recipe(step), recipe(near)
    assert torch.equal(weights, near_weights) and torch.equal(ids[:, 0], near_ids[:, 0])
    assert (ids[step.explored, 1:] != near_ids[step.explored, 1:]).any()
    assert torch.equal(fed_by(ours, step, table)[~step.explored], table[step.tokens[~step.explored]])
    rows = [strategy.get_buffer("recipe.random") for strategy in (ours, again, other)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    assert "recipe.random" in ours.state_dict()
    fed = (table[ids].double() * near_weights.double()[..., None]).sum(1)
    torch.testing.assert_close(fed_by(ours, step, table).double(), fed, rtol=0, atol=1e-5)


# --- noise of matched norm ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("realized", [{}, {"text_token": "sampled"}])
def test_the_noise_is_as_long_as_the_mixture_s_displacement(table, realized):
    logits = ordinary_logits(300, scale=1.0)
    noise, mix = (bound(make(0.8, 3, **realized), table) for make in (norm_matched_noise, neighbor_mix))
    step, mixed = one_step(noise, logits, table), one_step(mix, logits, table)
    anchors = recipe(mixed)[0][:, 0]
    assert torch.equal(recipe(step)[0][:, 0], anchors) and torch.equal(step.explored, mixed.explored)
    where = step.explored
    ours, theirs = (fed_by(s, r, table).double() - table[anchors].double() for s, r in ((noise, step), (mix, mixed)))
    torch.testing.assert_close(ours.norm(dim=-1)[where], theirs.norm(dim=-1)[where], rtol=1e-5, atol=1e-6)
    assert torch.equal(fed_by(noise, step, table)[~where], table[step.tokens[~where]])
    assert where.sum() > 200 and (F.cosine_similarity(ours, theirs)[where].abs() < 0.99).all()


def test_its_direction_is_uniform_and_new_at_every_step(table):
    logits, strategy = ordinary_logits(3000, scale=1.0), bound(norm_matched_noise(1.0, 3), table)
    steps = [one_step(strategy, logits, table, time) for time in (0, 1)]
    u = [F.normalize(fed_by(strategy, s, table, t) - table[s.tokens], dim=-1) for t, s in enumerate(steps)]
    assert u[0].mean(0).abs().max() < 4.5 / math.sqrt(3000 * D)
    assert abs((u[0] * u[1]).sum(-1).mean().item()) < 4.5 / math.sqrt(3000 * D)
    beta = stats.beta(0.5, (D - 1) / 2)  # of a squared coordinate of a uniform direction
    assert stats.kstest(u[0][:, 3].double().square().numpy(), beta.cdf).pvalue > 1e-3


def test_without_neighbors_there_is_no_noise(table):
    logits, strategy = ordinary_logits(50), bound(norm_matched_noise(1.0, 1), table)
    step = one_step(strategy, logits, table)
    assert step.explored.all() and torch.equal(fed_by(strategy, step, table), table[logits.argmax(-1)])


# --- orthogonal noise -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["scalar", "elementwise"])
def test_orthogonal_noise_is_its_formula(table, noise):
    logits, strategy = random(60, V, scale=1.0), bound(orthogonal_noise(1.0, 4, noise, temperature=0.8), table)
    logits[:, [10, 11]] -= 40
    step = one_step(strategy, logits, table)
    rows, z = table.double().numpy(), logits.double().numpy() / 0.8
    xi = Draws(torch.arange(60), torch.zeros(60, dtype=torch.int64))
    xi = xi.normal(3 if noise == "scalar" else 3 * D).double().numpy().reshape(60, 3, -1)
    fed = fed_by(strategy, step, table).double().numpy()
    for row in range(60):
        first = int(z[row].argmax())
        if first in TRAPS:
            assert np.array_equal(fed[row], rows[first])
            continue
        others = [j for j in np.argsort(-z[row], kind="stable").tolist() if j not in TRAPS and j != first][:3]
        weights = np.exp(z[row][others] - z[row][others].max())
        e = rows[first]
        u = rows[others] - np.outer(rows[others] @ e / (e @ e), e)
        expected = e + ((weights / weights.sum())[:, None] * u * xi[row]).sum(0)
        np.testing.assert_allclose(fed[row], expected, atol=2e-6)
        if noise == "scalar":
            assert abs((fed[row] - e) @ e) < 1e-4 * np.linalg.norm(fed[row] - e) * np.linalg.norm(e)


def test_elementwise_noise_is_orthogonal_to_nothing(table):
    logits, strategy = ordinary_logits(100, scale=1.0), bound(orthogonal_noise(1.0, 4, "elementwise"), table)
    step = one_step(strategy, logits, table)
    shift = fed_by(strategy, step, table) - table[step.tokens]
    assert F.cosine_similarity(shift, table[step.tokens]).abs().mean() > 0.05


def test_orthogonal_noise_has_gradients_in_every_candidate_and_none_for_one(table):
    logits, strategy = ordinary_logits(1, scale=1.0), bound(orthogonal_noise(1.0, 3), table)
    step, grown = one_step(strategy, logits, table), table.clone().requires_grad_()
    fed_by(strategy, step, grown).square().sum().backward()
    assert grown.grad is not None
    touched = set(grown.grad.abs().sum(-1).nonzero().squeeze(1).tolist())
    assert touched == set(recipe(step)[0][0].tolist()) and len(touched) == 3
    alone = bound(orthogonal_noise(1.0, 1), table)
    step = one_step(alone, logits, table)
    assert torch.equal(fed_by(alone, step, table), table[step.tokens])


# --- top-k Gumbel selection -----------------------------------------------------------------------------------------


def test_the_selection_realizes_an_exact_sample(table):
    logits, strategy = random(1, V, scale=1.5), bound(topk_gumbel_select(1.0, 3, temperature=0.7), table)
    step = one_step(strategy, logits.expand(20_000, -1), table)
    expected = (logits[0].double() / 0.7).softmax(-1) * 20_000
    often = expected > 5
    counts, rest = torch.bincount(step.tokens, minlength=V).double(), (expected * ~often).sum()
    made = [*counts[often].tolist(), (counts * ~often).sum().item()]
    assert stats.chisquare(made, [*expected[often].tolist(), rest.item()]).pvalue > 1e-3


@pytest.mark.parametrize("text_token", ["anchor", "sampled"])
def test_its_weights_are_made_without_the_noise(table, text_token):
    logits, strategy = random(400, V), bound(topk_gumbel_select(0.7, 4, text_token, temperature=0.8), table)
    step, plain = one_step(strategy, logits, table), one_step(TokenSampling(0.8), logits, table)
    mixed, (ids, weights) = step.explored, recipe(step)
    assert 150 < mixed.sum() < 300
    assert not torch.isin(ids[mixed], torch.tensor(TRAPS)).any()
    assert all(len(set(row)) == 4 for row in ids[mixed].tolist())
    torch.testing.assert_close(
        weights[mixed].double(), (logits.double() / 0.8).gather(1, ids).softmax(-1)[mixed], rtol=0, atol=1e-6
    )
    sampled = step.tokens == plain.tokens
    assert sampled.all() if text_token == "sampled" else torch.equal(ids[mixed, 0], step.tokens[mixed])
    assert (ids[:, 0] != logits.argmax(-1))[mixed].any() and torch.equal(
        fed_by(strategy, step, table)[~mixed], table[step.tokens[~mixed]]
    )
    chosen = Draws(torch.arange(400), torch.zeros(400, dtype=torch.int64)).explore < 0.7
    assert sampled[~chosen].all() and not (mixed & ~chosen).any()


def test_the_selection_stays_in_the_nucleus(table):
    logits, strategy = ordinary_logits(500, scale=1.0), bound(topk_gumbel_select(1.0, 3, top_p=0.4), table)
    step = one_step(strategy, logits, table)
    ids, weights = recipe(step)
    assert nucleus(logits, 0.4).gather(1, step.tokens[:, None]).all()
    assert not weights[~nucleus(logits, 0.4).gather(1, ids)].any() and weights.isfinite().all()

"""What each strategy samples, feeds and scores, one decode step at a time and over whole texts."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch.nn import functional as F

from ngrpo import engine
from ngrpo.engine import generate
from ngrpo.exploration.base import SuffixMatch, Vocabulary
from ngrpo.exploration.gaussian_noise import GaussianNoise, root_mean_square
from ngrpo.exploration.neighbor_mix import NeighborMix
from ngrpo.exploration.neighbors import nearest
from ngrpo.exploration.scores import draw_token, filtered, nucleus, tempered
from ngrpo.exploration.stht import SoftTokens, gaussian_log_density
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.keys import Draws
from ngrpo.losses import clipped_surrogate
from ngrpo.replay import replay
from ngrpo.rollouts import FORCED, GAUSSIAN, TOKEN, Step

V, D = 64, 16
VOCABULARY = Vocabulary(60, (0, 1, 2), (1, 3), (10, 11), (12, 13))
TRAPS = [0, 1, 2, 3, 60, 61, 62, 63]


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def table() -> torch.Tensor:
    """Reserved, stop and padded rows are copies of ordinary ones, so they would be everyone's nearest neighbours."""
    rows = random(V, D, seed=5)
    rows[TRAPS] = rows[20:28].clone()
    return rows


def bound(strategy, table, vocabulary: Vocabulary = VOCABULARY):
    strategy.bind(vocabulary, table)
    strategy.prepare(table, 0)
    return strategy


def draws_of(rows: int, step: int = 0, seed: int = 0) -> Draws:
    return Draws(torch.arange(rows) + 1000 * seed, torch.full((rows,), step))


def one_step(strategy, logits, table, step: int = 0, seed: int = 0) -> Step:
    draws = draws_of(len(logits), step, seed)
    return strategy.sample(logits, strategy.start(len(logits), logits.device), draws, table)[0]


def towards(tokens: torch.Tensor) -> torch.Tensor:
    """Logits (B, V) that leave no choice but `tokens`."""
    return F.one_hot(tokens, V) * 200.0 + random(len(tokens), V)


# --- tokens from uniforms, nuclei, suffixes -------------------------------------------------------------------------


def test_tokens_are_the_inverse_cdf_in_id_order():
    scores, uniform = random(300, V, scale=3), torch.rand(300, dtype=torch.float64)
    for row in range(300):
        weights = np.exp(scores[row].double().numpy() - scores[row].max().item())
        cdf = np.cumsum(weights) / weights.sum()
        assert draw_token(scores[row : row + 1], uniform[row : row + 1]).item() == np.searchsorted(
            cdf, uniform[row].item(), "right"
        )


def test_tokens_come_as_often_as_their_probability():
    scores, rows = random(1, 12), 40_000
    tokens = draw_token(scores.expand(rows, -1), Draws(torch.arange(rows), torch.zeros(())).token)
    expected = scores[0].double().softmax(0) * rows
    assert stats.chisquare(torch.bincount(tokens, minlength=12).numpy(), expected.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-53])
def test_a_token_of_probability_zero_never_comes(uniform):
    scores = torch.full((1, 8), -torch.inf)
    scores[0, [2, 5]] = torch.tensor([0.3, -40.0])
    assert draw_token(scores, torch.tensor([uniform], dtype=torch.float64)).item() in (2, 5)
    scores = torch.full((1, 8), -torch.inf)
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


def test_top_p_log_probs_are_normalised_over_the_nucleus_and_the_realised_token(table):
    strategy, logits = TokenSampling(temperature=0.7, top_p=0.8), random(5, V, scale=2)
    every = Step(torch.arange(V).repeat(5, 1), *[torch.zeros(5, V, dtype=torch.int64)] * 2)
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
    steps = Step(torch.arange(6), torch.zeros(6, dtype=torch.int64), torch.zeros(6, dtype=torch.bool))
    made = TokenSampling(temperature=0.6).log_prob(steps, logits, table)
    expected = (logits.double() / 0.6).log_softmax(-1)[torch.arange(6), torch.arange(6)]
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.double(), expected, rtol=0, atol=1e-5)


def test_suffixes_match_the_end_of_the_text_and_nothing_else():
    texts = torch.tensor([[5, 6, 7, 8], [5, 5, 6, 7], [6, 7, 5, 6], [5, 6, 6, 7]])
    match = SuffixMatch((5, 6, 7))
    state, ended = match.start(4, torch.device("cpu")), []
    for time in range(4):
        found, state = match.push(state, texts[:, time])
        ended.append(found)
    assert torch.stack(ended, dim=1).tolist() == [[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    found, _ = SuffixMatch(()).push(SuffixMatch(()).start(4, torch.device("cpu")), texts[:, 0])
    assert not found.any()


def test_ordinary_rows_are_those_of_tokens_that_are_neither_special_nor_stops_nor_padding():
    assert (~VOCABULARY.ordinary(V)).nonzero().squeeze(1).tolist() == TRAPS


# --- every strategy of conf/exploration -----------------------------------------------------------------------------


def test_what_a_strategy_holds_moves_with_it(strategy_name, make_strategy, make_model, make_vocabulary):
    """Tensors outside the buffers would stay behind on another device."""
    strategy = make_strategy(strategy_name, make_model(), make_vocabulary())
    for module in strategy.modules():
        left = [name for name, value in vars(module).items() if isinstance(value, torch.Tensor)]
        assert not left, f"{type(module).__name__} holds {left} outside its buffers"


def test_the_state_has_one_entry_per_row(strategy_name, make_strategy, make_model, make_vocabulary):
    model = make_model()
    strategy = make_strategy(strategy_name, model, make_vocabulary())
    state = strategy.start(5, torch.device("cpu"))
    for time in range(3):
        assert all(len(value) == 5 for value in state.values())
        step, state = strategy.sample(random(5, V, seed=time), state, draws_of(5, time), model.table.detach())
        assert step.tokens.shape == step.role.shape == step.explored.shape == (5,)
        assert step.explored.dtype == torch.bool and step.tokens.dtype == step.role.dtype == torch.int64


# --- neighbour mixing -----------------------------------------------------------------------------------------------


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


def ordinary_logits(rows: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    """Logits whose argmax is an ordinary token and no part of the delimiter."""
    logits = random(rows, V, seed=seed, scale=scale)
    logits[:, [*TRAPS, 10, 11]] -= 40
    return logits


@pytest.mark.parametrize("k", [1, 2, 3, 6])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
def test_a_mixed_step_is_the_published_formula(table, k, temperature):
    strategy, logits = bound(NeighborMix(1.0, k, temperature=temperature), table), ordinary_logits(50)
    step = one_step(strategy, logits, table)
    fed, weights = reference_mixture(logits, table, k, temperature)
    assert step.explored.all() and torch.equal(step.tokens, logits.argmax(-1))
    assert step.mix_ids.shape == (50, k) and torch.equal(step.mix_ids[:, 0], step.tokens)
    torch.testing.assert_close(step.mix_weights.double(), torch.tensor(weights), rtol=0, atol=1e-6)
    torch.testing.assert_close(strategy.embed(step, table, draws_of(50)).double(), torch.tensor(fed), rtol=0, atol=1e-6)


def test_weights_are_a_distribution_led_by_the_anchor_and_blind_to_a_constant(table):
    strategy, logits = bound(NeighborMix(1.0, 4), table), ordinary_logits(200, scale=1.0)
    weights = one_step(strategy, logits, table).mix_weights
    assert (weights >= 0).all() and (weights.sum(-1) - 1).abs().max() < 1e-6
    assert torch.equal(weights.argmax(-1), torch.zeros(200, dtype=torch.int64)) and weights[:, 0].min() >= 0.25
    moved = one_step(strategy, logits + 17.0, table).mix_weights
    torch.testing.assert_close(moved, weights, rtol=0, atol=1e-5)


def test_a_mixture_lies_in_the_convex_hull_of_its_candidates(table):
    strategy, logits = bound(NeighborMix(1.0, 4), table), ordinary_logits(30, scale=1.0)
    step = one_step(strategy, logits, table)
    fed = strategy.embed(step, table, draws_of(30)).double().numpy()
    for row in range(30):
        corners = table[step.mix_ids[row]].double().numpy()
        weights, distance = optimize.nnls(np.vstack((corners.T, np.ones(4))), np.append(fed[row], 1.0))
        assert distance < 1e-6 and weights.sum() == pytest.approx(1, abs=1e-6)


def test_cold_mixtures_are_the_anchor_and_hot_ones_the_mean(table):
    logits = ordinary_logits(40)
    cold, hot = (bound(NeighborMix(1.0, 3, temperature=t), table) for t in (1e-6, 1e7))
    step = one_step(cold, logits, table)
    assert torch.equal(step.mix_weights, F.one_hot(torch.zeros(40, dtype=torch.int64), 3).float())
    assert torch.equal(cold.embed(step, table, draws_of(40)), table[logits.argmax(-1)])
    step = one_step(hot, logits, table)
    torch.testing.assert_close(step.mix_weights, torch.full((40, 3), 1 / 3), rtol=0, atol=1e-5)


def test_one_candidate_feeds_the_argmax_row(table):
    logits = ordinary_logits(40)
    for realisation in ("anchor", "sampled"):
        strategy = bound(NeighborMix(1.0, 1, realisation=realisation), table)
        step = one_step(strategy, logits, table)
        assert torch.equal(strategy.embed(step, table, draws_of(40)), table[logits.argmax(-1)])


def test_ties_of_the_argmax_go_to_the_lowest_id(table):
    logits = ordinary_logits(3)
    logits[:, [30, 25, 40]] = 50.0
    assert one_step(bound(NeighborMix(1.0, 3), table), logits, table).tokens.tolist() == [25] * 3


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2", "l1"])
def test_no_reserved_stop_or_padded_row_is_a_neighbour(table, metric):
    strategy = bound(NeighborMix(1.0, 6, metric), table)
    anchors = torch.tensor([i for i in range(V) if i not in TRAPS])
    found = strategy.neighbors.candidates(anchors)
    assert not torch.isin(found, torch.tensor(TRAPS)).any()
    assert torch.equal(found[:, 1:], nearest(table, 5, metric, VOCABULARY.ordinary(V))[anchors])


@pytest.mark.parametrize("realisation", ["anchor", "sampled"])
def test_no_reserved_stop_or_padded_token_is_mixed(table, realisation):
    strategy = bound(NeighborMix(1.0, 3, realisation=realisation), table)
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


def test_a_sampled_realisation_keeps_the_sample_and_mixes_around_the_argmax(table):
    logits = ordinary_logits(300, scale=1.0)
    strategy = bound(NeighborMix(1.0, 3, realisation="sampled", temperature=1.3), table)
    step, plain = one_step(strategy, logits, table), one_step(TokenSampling(1.3), logits, table)
    assert torch.equal(step.tokens, plain.tokens)
    mixed = step.mix_weights[:, 0] < 1
    assert mixed.sum() > 200 and torch.equal(step.mix_ids[mixed, 0], logits.argmax(-1)[mixed])
    assert (step.tokens[mixed] != step.mix_ids[mixed, 0]).any()
    fed = strategy.embed(step, table, draws_of(300)).double()
    expected = torch.tensor(reference_mixture(logits, table, 3, 1.3)[0])
    torch.testing.assert_close(fed[mixed], expected[mixed], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["keep", "mask"])
def test_with_a_sampled_realisation_exploration_acts_only_where_it_mixes(table, mode):
    """A reserved argmax or token is fed as it is: then the step is a plain sample, with its place in the loss."""
    logits = ordinary_logits(400, scale=1.0)
    logits[:200, 2] = logits[:200].amax(-1) + 0.1
    strategy = bound(NeighborMix(1.0, 3, realisation="sampled", loss_on_mixed_steps=mode), table)
    step = one_step(strategy, logits, table)
    mixed = torch.arange(400) >= 200
    mixed &= ~torch.isin(step.tokens, torch.tensor(TRAPS))
    assert torch.equal(step.explored, mixed)
    assert torch.equal(step.role == FORCED, mixed if mode == "mask" else torch.zeros(400, dtype=torch.bool))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["mix", "noise"])
def test_the_share_of_explored_steps_is_the_rate_while_thinking_and_nothing_after(table, rate, kind):
    strategy = bound(NeighborMix(rate, 3) if kind == "mix" else GaussianNoise(rate, 0.3), table)
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


@pytest.mark.parametrize("realisation", ["anchor", "sampled"])
def test_a_delimiter_ends_mixing_even_where_it_straddles_a_mixed_step(table, realisation):
    strategy = bound(NeighborMix(0.5, 3, realisation=realisation), table)
    rows, state, steps = 200, strategy.start(200, torch.device("cpu")), []
    close = {1: 10, 2: 11}  # the delimiter is certain, but for mixtures its neighbours still weigh something
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
    strategy = bound(NeighborMix(1.0, 3, temperature=5.0), table)
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
    strategy = bound(NeighborMix(1.0, 3), table)
    state = strategy.start(1, torch.device("cpu"))
    for time, token in enumerate((10, 12, 11, 10, 10)):
        step, state = strategy.sample(towards(torch.tensor([token])), state, draws_of(1, time), table)
        assert step.explored.all()
    step, state = strategy.sample(towards(torch.tensor([11])), state, draws_of(1, 5), table)
    step, state = strategy.sample(ordinary_logits(1), state, draws_of(1, 6), table)
    assert not step.explored.any()


def test_without_a_delimiter_the_whole_text_is_thinking(table):
    strategy = bound(NeighborMix(1.0, 3), table, Vocabulary(60, (0, 1, 2), (1, 3)))
    state = strategy.start(2, torch.device("cpu"))
    for time in range(6):
        step, state = strategy.sample(ordinary_logits(2, time), state, draws_of(2, time), table)
        assert step.explored.all()


@pytest.fixture(scope="module")
def setting(make_model, make_vocabulary):
    return make_model(), make_vocabulary()


def thinking_part(tokens: list[int], vocabulary: Vocabulary) -> list[int]:
    """Up to and with the delimiter, or all of it."""
    a, b = vocabulary.answer_start
    ends = [i + 2 for i in range(len(tokens) - 1) if tokens[i : i + 2] == [a, b]]
    return tokens[: ends[0]] if ends else tokens


def texts(rollouts) -> list[list[int]]:
    return [row[:n] for row, n in zip(rollouts.steps.tokens.tolist(), rollouts.lengths.tolist(), strict=True)]


def loss_and_gradient(model, strategy, rollouts):
    model.zero_grad()
    log_probs = replay(model, strategy, rollouts)
    advantages = random(len(rollouts.mask), 1, seed=3).expand(rollouts.mask.shape)
    made = clipped_surrogate(log_probs, log_probs.detach(), advantages, rollouts.loss_mask).loss
    loss = (made * rollouts.loss_mask).sum()
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(
    "strategy",
    [
        NeighborMix(0.0, 3),
        NeighborMix(0.0, 3, realisation="sampled", loss_on_mixed_steps="mask"),
        GaussianNoise(0.0, 0.5),
        GaussianNoise(0.7, 0.0),
    ],
    ids=["mix", "mix sampled", "noise", "noise of size 0"],
)
def test_exploring_nowhere_is_token_sampling_to_the_last_bit(setting, ready, make_rollouts, strategy):
    model, vocabulary = setting
    ours, plain = ready(strategy, model, vocabulary), ready(TokenSampling(), model, vocabulary)
    made, expected = (make_rollouts(model, part, new_tokens=20) for part in (ours, plain))
    assert texts(made) == texts(expected)
    assert torch.equal(made.log_probs, expected.log_probs) and torch.equal(made.entropy, expected.entropy)
    loss, gradient = loss_and_gradient(model, ours, made)
    expected_loss, expected_gradient = loss_and_gradient(model, plain, expected)
    assert torch.equal(loss, expected_loss)
    assert all(torch.equal(a, b) for a, b in zip(gradient, expected_gradient, strict=True))


def test_mixing_everywhere_with_one_candidate_is_greedy_until_the_answer(
    make_model, make_vocabulary, ready, make_rollouts
):
    compared = 0
    for seed in range(4):
        model, vocabulary = make_model(seed=seed), make_vocabulary(seed=seed)
        mixing, greedy = ready(NeighborMix(1.0, 1), model, vocabulary), ready(TokenSampling(1e-6), model, vocabulary)
        made, expected = (make_rollouts(model, part, group=1, prompts=6) for part in (mixing, greedy))
        for a, b in zip(texts(made), texts(expected), strict=True):
            assert thinking_part(a, vocabulary) == thinking_part(b, vocabulary)
            compared += len(thinking_part(a, vocabulary))
    assert compared > 100


def test_mixing_everywhere_makes_thinking_independent_of_the_seed_and_equal_in_a_group(
    make_model, make_vocabulary, ready, make_rollouts
):
    ended = differ = 0
    for seed in range(6):
        model, vocabulary = make_model(seed=seed), make_vocabulary(seed=seed)
        strategy = ready(NeighborMix(1.0, 3), model, vocabulary)
        runs = [texts(make_rollouts(model, strategy, prompts=6, group=3, seed=s)) for s in "ab"]
        for first in range(0, 18, 3):
            group = [text for run in runs for text in run[first : first + 3]]
            thoughts = {tuple(thinking_part(text, vocabulary)) for text in group}
            assert len(thoughts) == 1
            ended += tuple(vocabulary.answer_start) == next(iter(thoughts))[-2:]
            differ += len({tuple(text) for text in group}) > 1
    assert ended and differ, "some texts reach their answer, and answers are sampled"


@pytest.mark.parametrize("realisation", ["anchor", "sampled"])
def test_masking_removes_the_mixed_steps_from_the_loss_and_nothing_else(setting, ready, make_rollouts, realisation):
    model, vocabulary = setting
    keep, mask = (
        ready(NeighborMix(0.5, 3, realisation=realisation, loss_on_mixed_steps=mode), model, vocabulary)
        for mode in ("keep", "mask")
    )
    kept, masked = (make_rollouts(model, part) for part in (keep, mask))
    assert texts(kept) == texts(masked) and torch.equal(kept.loss_mask, kept.mask)
    assert masked.steps.explored.any() and torch.equal(masked.loss_mask, masked.mask & ~masked.steps.explored)
    log_probs = replay(model, mask, masked)
    assert not log_probs[masked.steps.explored].any()
    torch.testing.assert_close(log_probs, replay(model, keep, kept) * masked.loss_mask, rtol=0, atol=1e-5)


def test_top_p_and_mixing_go_together(setting, ready, make_rollouts):
    model, vocabulary = setting
    strategy = ready(NeighborMix(0.3, 3, top_p=0.7), model, vocabulary)
    rollouts = make_rollouts(model, strategy)
    assert rollouts.log_probs.isfinite().all() and rollouts.steps.explored.any()
    assert (replay(model, strategy, rollouts) - rollouts.log_probs)[rollouts.loss_mask].abs().max() < 1e-5


# --- Gaussian noise -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.1, 0.33, 1.0])
def test_noise_has_the_size_of_its_name_in_every_coordinate(table, scale):
    strategy, rows = bound(GaussianNoise(1.0, scale), table), 2000
    draws, logits = draws_of(rows), ordinary_logits(rows)
    step = strategy.sample(logits, strategy.start(rows, logits.device), draws, table)[0]
    noise = (strategy.embed(step, table, draws) - table[step.tokens]).double()
    sigma = scale * np.sqrt((table.double().numpy() ** 2).mean())
    assert step.explored.all() and step.scale.tolist() == pytest.approx([sigma] * rows, rel=1e-6)
    assert stats.kstest((noise.flatten() / sigma).numpy(), "norm").pvalue > 1e-3
    assert noise.square().sum(-1).mean().item() == pytest.approx(D * sigma**2, rel=0.05)
    assert noise.square().mean(0).sqrt().numpy() == pytest.approx([sigma] * D, rel=0.1)
    assert torch.equal(root_mean_square(table).double(), torch.tensor(sigma / scale, dtype=torch.float32).double())


def test_noise_does_not_change_the_tokens_of_its_own_step(table):
    logits = random(100, V, scale=2)
    assert torch.equal(
        one_step(bound(GaussianNoise(0.5, 1.0), table), logits, table).tokens,
        one_step(TokenSampling(), logits, table).tokens,
    )


def test_reserved_stop_padded_and_delimiter_tokens_are_fed_without_noise(table):
    strategy = bound(GaussianNoise(1.0, 1.0), table)
    step = one_step(strategy, towards(torch.arange(V)), table)
    assert (~step.explored).nonzero().squeeze(1).tolist() == TRAPS
    assert torch.equal(strategy.embed(step, table, draws_of(V))[TRAPS], table[TRAPS])
    state = strategy.start(1, torch.device("cpu"))
    step, state = strategy.sample(towards(torch.tensor([10])), state, draws_of(1, 0), table)
    assert step.explored.all()
    step, state = strategy.sample(towards(torch.tensor([11])), state, draws_of(1, 1), table)
    assert not step.explored.any()


def test_noise_keeps_its_size_once_recorded_though_the_table_moves(table):
    strategy = bound(GaussianNoise(1.0, 0.5), table)
    step, draws = one_step(strategy, ordinary_logits(20), table), draws_of(20)
    before = strategy.embed(step, table, draws) - table[step.tokens]
    larger = 3 * table
    strategy.prepare(larger, 1)
    torch.testing.assert_close(strategy.embed(step, larger, draws) - larger[step.tokens], before, rtol=0, atol=1e-5)


# --- soft tokens ----------------------------------------------------------------------------------------------------


def test_the_density_is_that_of_a_multivariate_normal():
    value, mean = random(7, D, seed=1).double(), random(7, D, seed=2).double()
    sigma = torch.rand(7, generator=torch.Generator().manual_seed(3)).double() + 0.1
    made = gaussian_log_density(value, mean, sigma)
    expected = [
        stats.multivariate_normal(mean[i].numpy(), sigma[i].item() ** 2).logpdf(value[i].numpy()) for i in range(7)
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
        for a, b in zip(texts(made), texts(expected), strict=True):
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
        row for row, text in enumerate(texts(rollouts)) if thinking_part(text, vocabulary) == [*text[:4], *inserted[:2]]
    ]
    assert len(full) > 4
    for row in full:
        assert texts(rollouts)[row][4:8] == inserted
        assert rollouts.steps.role[row, :9].tolist()[:8] == [GAUSSIAN] * 4 + [FORCED] * 4
        assert rollouts.loss_mask[row, 4:8].any().item() is False


@pytest.mark.parametrize("below", [0.0, 0.75, 2.0])
def test_a_chosen_step_that_is_not_mixed_is_recorded_as_it_was_fed(setting, ready, monkeypatch, below):
    """Also where rows left the batch and no step mixed until rows left again."""
    monkeypatch.setattr(engine, "COMPACT_BELOW", below)
    model, _ = setting
    strategy = ready(NeighborMix(1.0, 3), model, Vocabulary(60, tuple(range(40)), (0, 1, 2, 3)))
    prompts = torch.randint(4, 60, (6, 5), generator=torch.Generator().manual_seed(0))
    rollouts = generate(model, strategy, prompts, torch.ones(6, 5).bool(), torch.arange(6), 12)
    chosen = rollouts.steps.explored & rollouts.mask
    assert chosen.any() and (rollouts.steps.mix_weights[..., 0] == 1)[chosen].any()
    weights = rollouts.steps.mix_weights[chosen].sum(-1)
    torch.testing.assert_close(weights, torch.ones_like(weights), rtol=0, atol=1e-6)
    assert (replay(model, strategy, rollouts) - rollouts.log_probs)[rollouts.loss_mask].abs().max() < 1e-5


def test_scores_are_at_least_float32():
    assert tempered(torch.ones(2, dtype=torch.bfloat16), 0.5).dtype == torch.float32
    assert tempered(torch.ones(2, dtype=torch.float64), 0.5).dtype == torch.float64

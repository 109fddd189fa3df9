"""Strategies that think in mixtures of the policy's own distribution: fed vectors, densities, and when they stop."""

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
    random,
    towards,
)
from scipy import stats
from strategies import dirichlet_soft, gaussian_soft, gumbel_soft
from torch.nn import functional as F

from ngrpo.exploration.dirichlet_soft import log_gamma_variates
from ngrpo.exploration.hrpo import HybridReasoning
from ngrpo.exploration.perturbed import CUT
from ngrpo.exploration.scores import gumbel
from ngrpo.exploration.soft_thinking import SoftThinking
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.records import DIRICHLET, FORCED, GAUSSIAN, GUMBEL, TOKEN, DecodeStep, Vocabulary
from ngrpo.training.replay import replay


@pytest.fixture
def table() -> torch.Tensor:
    return random(V, D, seed=5)


def steps_under(strategy, table, logits: list[torch.Tensor]) -> list[DecodeStep]:
    """The steps under logits (B, V) of one time after another."""
    state, steps = strategy.start(len(logits[0]), torch.device("cpu")), []
    for time, now in enumerate(logits):
        step, state = strategy.sample(now, state, draws_of(len(now), time), table)
        steps.append(step)
    return steps


def nearly_sorted(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> tuple[list[int], np.ndarray]:
    """Candidates of one row, likeliest first, and their renormalized probabilities, by the rules in plain numpy."""
    order = np.argsort(-logits[: VOCABULARY.size], kind="stable")[:top_k]
    p = np.exp((logits[order] - logits[order].max()) / temperature)
    p /= p.sum()
    size = int(np.searchsorted(np.cumsum(p), top_p)) + 1
    return order[:size].tolist(), p[:size] / p[:size].sum()


# --- Soft Thinking --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_topk", "top_k", "top_p", "min_p"), [(10, 30, 0.95, 0.001), (4, None, 1.0, 0.0), (5, 3, 1, 0)]
)
def test_a_thought_is_the_renormalized_mixture_of_the_likeliest(table, max_topk, top_k, top_p, min_p):
    strategy, logits = bound(SoftThinking(max_topk, 0.7, top_p, top_k, min_p), table), ordinary_logits(50)
    step, fed = one_step(strategy, logits, table), None
    fed = strategy.embed(step, table, draws_of(50)).double().numpy()
    assert step.explored.all() and torch.equal(step.tokens, logits.argmax(-1))
    for row in range(50):
        p = (logits[row, :60].double() / 0.7).softmax(-1).numpy()
        order = np.argsort(-p, kind="stable")[: top_k or V]
        order = order[: int(np.searchsorted(np.cumsum(p[order] / p[order].sum()), top_p)) + 1]
        order = order[p[order] >= min_p * p[order[0]]][:max_topk]
        expected = (p[order] / p[order].sum()) @ table.double().numpy()[order]
        np.testing.assert_allclose(fed[row], expected, atol=2e-6)


def test_one_candidate_is_greedy_and_thoughts_use_no_chance(table):
    logits = ordinary_logits(40)
    alone = bound(SoftThinking(1), table)
    step = one_step(alone, logits, table)
    assert torch.equal(alone.embed(step, table, draws_of(40)), table[logits.argmax(-1)])
    steps = [one_step(bound(SoftThinking(), table), logits, table, time) for time in (0, 1)]
    for name in ("tokens", "mix_ids", "mix_weights"):
        assert torch.equal(getattr(steps[0], name), getattr(steps[1], name))


def test_samples_share_their_thought(make_model, make_vocabulary, ready, make_rollouts):
    model, vocabulary = make_model(), make_vocabulary()
    rollouts = make_rollouts(model, ready(SoftThinking(top_k=None), model, vocabulary), prompts=6)
    for group in rollouts.steps.tokens.view(6, 4, -1).tolist():
        ends = [i for i in range(1, len(group[0])) if tuple(group[0][i - 1 : i + 1]) == vocabulary.answer_start]
        until = ends[0] + 1 if ends else len(group[0])
        assert all(row[:until] == group[0][:until] for row in group)


def test_a_cold_thought_is_closed_once_it_was_cold_for_long(table):
    low, high = towards([20, 20]), ordinary_logits(2, scale=0.1)
    mixed = torch.stack((low[0], high[1]))  # the second row is interrupted by a step of high entropy
    strategy = bound(SoftThinking(entropy_threshold=0.5, low_steps=3), table)
    steps = steps_under(strategy, table, [low, low, mixed, low, low, low, low, low])
    rows = [[step.tokens[row].item() for step in steps] for row in (0, 1)]
    roles = [[step.role[row].item() for step in steps] for row in (0, 1)]
    assert rows[0][:4] == [20, 20, 10, 11] and roles[0][:5] == [TOKEN, TOKEN, FORCED, FORCED, TOKEN]
    assert rows[1][5:7] == [10, 11] and roles[1] == [TOKEN] * 5 + [FORCED] * 2 + [TOKEN]
    for time, step in enumerate(steps):
        fed = strategy.embed(step, table, draws_of(2, time))
        if step.role[0] == FORCED or time > 3:
            assert torch.equal(fed[0], table[step.tokens[0]]) and not step.explored[0]


@pytest.mark.parametrize(("threshold", "vocabulary"), [(0.0, VOCABULARY), (0.5, Vocabulary(60, (0, 1, 2), (1, 3)))])
def test_without_threshold_or_delimiter_nothing_is_closed(table, threshold, vocabulary):
    strategy = SoftThinking(entropy_threshold=threshold, low_steps=1)
    strategy.bind(vocabulary, table)
    for step in steps_under(strategy, table, [towards([20, 21])] * 5):
        assert step.tokens.tolist() == [20, 21] and (step.role == TOKEN).all()


def test_the_answer_is_sampled_with_its_own_filters_and_never_aborted(table):
    strategy = bound(SoftThinking(temperature=0.3, answer_temperature=1.2, answer_top_p=0.9, answer_top_k=8), table)
    logits = [towards([10] * 30), towards([11] * 30), *(ordinary_logits(30, time) for time in range(2, 6))]
    steps, plain = steps_under(strategy, table, logits), TokenSampling(1.2, 0.9, 8)
    for time in range(2, 6):
        assert torch.equal(steps[time].tokens, one_step(plain, logits[time], table, time).tokens)
        assert not steps[time].explored.any()
        tempered = (logits[time].double() / 1.2).log_softmax(-1).gather(1, steps[time].tokens[:, None]).squeeze(1)
        made = strategy.log_prob(steps[time], logits[time], table).double()
        torch.testing.assert_close(made, tempered, rtol=0, atol=1e-5)
        assert (strategy.temperature_of(steps[time]) == 1.2).all() and (strategy.temperature_of(steps[0]) == 0.3).all()
    cold = bound(SoftThinking(entropy_threshold=0.5, low_steps=2), table)
    later = steps_under(cold, table, [towards([10]), towards([11]), *[towards([20])] * 6])
    assert [step.tokens.item() for step in later] == [10, 11] + [20] * 6, "it ended by itself, though it was cold"


# --- perturbed candidates -------------------------------------------------------------------------------------------

KINDS = {
    "gumbel": (gumbel_soft, GUMBEL),
    "dirichlet": (dirichlet_soft, DIRICHLET),
    "gaussian": (gaussian_soft, GAUSSIAN),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def test_candidates_are_those_of_top_k_and_top_p_and_the_largest_weight_is_shown(table, kind):
    strategy, logits = bound(kind[0](thinking_top_k=6, thinking_top_p=0.8, temperature=0.9), table), random(200, V)
    logits[:, [*TRAPS, 10, 11]] -= 40
    step = one_step(strategy, logits, table)
    assert step.mix_ids is not None and step.mix_weights is not None and step.scores is not None
    assert (step.role == kind[1]).all() and step.explored.all() and torch.equal(step.mix_ids[:, 0], step.tokens)
    valid = step.scores > CUT / 2
    assert (~valid).any() and not step.mix_weights[~valid].any() and step.scores.isfinite().all()
    torch.testing.assert_close(step.mix_weights.sum(-1), torch.ones(200), rtol=0, atol=1e-5)
    assert torch.equal(step.mix_weights.amax(-1), step.mix_weights[:, 0])
    for row in range(200):
        chosen, _ = nearly_sorted(logits[row].double().numpy(), 0.9, 6, 0.8)
        assert set(chosen) == set(step.mix_ids[row][valid[row]].tolist())
    fed = (table[step.mix_ids].double() * step.mix_weights.double()[..., None]).sum(1)
    torch.testing.assert_close(strategy.embed(step, table, draws_of(200)).double(), fed, rtol=0, atol=1e-5)


def test_a_mixture_sends_no_gradient_to_the_table(table, kind):
    strategy, grown = bound(kind[0](), table), table.clone().requires_grad_()
    step = one_step(strategy, ordinary_logits(20), table)
    strategy.embed(step, grown, draws_of(20)).sum().backward()
    assert grown.grad is not None and not grown.grad.any()


def test_reserved_stops_and_delimiters_are_fed_alone_and_keep_their_density(table, kind):
    strategy = bound(kind[0](thinking_top_p=1.0), table)
    logits = [towards([1, 2, 10, 20]), towards([20, 20, 11, 20]), towards([20] * 4), ordinary_logits(4, 9)]
    steps = steps_under(strategy, table, logits)
    fed = [strategy.embed(step, table, draws_of(4, time)) for time, step in enumerate(steps)]
    assert steps[0].explored.tolist() == [False, False, True, True] and (steps[0].role == kind[1]).all()
    assert torch.equal(fed[0][:2], table[torch.tensor([1, 2])])
    assert steps[1].tokens[2] == 11 and not steps[1].explored[2] and steps[1].role[2] == kind[1]
    assert torch.equal(fed[1][2], table[11])
    assert [step.role[2].item() for step in steps[2:]] == [TOKEN] * 2
    assert (torch.stack([step.role for step in steps[1:]])[:, 3] == kind[1]).all()
    plain = one_step(TokenSampling(), logits[3], table, 3)
    assert steps[3].tokens[2] == plain.tokens[2] and torch.equal(fed[3][2], table[plain.tokens[2]])
    scored = [s.log_prob(steps[3], logits[3], table)[2] for s in (strategy, TokenSampling())]
    assert torch.equal(*scored)


def expected_density(strategy, logits: np.ndarray, ids: list[int], y: np.ndarray) -> float:
    """Of recorded scores under other logits (V,), in float64 and by the published formula or a peer's density."""
    p, noise = np.exp((logits[ids] - logits[ids].max()) / strategy.temperature), strategy.noise
    p /= p.sum()
    if noise.role == GUMBEL:
        g = np.clip((y - np.log(p)) / noise.noise_factor, noise.lowest, noise.highest)
        return float((-g - np.exp(-g))[np.log(p) > -3].mean())
    if noise.role == GAUSSIAN:
        return float(stats.norm.logpdf(y, p, noise.sigma).mean())
    alpha, w = np.maximum(noise.concentration * p, 0.01), np.exp(y)
    if len(ids) == 1:
        return 0.0
    return float((stats.dirichlet(alpha).logpdf(w / w.sum()) + y.sum()) / len(ids))  # times prod w: measure dw / w


def test_the_density_is_that_of_the_record_under_the_current_policy(table, kind):
    strategy = bound(kind[0](thinking_top_k=6, thinking_top_p=0.9, temperature=0.8), table)
    logits = ordinary_logits(200, scale=1.0).double()
    step = one_step(strategy, logits, table.double())
    assert step.mix_ids is not None and step.scores is not None
    for moved in (logits, logits + 0.3 * random(200, V, seed=7).double()):
        made = strategy.log_prob(step, moved, table.double())
        for row in range(200):
            valid = step.scores[row] > CUT / 2
            ids, y = step.mix_ids[row][valid].tolist(), step.scores[row][valid].numpy()
            expected = expected_density(strategy, moved[row].numpy(), ids, y)
            assert made[row].item() == pytest.approx(expected, rel=1e-3 if kind[0] is gumbel_soft else 1e-6, abs=1e-6)


def test_densities_have_gradients_that_agree_with_differences(table, kind):
    strategy = bound(kind[0](thinking_top_k=5, thinking_top_p=0.9), table)
    logits = ordinary_logits(30, scale=1.0).double()
    step = one_step(strategy, logits, table.double())
    moved = (logits + 0.01 * random(30, V, seed=3).double()).requires_grad_()
    (gradient,) = torch.autograd.grad(strategy.log_prob(step, moved, table.double()).sum(), moved)
    direction = random(30, V, seed=4).double()
    up, down = (strategy.log_prob(step, moved.detach() + s * 1e-6 * direction, table.double()) for s in (1, -1))
    slope = ((up - down) / 2e-6).detach()
    close = (slope - (gradient * direction).sum(-1)).abs() < 1e-4 * (1 + slope.abs())
    assert gradient.isfinite().all() and close.double().mean() > 0.9, "but where a clamp lies within the difference"


def test_the_score_function_has_mean_zero_without_clamp(table):
    """E[grad log q] = 0: what is sampled is what is scored, for every coordinate that counts."""
    logits = torch.full((1, V), -50.0).double()
    logits[0, [20, 21, 22]] = torch.tensor([1.0, 0.5, 0.0]).double()
    free = gumbel_soft(clamp=None, noise_factor=0.7, thinking_top_k=3, thinking_top_p=1.0)
    others = (dirichlet_soft(5.0, 3, 1.0), gaussian_soft(0.05, 3, 1.0))
    for strategy in (free, *others):
        many = logits.expand(20_000, -1)
        step = one_step(bound(strategy, table), many, table.double())
        leaf = many.clone().requires_grad_()
        (g,) = torch.autograd.grad(strategy.log_prob(step, leaf, table.double()).sum(), leaf)
        g = g[:, 20:23]
        assert (g.mean(0).abs() < 4.5 * g.std(0) / math.sqrt(20_000)).all(), type(strategy.noise).__name__


def test_weights_are_those_of_soft_thinking_without_noise_and_a_one_hot_sample_when_cold(table):
    logits = ordinary_logits(100, scale=1.0)
    quiet = bound(gumbel_soft(noise_factor=1e-7, soft_temperature=0.1, thinking_top_k=4, thinking_top_p=1.0), table)
    step = one_step(quiet, logits, table)
    soft = one_step(bound(SoftThinking(4, 1.0, 1.0, None, 0.0), table), logits, table)
    assert step.mix_weights is not None and soft.mix_weights is not None
    sharpened = soft.mix_weights.double() ** 10
    expected = sharpened / sharpened.sum(-1, keepdim=True)
    torch.testing.assert_close(step.mix_weights.double(), expected, rtol=0, atol=1e-5)
    cold = one_step(bound(gumbel_soft(soft_temperature=1e-9), table), logits, table)
    assert cold.mix_weights is not None and (cold.mix_weights[:, 0] == 1).all()
    alone = one_step(bound(gumbel_soft(thinking_top_k=1), table), logits, table)
    assert torch.equal(alone.tokens, logits.argmax(-1)) and (alone.mix_weights == 1).all()


def test_without_clamp_the_shown_token_is_an_exact_sample(table):
    logits = torch.full((1, V), -50.0)
    logits[0, 20:25] = random(5, scale=1.0)
    strategy = bound(gumbel_soft(clamp=None, thinking_top_p=1.0, temperature=0.8), table)
    step = one_step(strategy, logits.expand(20_000, -1), table)
    counts = torch.bincount(step.tokens - 20, minlength=5)
    expected = (logits[0, 20:25].double() / 0.8).softmax(-1) * 20_000
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-3


def test_noise_is_clamped_as_released(table):
    strategy, logits = bound(gumbel_soft(thinking_top_p=1.0, noise_factor=0.5), table), ordinary_logits(2000)
    step = one_step(strategy, logits.double(), table.double())
    assert step.mix_ids is not None and step.scores is not None
    log_p = logits.double().gather(1, step.mix_ids).log_softmax(-1)
    g = ((step.scores - log_p) / 0.5).sort(-1).values
    made = gumbel(draws_of(2000).uniforms(5)).clamp(-1.5, 3).sort(-1).values
    torch.testing.assert_close(g, made, rtol=0, atol=1e-9)
    assert (made == 3).any() and (made == -1.5).any()


def test_probabilities_that_all_turn_negative_leave_the_largest(table):
    weights = gaussian_soft().noise.weigh(torch.tensor([[-0.1, -0.2, CUT], [0.3, 0.1, -0.2]]))
    assert weights.tolist() == [[1, 0, 0], pytest.approx([0.75, 0.25, 0])]


@pytest.mark.parametrize("alpha", [0.01, 0.3, 1.0, 2.5, 40.0])
def test_gamma_variates_are_gamma_distributed(alpha):
    made = log_gamma_variates(torch.full((4000, 2), alpha, dtype=torch.float64), draws_of(4000))
    assert made.isfinite().all() and abs(np.corrcoef(made.numpy().T)[0, 1]) < 0.07
    for column in made.T:
        assert stats.kstest(column.numpy(), stats.loggamma(alpha).cdf).pvalue > 1e-3


def test_dirichlet_weights_have_beta_margins(table):
    logits = torch.full((1, V), -50.0)
    logits[0, 20:24] = torch.tensor([2.0, 1.0, 0.0, -1.0])
    step = one_step(bound(dirichlet_soft(8.0, 4, 1.0), table), logits.expand(4000, -1), table)
    assert step.mix_ids is not None and step.mix_weights is not None
    p = logits[0, 20:24].double().softmax(-1).numpy()
    for token in range(4):
        made = step.mix_weights[step.mix_ids == 20 + token].double().numpy()
        assert len(made) == 4000
        assert stats.kstest(made, stats.beta(8 * p[token], 8 * (1 - p[token])).cdf).pvalue > 1e-3


@pytest.mark.parametrize("size", [0, 0.0, -1.0, float("nan")])
def test_densities_need_noise(size):
    for make, name in ((gumbel_soft, "noise_factor"), (gaussian_soft, "sigma"), (dirichlet_soft, "concentration")):
        with pytest.raises(ValueError, match=rf"{name}=.*{name} > 0"):
            make(**{name: size})


# --- hybrid reasoning -----------------------------------------------------------------------------------------------


def test_a_hybrid_step_is_the_released_formula(table):
    strategy, logits = (
        bound(HybridReasoning(seed=0, r_min=0.5, r_max=0.9, temperature=0.7, top_p=0.9), table),
        random(60, V),
    )
    step, plain = one_step(strategy, logits, table), one_step(TokenSampling(0.7, 0.9), logits, table)
    assert torch.equal(step.tokens, plain.tokens) and (step.role == TOKEN).all()
    assert torch.equal(step.explored, ~torch.isin(step.tokens, torch.tensor(TRAPS)))
    p = TokenSampling(0.7, 0.9).scores(logits.double()).softmax(-1)
    h = (p @ table.double()) / p.square().sum(-1, keepdim=True).sqrt()
    x = table.double()[step.tokens]
    weights = {name: value.double() for name, value in strategy.named_parameters()}
    r = torch.sigmoid(x @ weights["reset.weight"].T + weights["reset.bias"])
    i = torch.sigmoid(x @ weights["input.weight"].T + weights["input.bias"])
    a = torch.exp(-8 * torch.log1p(torch.exp(-weights["Lambda"])) * r)
    expected = torch.where(step.explored[:, None], a * x + torch.sqrt(1 - a**2 + 1e-8) * i * h, x)
    torch.testing.assert_close(strategy.embed(step, table, draws_of(60)).double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(strategy.log_prob(step, logits, table), TokenSampling(0.7, 0.9).log_prob(step, logits, table))


def test_gates_begin_as_drawn_from_the_seed_whatever_torch_drew_before(table):
    def gates(seed: int) -> list[torch.Tensor]:
        return [p.detach() for p in bound(HybridReasoning(seed), table).parameters()]

    first = gates(0)
    torch.rand(7)
    assert all(torch.equal(a, b) for a, b in zip(first, gates(0), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, gates(1), strict=True))
    strategy = bound(HybridReasoning(0, r_min=0.9, r_max=0.95), table)
    u = torch.exp(-8 * F.softplus(-strategy.Lambda))
    assert u.min() >= 0.9 - 1e-5 and u.max() <= 0.95 + 1e-5
    a = strategy.retained(table)
    assert (a >= 0.9 - 1e-5).all() and (a <= 1).all()
    before = [p.detach().clone() + 1 for p in strategy.parameters()]
    with torch.no_grad():
        for p in strategy.parameters():
            p.add_(1)
    strategy.bind(VOCABULARY, table)
    assert all(torch.equal(a, b) for a, b in zip(before, strategy.parameters(), strict=True)), "trained gates stay"


def test_a_closed_gate_is_token_sampling(table):
    strategy, logits = bound(HybridReasoning(0), table), random(50, V)
    with torch.no_grad():
        strategy.Lambda.fill_(1e4)
    step = one_step(strategy, logits, table)
    gap = (strategy.embed(step, table, draws_of(50)) - table[step.tokens]).abs().max().item()
    assert step.offset is not None and gap <= 1.1e-4 * (step.offset.abs().max().item() + 1)


def test_gates_learn_and_have_rates_of_their_own(make_model, make_vocabulary, ready, make_rollouts):
    model, vocabulary = make_model(), make_vocabulary()
    strategy = ready(HybridReasoning(0, gate_learning_rate=2e-4, lambda_learning_rate=3e-3), model, vocabulary)
    rollouts = make_rollouts(model, strategy)
    replay(model, strategy, rollouts).log_probs.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in strategy.parameters())
    groups = strategy.parameter_groups(1.0)
    assert [group["lr"] for group in groups] == [2e-4, 3e-3]
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in strategy.parameters()}
    assert TokenSampling().parameter_groups(1.0) == []
    assert rollouts.steps.offset is not None and not rollouts.steps.offset.requires_grad


def test_parameters_stay_in_the_graph_where_nothing_is_soft(table):
    strategy = bound(HybridReasoning(0), table)
    step = one_step(strategy, towards([1, 2, 3]), table)
    assert not step.explored.any()
    fed = strategy.embed(step, table, draws_of(3))
    assert torch.equal(fed, table[step.tokens])
    fed.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in strategy.parameters())


def test_hybrid_steps_end_with_the_thinking_part(table):
    steps = steps_under(bound(HybridReasoning(0), table), table, [towards([t, 20]) for t in (20, 10, 11, 21, 22)])
    assert [step.explored[0].item() for step in steps] == [True, True, False, False, False]
    assert all(step.explored[1] for step in steps)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.9), (0.9, 1.0), (0.9, 0.8)])
def test_gates_begin_between_zero_and_one(low, high):
    with pytest.raises(ValueError, match="0 < r_min <= r_max < 1"):
        HybridReasoning(0, low, high)

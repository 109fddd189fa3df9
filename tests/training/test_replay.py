"""The replay contract, for every strategy that has a config file: what was rolled out is what is trained on."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from strategies import gaussian_noise, neighbor_mix
from thinning import thinned
from torch.nn import functional as F

from ngrpo.algorithm.inputs import LossInputs
from ngrpo.algorithm.losses import clipped_surrogate
from ngrpo.exploration.stht import SoftTokens
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.models.causal import CausalModel
from ngrpo.rollout.engines.transformers import generate
from ngrpo.rollout.records import DIRICHLET, FORCED, GAUSSIAN, GUMBEL, TOKEN, DecodeStep, Rollouts
from ngrpo.training import replay as replaying
from ngrpo.training.replay import micro_batches, prompts_of, replay, replay_in_micro_batches

WIDTH = 32
TEMPERATURES = (0.6, 1.0, 1.3)
TOLERANCE = {TOKEN: 1e-5, GUMBEL: 1e-5, DIRICHLET: 1e-5, GAUSSIAN: 1e-5 * math.sqrt(WIDTH)}


@pytest.fixture(scope="module")
def exact(make_model):
    return make_model(dtype=torch.float64)


@pytest.fixture(scope="module")
def vocabulary(make_vocabulary):
    return make_vocabulary()


@pytest.fixture
def made(strategy_name, make_strategy, make_rollouts, exact, vocabulary):
    """A strategy of conf/exploration and rollouts of it, in float64."""
    strategy = make_strategy(strategy_name, exact, vocabulary)
    return strategy, make_rollouts(exact, strategy, prompts=6, group=3)


def gap(model, strategy, rollouts: Rollouts) -> torch.Tensor:
    """(B, T) |replayed - rolled out| under the weights that were sampled from, 0 where nothing counts."""
    with strategy.perturbed(model):
        difference = replay(model, strategy, rollouts).log_probs.detach() - rollouts.log_probs
    return difference.abs() * rollouts.loss_mask


def gradients(model, strategy, rollouts: Rollouts, rows: int | None = None) -> list[torch.Tensor]:
    """Of a random weighting of the log-probs, which names a row by its key and not by its place."""
    model.zero_grad()
    for index in micro_batches(rollouts, rows or len(rollouts.mask)):
        part = rollouts.rows(index)
        (replay(model, strategy, part).log_probs * part.draws.token * part.loss_mask).sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def close(ours, theirs, tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("family", "tied"), [("qwen2", False), ("qwen3", True), ("llama", False)])
def test_replayed_log_probs_are_those_of_the_rollout(
    make_model, make_vocabulary, make_strategy, make_rollouts, strategy_name, family, tied, temperature
):
    model, vocabulary = make_model(family, tied=tied), make_vocabulary(family, tied=tied)
    strategy = make_strategy(strategy_name, model, vocabulary, temperature)
    rollouts = make_rollouts(model, strategy, prompts=6, new_tokens=20)
    gaps = gap(model, strategy, rollouts)
    for role in rollouts.steps.role[rollouts.loss_mask].unique().tolist():
        found = gaps[rollouts.steps.role == role]
        if role in (TOKEN, GUMBEL):
            assert found.max() <= TOLERANCE[role], role
        else:  # densities magnify the rounding of logits, so the worst of hundreds says little: float64 tells, below
            assert found.quantile(0.99) <= TOLERANCE[role] and found.max() <= 3 * TOLERANCE[role], role
    assert rollouts.loss_mask.sum() > 100


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_and_in_float64_to_its_precision(exact, vocabulary, make_strategy, make_rollouts, strategy_name, temperature):
    strategy = make_strategy(strategy_name, exact, vocabulary, temperature)
    assert gap(exact, strategy, make_rollouts(exact, strategy, prompts=6, new_tokens=20)).max() < 1e-9


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_fuzzy_tokens_in_float64(exact, vocabulary, make_strategy, make_rollouts, temperature):
    strategy = make_strategy("stht", exact, vocabulary, temperature, soft_temperature=1e-4)
    rollouts = make_rollouts(exact, strategy, prompts=6, new_tokens=20)
    assert gap(exact, strategy, rollouts).max() <= 1e-5 * math.sqrt(WIDTH)
    assert (rollouts.steps.role[rollouts.mask] == GAUSSIAN).any()


EXTREMES = {
    "mix": lambda: neighbor_mix(1.0, 5, temperature=1.3),
    "mix sampled": lambda: neighbor_mix(0.5, 3, "l2", text_token="sampled"),
    "mix masked": lambda: neighbor_mix(0.5, 3, loss_on_mixed_steps="mask"),
    "mix in a nucleus": lambda: neighbor_mix(0.5, 3, top_p=0.8),
    "noise": lambda: gaussian_noise(1.0, 1.0, top_p=0.9),
    "nucleus": lambda: TokenSampling(1.0, top_p=0.7),
    "soft with a limit": lambda: SoftTokens(0.5, 0.33, think_limit=3),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_other_settings_of_the_strategies_replay_too(exact, vocabulary, ready, make_rollouts, name):
    strategy = ready(EXTREMES[name](), exact, vocabulary)
    rollouts = make_rollouts(exact, strategy, prompts=6, new_tokens=20)
    assert gap(exact, strategy, rollouts).max() < 1e-9
    if "nucleus" not in name or "mix" in name:
        assert (rollouts.steps.explored & rollouts.mask).any()


def test_bfloat16_stays_near(make_model, vocabulary, make_strategy, make_rollouts, strategy_name):
    model = make_model(precision="bfloat16")
    strategy = make_strategy(strategy_name, model, vocabulary)
    rollouts = make_rollouts(model, strategy, prompts=6, new_tokens=20)
    assert rollouts.log_probs.dtype == torch.float32
    where = rollouts.loss_mask & (rollouts.steps.role != GAUSSIAN)
    mean = gap(model, strategy, rollouts)[where].mean().item() if where.any() else 0.0
    print(f"{strategy_name}: mean gap {mean:.1e}")
    assert mean <= 2e-2


def test_the_ratio_is_exactly_one_before_the_first_update(
    make_model, vocabulary, make_strategy, make_rollouts, strategy_name
):
    """Old log-probs come without gradient, in micro-batches; training over the same ones repeats them bit by bit."""
    model = make_model()
    strategy = make_strategy(strategy_name, model, vocabulary)
    rollouts = make_rollouts(model, strategy, prompts=6)
    old = replay_in_micro_batches(model, strategy, rollouts, 5).log_probs
    for index in micro_batches(rollouts, 5):
        part = rollouts.rows(index)
        new = replay(model, strategy, part).log_probs
        before = old[index, : part.mask.shape[1]]
        assert new.requires_grad and torch.equal(new.detach(), before)
        made = clipped_surrogate(LossInputs(new, before, torch.ones_like(before), part.loss_mask))
        assert torch.equal(made.loss.detach(), -torch.ones_like(before)) and not made.clipped.any()


def peer_log_probs(model, fed: torch.Tensor, rollouts: Rollouts, row: int, temperature: float) -> torch.Tensor:
    """Of one row's tokens, by the model itself without padding, given the fed answer vectors (T, D)."""
    prompt = rollouts.prompts[row][rollouts.prompt_mask[row]]
    length = int(rollouts.lengths[row])
    own = torch.cat((model.table.detach()[prompt], fed[: length - 1]))
    logits = model.model(inputs_embeds=own[None]).logits[0, len(prompt) - 1 :]
    return (logits / temperature).log_softmax(-1).gather(1, rollouts.steps.tokens[row, :length, None]).squeeze(1)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_mixtures_are_rebuilt_with_the_table_of_the_model_that_replays(
    make_model, vocabulary, ready, make_rollouts, temperature
):
    """A reference with another table has its own rows in the mixtures; ids and weights are the recorded ones."""
    policy, other = make_model(dtype=torch.float64), make_model(dtype=torch.float64, seed=1)
    strategy = ready(neighbor_mix(0.5, 3, temperature=temperature), policy, vocabulary)
    rollouts = make_rollouts(policy, strategy)
    assert (rollouts.steps.mix_weights[rollouts.steps.explored & rollouts.mask][:, 0] < 1).any()
    for model in (policy, other):
        made, table = replay(model, strategy, rollouts).log_probs.detach(), model.table.detach()
        for row in range(len(rollouts.mask)):
            fed = torch.stack(
                [
                    torch.stack([w * table[i] for i, w in zip(ids.tolist(), weights.tolist(), strict=True)]).sum(dim=0)
                    if explored
                    else table[token]
                    for ids, weights, explored, token in zip(
                        rollouts.steps.mix_ids[row],
                        rollouts.steps.mix_weights[row].double(),
                        rollouts.steps.explored[row],
                        rollouts.steps.tokens[row],
                        strict=True,
                    )
                ]
            )
            expected = peer_log_probs(model, fed, rollouts, row, temperature).detach()
            torch.testing.assert_close(made[row, : len(expected)], expected, rtol=0, atol=1e-9)
    assert gap(other, strategy, rollouts).max() > 0.1, "the models do differ"


def test_the_reference_s_kl_is_zero_where_it_equals_the_policy(exact, made):
    strategy, rollouts = made
    twin = copy.deepcopy(exact).requires_grad_(False)
    ours, theirs = (replay_in_micro_batches(model, strategy, rollouts, 4).log_probs for model in (exact, twin))
    assert torch.equal(ours, theirs)


def test_gradients_reach_the_rows_of_a_mixture(make_model, vocabulary, ready, make_rollouts):
    """Against autograd through the model's own forward with the recorded recipe, weights being constants."""
    model = make_model(dtype=torch.float64)
    strategy = ready(neighbor_mix(0.5, 3), model, vocabulary)
    rollouts = make_rollouts(model, strategy, prompts=2)
    ours = gradients(model, strategy, rollouts)
    model.zero_grad()
    steps, table, total = rollouts.steps, model.table, torch.zeros((), dtype=torch.float64)
    mixed = (table[steps.mix_ids] * steps.mix_weights.double()[..., None]).sum(-2)
    fed = torch.where(steps.explored[..., None], mixed, table[steps.tokens])
    for row in range(len(rollouts.mask)):
        prompt, length = rollouts.prompts[row][rollouts.prompt_mask[row]], int(rollouts.lengths[row])
        own = torch.cat((table[prompt], fed[row, : length - 1]))
        log_p = model.model(inputs_embeds=own[None]).logits[0, len(prompt) - 1 :].log_softmax(-1)
        chosen = log_p.gather(1, steps.tokens[row, :length, None]).squeeze(1)
        total = total + (chosen * rollouts.draws.token[row, :length]).sum()
    total.backward()
    # The model's norms are float32 whatever its weights are, and what rows share passes them once here, row by row there.
    close(ours, [parameter.grad for parameter in model.parameters()], 1e-6)


def widened(rollouts: Rollouts, left: int, right: int) -> Rollouts:
    """More padding on both sides, with whatever standing in it."""

    def pad(value: torch.Tensor, filler: float) -> torch.Tensor:
        return F.pad(value, (*[0, 0] * (value.dim() - 2), 0, right), value=filler)

    steps = rollouts.steps
    garbage = {"tokens": 17, "role": GAUSSIAN if steps.offset is not None else TOKEN, "explored": True, "mix_ids": 5}
    present = {name: value for name, value in vars(steps).items() if value is not None}
    filled = {name: pad(value, garbage.get(name, 9.0)) for name, value in present.items()}
    return replace(
        rollouts,
        prompts=F.pad(rollouts.prompts, (left, 0), value=23),
        prompt_mask=F.pad(rollouts.prompt_mask, (left, 0)),
        steps=DecodeStep(**filled),
        **{name: F.pad(getattr(rollouts, name), (0, right)) for name in ("mask", "log_probs", "entropy")},
    )


def test_padding_is_invisible(exact, made):
    strategy, rollouts = made
    wide = widened(rollouts, 5, 4)
    expected = replay(exact, strategy, rollouts).log_probs.detach()
    found = replay(exact, strategy, wide).log_probs.detach()
    torch.testing.assert_close(found[:, : expected.shape[1]], expected, rtol=0, atol=1e-6)
    assert not found[~wide.loss_mask].any()
    close(gradients(exact, strategy, wide), gradients(exact, strategy, rollouts), 1e-6)


def test_the_order_of_rows_is_invisible(exact, made):
    strategy, rollouts = made
    order = torch.randperm(len(rollouts.mask), generator=torch.Generator().manual_seed(0))
    shuffled = rollouts.rows(order)
    expected, found = (replay(exact, strategy, part).log_probs.detach() for part in (rollouts, shuffled))
    torch.testing.assert_close(found, expected[order, : found.shape[1]], rtol=0, atol=1e-6)
    close(gradients(exact, strategy, shuffled), gradients(exact, strategy, rollouts), 1e-6)


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_the_size_of_micro_batches_is_invisible(exact, made, rows):
    strategy, rollouts = made
    whole = replay(exact, strategy, rollouts).log_probs.detach()
    found = replay_in_micro_batches(exact, strategy, rollouts, rows).log_probs.double()
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)
    close(gradients(exact, strategy, rollouts, rows), gradients(exact, strategy, rollouts), 1e-6)


def test_micro_batches_are_a_partition_that_keeps_prompts_together_and_sorts_them_by_their_longest_row(exact, made):
    _, rollouts = made
    prompt = prompts_of(rollouts)
    assert prompt.tolist() == [p for p in range(len(prompt) // rollouts.group_size) for _ in range(rollouts.group_size)]
    length = rollouts.lengths + rollouts.prompt_mask.sum(1)
    longest = [int(length[prompt == p].max()) for p in prompt.tolist()]
    for rows in (1, 4, 100):
        chosen = micro_batches(rollouts, rows)
        order = torch.cat(chosen).tolist()
        assert sorted(order) == list(range(len(prompt))) and all(len(index) <= rows for index in chosen)
        assert order == sorted(order, key=lambda row: (longest[row], row))


def test_each_token_is_read_once_and_a_prompt_once_for_its_rows(exact, made, monkeypatch):
    strategy, rollouts = made
    read, hidden = [], CausalModel.hidden

    def counting(self, embeddings, *others):
        read.append(embeddings.shape[:2])
        return hidden(self, embeddings, *others)

    monkeypatch.setattr(CausalModel, "hidden", counting)
    replay(exact, strategy, rollouts)
    prompts = int(rollouts.prompt_mask[:: rollouts.group_size].sum())
    assert read == [(1, prompts + int((rollouts.lengths - 1).sum()))]


def test_the_head_never_sees_more_than_a_chunk(exact, made, monkeypatch):
    strategy, rollouts = made
    expected = replay(exact, strategy, rollouts).log_probs.detach()
    full = gradients(exact, strategy, rollouts)
    seen = []
    head = exact.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    monkeypatch.setattr(replaying, "chunk_tokens", lambda vocabulary, device: 7)
    try:
        found = replay(exact, strategy, rollouts).log_probs.detach()
        chunked = gradients(exact, strategy, rollouts)
    finally:
        handle.remove()
    assert max(shape[:-1].numel() for shape in seen) <= 7 and len(seen) >= 3 * (int(rollouts.loss_mask.sum()) // 7)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    close(chunked, full, 1e-10)


def test_only_tokens_that_count_reach_the_head(exact, vocabulary, ready, make_rollouts):
    strategy = ready(neighbor_mix(0.5, 3, loss_on_mixed_steps="mask"), exact, vocabulary)
    rollouts = make_rollouts(exact, strategy)
    seen = []
    handle = exact.model.get_output_embeddings().register_forward_hook(lambda *given: seen.append(given[2].shape))
    replay(exact, strategy, rollouts)
    handle.remove()
    assert sum(shape[:-1].numel() for shape in seen) == rollouts.loss_mask.sum() < rollouts.mask.sum()


@pytest.mark.parametrize("kind", ["masked mixtures", "inserted text"])
def test_forced_steps_have_neither_log_prob_nor_gradient(exact, vocabulary, ready, make_rollouts, kind):
    masked = neighbor_mix(0.5, 3, loss_on_mixed_steps="mask")
    strategy = ready(masked if kind == "masked mixtures" else SoftTokens(0.5, 0.33, think_limit=2), exact, vocabulary)
    rollouts = make_rollouts(exact, strategy)
    forced = rollouts.mask & (rollouts.steps.role == FORCED)
    assert forced.any() and (rollouts.mask & ~forced).any()
    log_probs = replay(exact, strategy, rollouts).log_probs
    assert not log_probs[forced].any()
    for gradient in torch.autograd.grad((log_probs * forced).sum(), list(exact.parameters())):
        assert not gradient.any()


def test_a_batch_in_which_nothing_counts_still_gives_every_parameter_a_gradient_of_zero(exact, made):
    strategy, rollouts = made
    steps = replace(rollouts.steps, role=torch.full_like(rollouts.steps.role, FORCED))
    exact.zero_grad(set_to_none=True)
    log_probs = replay(exact, strategy, replace(rollouts, steps=steps)).log_probs
    assert not log_probs.any()
    log_probs.sum().backward()
    for name, parameter in [*exact.named_parameters(), *strategy.named_parameters()]:
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_answers_of_one_token(exact, make_strategy, strategy_name, vocabulary, make_rollouts):
    strategy = make_strategy(strategy_name, exact, vocabulary)
    rollouts = make_rollouts(exact, strategy, new_tokens=1)
    assert gap(exact, strategy, rollouts).max() < 1e-9
    assert all(gradient.isfinite().all() for gradient in gradients(exact, strategy, rollouts))


def test_prompts_of_one_token(exact, make_strategy, strategy_name, vocabulary, make_keys):
    strategy = make_strategy(strategy_name, exact, vocabulary)
    prompts = torch.tensor([[7], [9]])
    for limit in (1, 2, 6):
        rollouts = generate(exact, strategy, prompts, torch.ones(2, 1).bool(), make_keys(6), limit)
        assert gap(exact, strategy, rollouts).max() < 1e-9


def test_the_attention_of_transformers_replays_alike(
    make_model, vocabulary, make_strategy, make_rollouts, exact, strategy_name
):
    """The stock model row by row, without padding or a prompt that is shared, given the vectors that a record rebuilds."""
    stock = make_model(dtype=torch.float64).model
    stock.set_attn_implementation("sdpa")
    strategy, table = make_strategy(strategy_name, exact, vocabulary), exact.table.detach()
    rollouts = make_rollouts(exact, strategy)
    assert gap(exact, strategy, rollouts).max() < 1e-9
    ours, fed = replay(exact, strategy, rollouts).log_probs, strategy.embed(rollouts.steps, table, rollouts.draws)
    masks = strategy.masks(rollouts.keys, *exact.attended)
    for row, length in enumerate(rollouts.lengths.tolist()):
        prompt = rollouts.prompts[row][rollouts.prompt_mask[row]]
        own = torch.cat((table[prompt], fed[row, : length - 1]))
        with thinned(stock, masks, row, len(prompt)):
            logits = stock(inputs_embeds=own[None]).logits[0, len(prompt) - 1 :]
        theirs = strategy.log_prob(rollouts.steps[row, :length], logits, table) * rollouts.loss_mask[row, :length]
        torch.testing.assert_close(ours[row, :length], theirs, rtol=0, atol=1e-9)


def test_the_ratio_moves_with_the_weights_while_the_recipe_stays(make_model, vocabulary, ready, make_rollouts):
    """Stale recipes are correct behavior: the table moves, ids and weights do not."""
    model = make_model(dtype=torch.float64)
    strategy = ready(neighbor_mix(1.0, 3), model, vocabulary)
    rollouts = make_rollouts(model, strategy)
    before = [value.clone() for value in (rollouts.steps.mix_ids, rollouts.steps.mix_weights)]
    with torch.no_grad():
        model.table.mul_(1.05)
    strategy.prepare(model.table.detach(), 100)
    assert gap(model, strategy, rollouts).max() > 1e-4
    assert all(
        torch.equal(a, b) for a, b in zip(before, (rollouts.steps.mix_ids, rollouts.steps.mix_weights), strict=True)
    )

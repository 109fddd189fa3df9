"""What a loss is given: what it asks for, computed only then, and entropy by replay where an engine does not tell it."""

import functools
import itertools
from dataclasses import replace

import pytest
import torch
from strategies import neighbor_mix
from updates import Still, Watched, fit, make

from ngrpo.algorithm import advantages, losses, selections
from ngrpo.exploration.annealed_temperature import AnnealedTemperature
from ngrpo.exploration.scores import entropy
from ngrpo.exploration.stht import SoftTokens
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.engines.transformers import TransformersEngine
from ngrpo.training import policy as policies
from ngrpo.training.replay import replay, replay_in_micro_batches, states

COMPUTED = ("entropy", "top_log_probs", "hidden")
SUBSETS = [names for size in range(4) for names in itertools.combinations(COMPUTED, size)]


def watching(seen: list, *names: str):
    """A loss that declares `names` and keeps what it is given."""

    @losses.asks(*names)
    def loss(inputs, *, factor=1.0):
        seen.append(inputs)
        return losses.reinforce(inputs)

    return functools.partial(loss, factor=2.0)


@pytest.fixture
def asked_of_replay(monkeypatch) -> list[dict]:
    """What each replay with a gradient was asked for besides log-probabilities."""
    asked = []

    def asking(*given, **wanted):
        asked.append(wanted)
        return replay(*given, **wanted)

    monkeypatch.setattr(policies, "replay", asking)
    return asked


@pytest.mark.parametrize("names", SUBSETS, ids=lambda names: "+".join(names) or "nothing")
def test_a_loss_gets_exactly_what_it_declares(names, asked_of_replay):
    seen = []
    parts = fit(make(kind=Watched, dtype="float32", loss=watching(seen, *names), top_k=3, micro_batch_rows=5))
    assert len(seen) == 4  # micro-batches of 16 rows
    for inputs, asked in zip(seen, asked_of_replay, strict=True):
        assert {name for name in COMPUTED if getattr(inputs, name) is not None} == set(names)
        assert (inputs.greedy is not None) == ("top_log_probs" in names), "both are read off the likeliest tokens"
        assert inputs.selected is None
        wanted = {"entropy": "entropy" in names, "top_k": 3 * ("top_log_probs" in names), "hidden": "hidden" in names}
        assert asked == wanted | {"tempered": True}
        shape = inputs.log_probs.shape
        assert inputs.old.shape == inputs.advantages.shape == inputs.mask.shape == shape
        assert inputs.log_probs.requires_grad and not inputs.old.requires_grad
        widths = {"entropy": (), "top_log_probs": (3,), "hidden": (parts.policy.model.table.shape[1],)}
        for name in names:
            assert getattr(inputs, name).shape == (*shape, *widths[name]) and getattr(inputs, name).requires_grad


def test_an_entropy_bonus_has_the_entropy_computed_for_any_loss(asked_of_replay):
    seen = []
    fit(make(kind=Watched, dtype="float32", loss=watching(seen), entropy_bonus=0.1))
    wanted = {"entropy": True, "top_k": 0, "hidden": False, "tempered": True}
    assert seen[0].entropy is not None and asked_of_replay == [wanted]


STRATEGIES = {
    "token_sampling": lambda: TokenSampling(0.8),
    "neighbor_mix": lambda: neighbor_mix(0.5, 3),
    "stht": lambda: SoftTokens(0.5, 0.33, think_limit=4),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_hidden_states_are_those_that_each_step_was_drawn_from(name, make_model, make_vocabulary, ready, make_rollouts):
    """Against the stock model, row by row, given the vectors that the record rebuilds."""
    model, stock = make_model(dtype=torch.float64), make_model(dtype=torch.float64).model
    stock.set_attn_implementation("sdpa")
    strategy = ready(STRATEGIES[name](), model, make_vocabulary())
    rollouts, table = make_rollouts(model, strategy), model.table.detach()
    hidden = replay(model, strategy, rollouts, hidden=True).hidden
    assert (
        hidden is not None
        and hidden.shape == (*rollouts.mask.shape, table.shape[1])
        and not hidden[~rollouts.loss_mask].any()
    )
    row, time, flat = states(model, strategy, rollouts, table)
    assert torch.equal(hidden[row, time], flat)
    fed = strategy.embed(rollouts.steps, table, rollouts.draws)
    for index, length in enumerate(rollouts.lengths.tolist()):
        prompt, counts = rollouts.prompts[index][rollouts.prompt_mask[index]], rollouts.loss_mask[index, :length]
        own = torch.cat((table[prompt], fed[index, : length - 1]))
        expected = stock.base_model(inputs_embeds=own[None]).last_hidden_state[0, len(prompt) - 1 :]
        torch.testing.assert_close(hidden[index, :length][counts], expected[counts], rtol=0, atol=1e-9)


def test_a_loss_of_hidden_states_teaches_the_model(make_model, make_vocabulary, ready, make_rollouts):
    model = make_model(dtype=torch.float64)
    strategy = ready(TokenSampling(), model, make_vocabulary())
    rollouts = make_rollouts(model, strategy)
    hidden = replay(model, strategy, rollouts, hidden=True).hidden
    assert hidden is not None
    ours = torch.autograd.grad(hidden.square().sum(), list(model.parameters()), allow_unused=True)
    flat = states(model, strategy, rollouts, model.table)[2].square().sum()
    theirs = torch.autograd.grad(flat, list(model.parameters()), allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert any(a is not None and a.any() for a in ours)


def test_what_else_is_asked_for_changes_no_log_probability(
    make_model, strategy_name, make_strategy, make_vocabulary, make_rollouts
):
    model = make_model()
    strategy = make_strategy(strategy_name, model, make_vocabulary())
    rollouts = make_rollouts(model, strategy)
    alone, everything = (
        replay(model, strategy, rollouts),
        replay(model, strategy, rollouts, entropy=True, top_k=3, hidden=True),
    )
    assert torch.equal(alone.log_probs, everything.log_probs)
    assert alone[1:] == (None,) * 4 and all(value is not None for value in everything)


# --- an engine that does not tell the entropy ---------------------------------------------------------------------------


class Silent(TransformersEngine):
    """An engine without entropies."""

    def generate(self, *given):
        return replace(super().generate(*given), entropy=None)


USES = {
    "a selection": {"select": functools.partial(selections.high_entropy, share=0.3), "loss": selections.selected_only},
    "advantages of tokens": {"token_advantage": advantages.entropy_shaped},
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("strategy", ["token_sampling", "neighbor_mix"])
def test_where_an_engine_is_silent_the_entropy_comes_from_a_replay(use, strategy):
    told, untold = (make(STRATEGIES[strategy](), micro_batch_rows=5, **USES[use]) for _ in range(2))
    untold = replace(untold, sampler=replace(untold.sampler, engine=Silent()))
    fit(told)
    fit(untold)
    assert untold.outcomes[0].answers.rollouts.entropy is None
    difference = (untold.gradients[0] - told.gradients[0]).norm()
    assert told.gradients[0].norm() > 0 and difference <= 1e-5 * told.gradients[0].norm()


def test_a_selection_sees_the_replayed_entropy_within_1e_5():
    seen = []

    def select(tokens):
        seen.append(tokens)
        return selections.high_entropy(tokens, share=0.3)

    for engine in (TransformersEngine(), Silent()):
        parts = make(neighbor_mix(0.5, 3), kind=Still, dtype="float32", select=select, loss=selections.selected_only)
        fit(replace(parts, sampler=replace(parts.sampler, engine=engine)))
    told, untold = seen
    torch.testing.assert_close(untold.entropy[told.mask], told.entropy[told.mask], rtol=0, atol=1e-5)
    assert torch.equal(selections.high_entropy(untold, share=0.3), selections.high_entropy(told, share=0.3))


TEMPERED = {
    "token_sampling": lambda: TokenSampling(0.7),
    "neighbor_mix": lambda: neighbor_mix(0.5, 3, temperature=1.3, top_p=0.9),
    "annealed": lambda: AnnealedTemperature(1.2, 0.3, 5.0, temperature=0.9),
}


def by_hand(parts, temperature) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropy (B, T) and log-probabilities (B, T, 3) of the likeliest tokens by the stock model, a row at a time."""
    rollouts, policy = parts.outcomes[0].answers.rollouts, parts.policy
    fed = policy.strategy.embed(rollouts.steps, policy.model.table.detach(), rollouts.draws)
    entropy, top = torch.zeros(rollouts.mask.shape).double(), torch.zeros(*rollouts.mask.shape, 3).double()
    for row, length in enumerate(rollouts.lengths.tolist()):
        prompt = rollouts.prompts[row][rollouts.prompt_mask[row]]
        own = torch.cat((policy.model.table[prompt], fed[row, : length - 1]))
        logits = policy.model.model(inputs_embeds=own[None]).logits[0, len(prompt) - 1 :].detach()
        log_p = (logits / temperature(rollouts, row)).log_softmax(dim=-1)
        entropy[row, :length] = -(log_p.exp() * log_p).sum(dim=-1)
        top[row, :length] = log_p.topk(3).values
    return entropy, top


@pytest.mark.parametrize("name", TEMPERED)
@pytest.mark.parametrize("tempered", [True, False])
def test_selections_shaping_bonus_and_likeliest_tokens_have_the_temperature_of_the_ratio(name, tempered):
    """Against softmax(logits / temperature) of the stock model in float64; the old way is that of the logits."""
    seen, given = [], []

    def select(tokens):
        seen.append(tokens)
        return selections.high_entropy(tokens, share=0.3)

    def shape(tokens):
        seen.append(tokens.entropy)
        return tokens.advantages

    changes = {"select": select, "token_advantage": shape, "tempered": tempered, "top_k": 3}
    loss = watching(given, "entropy", "top_log_probs")
    parts = fit(make(TEMPERED[name](), kind=Still, loss=loss, micro_batch_rows=16, **changes))
    scale, taus = parts.outcomes[0].answers.rollouts.steps.scale, {"token_sampling": 0.7, "neighbor_mix": 1.3}

    def temperature(rollouts, row):
        if not tempered or name in taus:
            return taus[name] if tempered else 1.0
        assert scale is not None
        return scale[row, : int(rollouts.lengths[row]), None].double()

    entropy, top = by_hand(parts, temperature)
    shaped, tokens = seen
    torch.testing.assert_close(shaped[tokens.mask].double(), entropy[tokens.mask], rtol=0, atol=1e-6)
    assert torch.equal(tokens.entropy, shaped)
    order = policies.cut(parts.outcomes[0].answers.rollouts, 16)[0]
    counts = given[0].mask
    torch.testing.assert_close(given[0].entropy[counts], entropy[order][counts], rtol=0, atol=1e-9)
    torch.testing.assert_close(given[0].top_log_probs[counts], top[order][counts], rtol=0, atol=1e-9)
    told = parts.outcomes[0].answers.rollouts.entropy
    assert told is not None
    same = (told[tokens.mask] - shaped[tokens.mask]).abs().max() < 1e-6
    assert same != tempered, "the engine's figure stays that of the logits"


def test_a_temperature_changes_which_tokens_are_selected():
    """On hand-made logits: at a low temperature a flat pair beats a broad tail, at a high one it is the reverse."""
    pair, tail = torch.tensor([0.0, 0.0, -9.0, -9.0, -9.0]), torch.tensor([0.0, -1.2, -1.2, -1.2, -1.2])
    values = {tau: [entropy((logits / tau).double()).item() for logits in (pair, tail)] for tau in (0.3, 2.0)}
    assert values[0.3][0] > values[0.3][1] and values[2.0][0] < values[2.0][1]


def test_no_entropy_is_replayed_where_nobody_needs_it(monkeypatch):
    """Neither with an engine that tells it, nor for an algorithm that does not look at it."""
    asked = []

    def asking(*given, **wanted):
        asked.append(wanted["entropy"])
        return replay_in_micro_batches(*given, **wanted)

    monkeypatch.setattr(policies, "replay_in_micro_batches", asking)
    for engine, uses in ((TransformersEngine(), USES["a selection"]), (Silent(), {"inner_epochs": 2})):
        parts = make(kind=Watched, dtype="float32", **uses)
        fit(replace(parts, sampler=replace(parts.sampler, engine=engine)))
    assert asked == [False, False]


def test_entropies_in_micro_batches_are_those_of_the_rollout(
    make_model, make_vocabulary, strategy_name, make_strategy, make_rollouts
):
    model = make_model(dtype=torch.float64)
    strategy = make_strategy(strategy_name, model, make_vocabulary())
    rollouts = make_rollouts(model, strategy)
    for rows in (1, 5, 100):
        with strategy.perturbed(model):
            found = replay_in_micro_batches(model, strategy, rollouts, rows, entropy=True)
        counts = rollouts.loss_mask
        assert found.entropy is not None
        torch.testing.assert_close(found.entropy[counts].double(), rollouts.entropy[counts].double(), rtol=0, atol=1e-9)
        assert not found.entropy[~counts].any() and found.hidden is found.greedy is found.top_log_probs is None

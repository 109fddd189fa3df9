"""Each supported architecture against the stock forward of transformers in eager attention, one whole row at a time:
what the engine draws, what replay says of it, its gradients, what is saved; rows share prompts and differ in length."""

import copy

import pytest
import torch
from architectures import ARCHITECTURES, config_of, stock
from strategies import neighbor_mix
from thinning import thinned
from torch.nn import functional as F

from ngrpo.exploration.rollout_dropout import RolloutDropout
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.models import attention
from ngrpo.models.causal import CausalModel
from ngrpo.models.loading import load
from ngrpo.rollout.records import GAUSSIAN, Rollouts, Vocabulary
from ngrpo.training import replay as replaying
from ngrpo.training.replay import replay

EXACT = 2e-6  # float64 weights; the stock attention takes its softmax, and norms their means, in float32
VOCABULARY = Vocabulary(59, (0, 1), (5, 7, 11, 17, 23, 31))  # stops that come up: rows end at different lengths
STRATEGIES = {
    "tokens": TokenSampling,
    "mixtures": lambda: neighbor_mix(0.5, 3),
    "dropped entries": lambda: RolloutDropout(0.2),
}

each_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
each_strategy = pytest.mark.parametrize("kind", STRATEGIES)


# What all prompts begin with is held once: as long as it must be for that, and longer than any window.
PREFIXES = {"alone": (), "after examples": tuple(3 + place % 50 for place in range(attention.SHARED_FROM))}
each_prefix = pytest.mark.parametrize("prefix", PREFIXES)


@pytest.fixture
def drawn(name, kind, prefix, ready, make_rollouts):
    """A stock model, the same one as ours, a strategy and rollouts of it by our engine."""
    theirs = stock(config_of(name))
    ours = CausalModel(copy.deepcopy(theirs))
    strategy = ready(STRATEGIES[kind](), ours, VOCABULARY)
    rollouts = make_rollouts(ours, strategy, prompts=6, group=3, new_tokens=14, prefix=PREFIXES[prefix])
    assert len(rollouts.lengths.unique()) >= 2 and rollouts.steps.explored.any() == (kind == "mixtures")
    return theirs, ours, strategy, rollouts


def log_probs(model, rollouts: Rollouts, masks: torch.Tensor | None) -> torch.Tensor:
    """(B, T) of the text tokens by the stock model, each row by itself; it is fed what its own embedding makes."""
    table = model.get_input_embeddings()(torch.arange(61))
    found = torch.zeros_like(rollouts.log_probs)
    for row, (start, length) in enumerate(zip(rollouts.prompt_mask.sum(dim=1), rollouts.lengths, strict=True)):
        steps = rollouts.steps[row, :length]
        answer = F.embedding(steps.tokens, table)
        if steps.mix_ids is not None and steps.mix_weights is not None:
            mixed = (F.embedding(steps.mix_ids, table) * steps.mix_weights[..., None]).sum(dim=-2)
            answer = torch.where(steps.explored[:, None], mixed, answer)
        fed = torch.cat((F.embedding(rollouts.prompts[row, -start:], table), answer[:-1]))
        # Granite scales within its backbone: there, vectors are fed before that.
        with thinned(model, masks, row, int(start)):
            logits = model(inputs_embeds=fed[None], use_cache=False).logits[0, start - 1 :]
        found[row, :length] = logits.log_softmax(dim=-1).gather(1, steps.tokens[:, None]).squeeze(1)
    return found


@each_architecture
@each_prefix
@each_strategy
def test_the_engine_and_replay_say_what_the_stock_model_says(drawn):
    theirs, ours, strategy, rollouts = drawn
    counted, masks = rollouts.mask, strategy.masks(rollouts.keys, *ours.attended)
    with torch.no_grad():
        expected = log_probs(theirs, rollouts, masks)[counted]
        torch.testing.assert_close(rollouts.log_probs[counted].double(), expected, rtol=0, atol=EXACT)
        replayed = replay(ours, strategy, rollouts).log_probs[counted]
    torch.testing.assert_close(replayed.double(), expected, rtol=0, atol=EXACT)


@each_architecture
@each_prefix
@each_strategy
def test_gradients_of_all_parameters_are_those_of_the_stock_model(drawn, monkeypatch):
    theirs, ours, strategy, rollouts = drawn
    monkeypatch.setattr(replaying, "chunk_tokens", lambda vocabulary, device: 7)
    weights = rollouts.draws.token * rollouts.loss_mask
    (log_probs(theirs, rollouts, strategy.masks(rollouts.keys, *ours.attended)) * weights).sum().backward()
    (replay(ours, strategy, rollouts).log_probs * weights).sum().backward()
    named = dict(ours.model.named_parameters())
    for parameter_name, parameter in theirs.named_parameters():
        scale = float(parameter.grad.abs().max())
        assert scale > 1e-6, f"{parameter_name} does not matter here"
        gap = float((named[parameter_name].grad - parameter.grad).abs().max())
        assert gap <= 5e-6 * max(scale, 1.0), f"{parameter_name}: {gap:.2g} of {scale:.2g}"


@each_architecture
def test_a_model_that_is_saved_and_loaded_goes_on_as_it_was(name, ready, make_rollouts, tmp_path):
    ours = CausalModel(stock(config_of(name), torch.float32))
    rollouts = make_rollouts(ours, ready(TokenSampling(), ours, VOCABULARY))
    ours.save(tmp_path)
    resumed = CausalModel(stock(config_of(name), torch.float32, seed=1))
    resumed.load_learned(ours.learned())
    for again in (load(str(tmp_path)), resumed):
        assert all(torch.equal(value, again.learned()[name]) for name, value in ours.learned().items())
        found = make_rollouts(again, ready(TokenSampling(), again, VOCABULARY))
        assert torch.equal(found.steps.tokens, rollouts.steps.tokens)
        # Weights read from a file may lie elsewhere in memory, and matrix products round differently there.
        torch.testing.assert_close(found.log_probs, rollouts.log_probs, rtol=0, atol=1e-5)


def test_every_strategy_is_replayed_over_scaled_rows_in_windows(strategy_name, make_strategy, make_rollouts):
    model = CausalModel(stock(config_of("gemma3")))
    strategy = make_strategy(strategy_name, model, VOCABULARY)
    rollouts = make_rollouts(model, strategy, prompts=6, group=3, new_tokens=14)
    with strategy.perturbed(model):
        gap = (replay(model, strategy, rollouts).log_probs.detach() - rollouts.log_probs).abs() * rollouts.loss_mask
    width = model.head.shape[1]
    tolerance = torch.where(rollouts.steps.role == GAUSSIAN, 1e-5 * width**0.5, 1e-5)
    assert (gap <= tolerance).all(), f"{float(gap.max()):.2g}"


def test_a_window_that_no_text_fills_costs_nothing(ready, make_rollouts):
    wide, full = (CausalModel(stock(config_of("mistral", sliding_window=w), torch.float32)) for w in (21, None))
    drawn = [make_rollouts(m, ready(TokenSampling(), m, VOCABULARY), new_tokens=14) for m in (wide, full)]
    assert torch.equal(drawn[0].log_probs, drawn[1].log_probs)
    kept = [
        replay(model, TokenSampling(), rollouts).log_probs for model, rollouts in zip((wide, full), drawn, strict=True)
    ]
    assert torch.equal(*kept)

"""The engine behind its seam: the verbs that callers know, and what they are told before anything is loaded."""

from dataclasses import fields

import pytest
import torch
from strategies import neighbor_ids, neighbor_mix

from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.engines.transformers import TransformersEngine, generate
from ngrpo.rollout.records import DecodeStep


@pytest.fixture
def engine() -> TransformersEngine:
    return TransformersEngine()


def same(ours, theirs) -> bool:
    return ours is theirs is None or torch.equal(ours, theirs)


def test_generate_is_the_function_of_that_name(
    engine, strategy_name, make_strategy, make_model, make_vocabulary, make_prompts, make_keys
):
    model = make_model()
    strategy = make_strategy(strategy_name, model, make_vocabulary())
    engine.sync(model, 0, strategy)
    prompts, mask = make_prompts(4)
    ours = engine.generate(strategy, prompts, mask, make_keys(12), 10)
    theirs = generate(model, strategy, prompts, mask, make_keys(12), 10)
    assert all(same(getattr(ours.steps, f.name), getattr(theirs.steps, f.name)) for f in fields(DecodeStep))
    for name in ("prompts", "prompt_mask", "mask", "log_probs", "entropy", "keys"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert ours.group_size == theirs.group_size == 3


def test_sync_comes_before_generate(engine, setting, ready, make_prompts, make_keys):
    model, vocabulary = setting
    strategy = ready(TokenSampling(), model, vocabulary)
    with pytest.raises(RuntimeError, match="sync comes before generate"):
        engine.generate(strategy, *make_prompts(2), make_keys(2), 4)
    engine.sync(model, 0)
    engine.generate(strategy, *make_prompts(2), make_keys(2), 4)
    engine.sleep()
    engine.sync(model, 1)
    engine.generate(strategy, *make_prompts(2), make_keys(2), 4)
    engine.close()
    with pytest.raises(RuntimeError, match="sync comes before generate"):
        engine.generate(strategy, *make_prompts(2), make_keys(2), 4)


def test_sync_prepares_every_strategy_for_the_weights_and_tells_their_figures(engine, make_model, make_vocabulary):
    model, vocabulary = make_model(), make_vocabulary()
    mixing, released = neighbor_mix(0.5, 3, refresh_every=1), neighbor_mix(0.5, 3, compat="released_sglang")
    for strategy in (mixing, released):
        strategy.bind(vocabulary, model.table.detach())
    assert engine.sync(model, 0, mixing, released) == {}
    twins = [neighbor_mix(0.5, 3), neighbor_mix(0.5, 3)]
    for strategy, table in zip(twins, (model.table.detach(), model.head.detach()), strict=True):
        strategy.bind(vocabulary, table)
        strategy.prepare(table, 0)
    assert torch.equal(neighbor_ids(mixing), neighbor_ids(twins[0]))
    assert torch.equal(neighbor_ids(released), neighbor_ids(twins[1])), "those of the output embedding"
    assert set(engine.sync(model, 1, mixing, released)) == {"neighbor_drift"}


def test_from_a_sync_on_answers_are_those_of_the_new_weights(
    engine, make_model, make_vocabulary, make_prompts, make_keys
):
    first, second = make_model(), make_model(seed=1)
    prompts, mask = make_prompts(4)
    strategy, asked = TokenSampling(), (prompts, mask, make_keys(12), 10)
    strategy.bind(make_vocabulary(), first.table.detach())
    for model in (first, second, first):
        engine.sync(model, 0, strategy)
        assert torch.equal(engine.generate(strategy, *asked).log_probs, generate(model, strategy, *asked).log_probs)


@pytest.mark.parametrize("path", ["ngrpo:tiny", "Qwen/Qwen3-1.7B-Base"])
def test_the_bundled_model_and_what_is_not_here_yet_are_not_refused(engine, path):
    assert engine.refuses(neighbor_mix(0.5, 3), path) is None

"""The engine behind its seam: the verbs that callers know, and what they are told before anything is loaded."""

import json
from dataclasses import fields

import pytest
import torch
from places import FAMILIES
from strategies import neighbor_ids, neighbor_mix
from transformers import MistralConfig

from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.models.causal import CausalModel
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


WINDOWS = {
    "mistral": (MistralConfig(sliding_window=4).to_dict(), ["sliding_attention"]),
    "mistral without": (MistralConfig(sliding_window=None).to_dict(), []),
    "layers": ({"layer_types": ["full_attention", "sliding_attention", "chunked_attention"]}, ["chunked", "sliding"]),
    "layers without": ({"layer_types": ["full_attention"] * 2}, []),
    "qwen2 off": ({"sliding_window": 4096, "use_sliding_window": False}, []),
    "qwen2 on": ({"sliding_window": 4096, "use_sliding_window": True}, ["sliding_attention"]),
    **{name: (config().to_dict(), []) for name, (config, _) in FAMILIES.items()},
}


@pytest.mark.parametrize("name", WINDOWS)
def test_a_model_whose_layers_do_not_see_everything_is_refused_before_it_is_loaded(engine, name, tmp_path):
    settings, kinds = WINDOWS[name]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    told = engine.refuses(TokenSampling(), str(tmp_path))
    if kinds:
        assert told and "\n" not in told and "only full attention can be replayed" in told
        assert all(kind in told for kind in kinds)
    else:
        assert told is None


@pytest.mark.parametrize("path", ["ngrpo:tiny", "Qwen/Qwen3-1.7B-Base"])
def test_the_bundled_model_and_what_is_not_here_yet_are_not_refused(engine, path):
    assert engine.refuses(neighbor_mix(0.5, 3), path) is None


def test_what_is_refused_before_loading_is_refused_after_it(engine, tmp_path):
    """The two looks, one at a file and one at a model, agree."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
    for name, (config_class, model_class) in FAMILIES.items():
        for window in ({}, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}):
            if window and name == "llama":
                continue  # it knows no window
            config = config_class(hidden_size=32, intermediate_size=48, head_dim=8, **sizes, **window)
            config.save_pretrained(tmp_path / f"{name}{len(window)}")
            told = engine.refuses(TokenSampling(), str(tmp_path / f"{name}{len(window)}"))
            assert (told is not None) == bool(window)
            if window:
                with pytest.raises(ValueError, match="only full attention can be replayed"):
                    CausalModel(model_class(config).eval())
            else:
                CausalModel(model_class(config).eval())

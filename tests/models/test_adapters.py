"""Adapters, gradient checkpointing and what of the checkpoint may act: over every architecture, tied and untied."""

import copy

import peft
import pytest
import torch
from strategies import neighbor_mix
from transformers import AutoModelForCausalLM

from ngrpo.exploration.mixing import Mixing
from ngrpo.models.causal import CausalModel
from ngrpo.models.loading import load_tokenizer, vocabulary
from ngrpo.rollout.engines.transformers import generate
from ngrpo.rollout.records import Vocabulary
from ngrpo.training.reference import Reference
from ngrpo.training.replay import replay

FAMILIES = [(family, tied) for family in ("qwen2", "qwen3", "llama") for tied in (False, True)]
LORA = {"r": 4, "alpha": 8, "target_modules": "all-linear"}
families = pytest.mark.parametrize(("family", "tied"), FAMILIES)


def mixing(table: torch.Tensor) -> Mixing:
    strategy = neighbor_mix(k=3, rate=0.5)
    strategy.bind(Vocabulary(60, (0,), (1,)), table.detach())
    strategy.prepare(table.detach(), 0)
    return strategy


def adapted(model: CausalModel, scale: float = 0.2, recompute: bool = False) -> CausalModel:
    """The model with adapters that do something."""
    model = CausalModel(model.model, model.precision, LORA, recompute)
    generator = torch.Generator().manual_seed(1)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def sampled(model, strategy, make_prompts, make_keys):
    prompts, mask = make_prompts(4)
    return generate(model, strategy, prompts, mask, make_keys(8), 16)


@families
@pytest.mark.parametrize(("precision", "mean"), [("float32", 1e-6), ("bfloat16", 2e-2)])
def test_rollout_and_replay_agree(family, tied, precision, mean, make_model, make_prompts, make_keys):
    model = adapted(make_model(family, tied=tied, precision=precision))
    strategy = mixing(model.table)
    rollouts = sampled(model, strategy, make_prompts, make_keys)
    with torch.no_grad():
        gap = (replay(model, strategy, rollouts).log_probs - rollouts.log_probs).abs()
    assert rollouts.steps.explored.any() and gap.mean() <= mean
    assert precision == "bfloat16" or gap.max() <= 1e-5


@families
def test_reference_is_the_model_without_adapters(family, tied, make_model, make_prompts, make_keys):
    before, model = make_model(family, tied=tied), adapted(make_model(family, tied=tied))
    strategy = mixing(model.table)
    rollouts = sampled(model, strategy, make_prompts, make_keys)
    theirs = Reference(before).log_probs(strategy, rollouts, 8)
    assert torch.equal(Reference(model).log_probs(strategy, rollouts, 8), theirs)
    with torch.no_grad():
        assert (replay(model, strategy, rollouts).log_probs - theirs).abs().max() > 0.01


@families
def test_saved_model_has_its_adapters_merged_and_beside_it(family, tied, make_model, tmp_path):
    before, model = make_model(family, tied=tied), adapted(make_model(family, tied=tied))
    untouched = copy.deepcopy(model.learned())
    model.save(tmp_path)
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        ours = model.model(input_ids=ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path)(input_ids=ids).logits
        apart = peft.PeftModel.from_pretrained(before.model, str(tmp_path / "adapter"))(input_ids=ids).logits
    torch.testing.assert_close(merged, ours, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(apart, ours, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(value, model.learned()[name]) for name, value in untouched.items())
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_only_adapters_learn_and_are_kept(make_model):
    model = adapted(make_model())
    kept = model.learned()
    assert kept and all(".lora_" in name for name in kept) and not model.table.requires_grad
    other = CausalModel(make_model().model, lora=LORA)
    other.load_learned(kept)
    assert all(torch.equal(value, other.learned()[name]) for name, value in kept.items())
    with pytest.raises(ValueError, match="fresh=true"):
        make_model().load_learned(kept)


def test_table_and_head_take_no_adapters(make_model):
    with pytest.raises(ValueError, match="target_modules"):
        CausalModel(make_model().model, lora={**LORA, "target_modules": ["q_proj", "embed_tokens"]})


@families
@pytest.mark.parametrize("lora", [False, True])
def test_recomputed_layers_give_equal_gradients(family, tied, lora, make_model, make_prompts, make_keys):
    gradients, saved = [], []
    for recompute in (False, True):
        model = make_model(family, tied=tied)
        model = adapted(model, recompute=recompute) if lora else CausalModel(model.model, recompute=recompute)
        strategy = mixing(model.table)
        rollouts = sampled(model, strategy, make_prompts, make_keys)
        held = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, held=held: held.append(t.numel()) or t, lambda t: t):
            loss = replay(model, strategy, rollouts).log_probs.sum()
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        saved.append(sum(held))
    assert saved[1] < saved[0] / 2
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_generation_settings_do_not_act_but_its_stops_do(make_model, make_prompts, make_keys, tmp_path):
    tokenizer, model = load_tokenizer("ngrpo:tiny"), make_model()
    plain = vocabulary(tokenizer, model, None, "")
    strategy = mixing(model.table)
    before = sampled(model, strategy, make_prompts, make_keys)
    settings = {
        "temperature": 0.01,
        "top_k": 1,
        "repetition_penalty": 9.0,
        "do_sample": True,
        "eos_token_id": [1, 7, 9],
    }
    for name, value in settings.items():
        setattr(model.model.generation_config, name, value)
    after = sampled(model, strategy, make_prompts, make_keys)
    assert torch.equal(before.steps.tokens, after.steps.tokens) and torch.equal(before.log_probs, after.log_probs)
    assert plain.stops == (1,) and vocabulary(tokenizer, model, None, "").stops == (1, 7, 9)


def test_every_stop_ends_an_answer(make_model, make_prompts, make_keys):
    model, stops = make_model(), (1, 7, 9, 20, 33)
    strategy = mixing(model.table)
    strategy.bind(Vocabulary(60, (0,), stops), model.table.detach())
    strategy.prepare(model.table.detach(), 0)
    prompts, mask = make_prompts(8)
    rollouts = generate(model, strategy, prompts, mask, make_keys(64), 40)
    last = rollouts.steps.tokens.gather(1, rollouts.lengths[:, None] - 1).squeeze(1)
    ended = torch.isin(last, torch.tensor(stops))
    assert len(set(last[ended].tolist())) > 2 and (rollouts.lengths[~ended] == 40).all()
    inner = torch.arange(rollouts.mask.shape[1])[None] < rollouts.lengths[:, None] - 1
    assert not torch.isin(rollouts.steps.tokens[inner], torch.tensor(stops)).any()

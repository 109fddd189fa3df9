"""Plans: parameters counted exactly, memory within 15 % of what a run takes, and none of it needs weights or data."""

from pathlib import Path

import pytest
import torch
import warm
import yaml
from architectures import ARCHITECTURES, config_of, stock

from ngrpo.models import loading
from ngrpo.models.sizes import Sizes, architecture, needs

REPOSITORY = Path(__file__).resolve().parents[2]
PUBLISHED = {  # parameters as the model cards state them, in millions
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1777,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": 7616,
    "Qwen/Qwen3-1.7B-Base": 1721,
    "meta-llama/Llama-3.2-1B": 1236,
    "Qwen/Qwen2.5-Math-7B": 7616,
    "meta-llama/Llama-3.2-3B-Instruct": 3213,
}
SIZES = Sizes(rows=8, prompts=2, prompt_tokens=20, new_tokens=30, micro_rows=4)


@pytest.mark.parametrize("path", PUBLISHED)
def test_known_checkpoints_have_their_published_size(path):
    assert round(needs(architecture(path), SIZES).parameters / 1e6) == PUBLISHED[path]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "conf" / "model").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_backbone_can_be_planned(path):
    named = yaml.safe_load(path.read_text())["model"]["path"]
    if named != "???":
        assert needs(architecture(named), SIZES).peak > 0


def test_an_unknown_checkpoint_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(
        loading.AutoConfig, "from_pretrained", lambda *a, **k: (_ for _ in ()).throw(OSError("offline"))
    )
    with pytest.raises(ValueError, match="nobody/nothing"):
        architecture("nobody/nothing")


def test_adapters_leave_gradients_and_moments_of_the_rest_out():
    config = architecture("Qwen/Qwen3-1.7B-Base")
    lora = {"r": 16, "alpha": 32, "target_modules": "all-linear"}
    whole = needs(config, Sizes(**{**vars(SIZES), "copies": 1}))
    small = needs(config, Sizes(**{**vars(SIZES), "lora": lora}))
    assert small.trained < whole.trained / 50 and small.disk["checkpoints"] < whole.disk["checkpoints"] / 50
    assert small.rollout["gradients"] < whole.rollout["gradients"] / 50
    kept = [plan.resident["weights"] + plan.resident["reference"] for plan in (small, whole)]
    assert kept[0] < 0.52 * kept[1]


def test_an_engine_of_its_own_has_weights_and_a_cache_all_the_time_and_ours_is_not_counted():
    config = architecture("ngrpo:tiny")
    ours, theirs = (needs(config, Sizes(**{**vars(SIZES), "engine_cache": cache})) for cache in (0, 2**30))
    assert theirs.resident["engine"] == ours.parameters * 4 + 2**30 and not ours.resident["engine"]
    assert ours.rollout["KV cache"] > 0 and not theirs.rollout["KV cache"]
    halved = needs(config, Sizes(**{**vars(SIZES), "engine_cache": 2**30, "engine_dtype": "bfloat16"}))
    assert theirs.resident["engine"] - halved.resident["engine"] == ours.parameters * 2


@pytest.mark.parametrize(("name", "recompute"), [*((name, False) for name in ARCHITECTURES), ("llama 3", True)])
def test_parameters_are_counted_and_activations_are_what_autograd_keeps(name, recompute):
    from ngrpo.models.causal import CausalModel

    model = CausalModel(stock(config_of(name), torch.float32), recompute=recompute)
    config, rows, length = model.model.config, 4, 32
    held: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return value

    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or note(t), lambda t: t):
        fed = torch.nn.functional.embedding(torch.randint(60, (rows, length)), model.table.detach()).requires_grad_()
        model.hidden(fed, torch.arange(length).expand(rows, length))
    sizes = Sizes(rows, rows, 1, length - 1, rows, recompute=recompute)
    plan = needs(config, sizes)
    stated = plan.update["activations"]
    scaled = config.vocab_size * config.hidden_size * 4 * ("gemma" in name)  # bytes, and as many of its gradient
    assert (plan.rollout["scaled table"], plan.update["scaled table"]) == (scaled, 2 * scaled)
    assert plan.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert plan.rollout["KV cache"] == rows * length * 4 * sum(layer_width(layer) for layer in model.model.model.layers)
    if recompute:  # what one layer holds while it is recomputed is stated too, and not yet held here
        assert 0.15 * stated < sum(held.values()) < stated
    else:
        assert sum(held.values()) == pytest.approx(stated, rel=0.15)


def layer_width(layer) -> int:
    """Keys and values of a token, from the shapes of the projections that make them."""
    own = layer.self_attn
    return (
        own.qkv_proj.out_features - own.o_proj.in_features if hasattr(own, "qkv_proj") else 2 * own.k_proj.out_features
    )


def command(*overrides: str) -> str:
    ended = warm.run("plan.py", *overrides)
    assert ended.returncode == ("NOT enough" in ended.stdout), ended.stderr
    return ended.stdout


def test_the_paper_s_run_is_planned_without_weights():
    said = command("experiment=paper/n_grpo_1_5b")
    assert "1,777,088,000" in said and "KV cache" in said and "enough" in said
    assert f"{64 * 4 // 8 * 8192:,}" in said


def test_a_rank_keeps_its_part_and_has_all_weights_in_the_rollout():
    config = architecture("Qwen/Qwen3-1.7B-Base")
    whole, part = (needs(config, Sizes(**{**vars(SIZES), "ranks": ranks})) for ranks in (1, 4))
    assert sum(part.resident.values()) * 4 == sum(whole.resident.values())
    assert part.rollout["gathered"] == part.parameters * 4 and not whole.rollout["gathered"]
    assert part.peak < whole.peak and part.disk == whole.disk


def test_what_a_strategy_keeps_of_weights_and_masks_is_counted():
    config = architecture("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B")
    plain, noisy, masked = (
        needs(config, Sizes(256, 32, 512, 2048, 4, acts_on=what)) for what in ("", "weights", "attention")
    )
    assert (
        sum(noisy.rollout.values()) - sum(plain.rollout.values()) == 4 * plain.parameters
        and noisy.update == plain.update
    )
    assert masked.update["activations"] - plain.update["activations"] == 28 * (512 + 4 * 2048) * 1536 * 4


def test_layers_are_put_together_in_the_dtype_of_the_matmuls_and_their_ends_as_they_are():
    config = architecture("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B")
    plan = needs(config, Sizes(**{**vars(SIZES), "ranks": 8, "precision": "bfloat16", "copies": 1}))
    ends = 2 * 152064 * 3584  # table and head
    assert plan.rollout["gathered"] == 2 * (plan.parameters - ends) + 4 * ends
    assert plan.update["bfloat16 copies"] == 2 * ends


def test_replicas_have_buckets_as_large_as_their_gradients():
    config = architecture("Qwen/Qwen3-1.7B-Base")
    alone, beside = (needs(config, Sizes(**{**vars(SIZES), "replicas": known})) for known in (False, True))
    assert beside.peak - alone.peak == 4 * alone.trained


def test_recorded_vectors_are_counted():
    plain, recorded = (
        needs(
            architecture("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"),
            Sizes(256, 32, 512, 8192, 1, records_vectors=known),
        )
        for known in (False, True)
    )
    assert sum(recorded.update.values()) - sum(plain.update.values()) == 256 * 8192 * 1536 * 4


def test_what_is_asked_again_is_counted_where_it_is_more_than_the_first_asking():
    config, changes = architecture("Qwen/Qwen3-1.7B-Base"), {"retry_prompts": 2 * SIZES.prompts}
    plain = needs(config, SIZES).rollout["KV cache"]
    few, many = (
        needs(config, Sizes(**{**vars(SIZES), **changes, "retry_tokens": tokens})).rollout["KV cache"]
        for tokens in (SIZES.prompt_tokens // 2, SIZES.prompt_tokens + 600)
    )
    more = 2 * SIZES.prompts * (SIZES.prompt_tokens + 600) - SIZES.prompts * SIZES.prompt_tokens
    assert few == plain and (many - plain) * SIZES.prompts * SIZES.prompt_tokens == more * (
        plain - needs(config, Sizes(**{**vars(SIZES), "prompts": 0})).rollout["KV cache"]
    )

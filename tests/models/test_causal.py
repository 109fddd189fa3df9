"""A model is taken only where our attention gives what the stock model gives."""

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, GptOssConfig, LlamaConfig, Qwen3Config

from ngrpo.models import attention, loading
from ngrpo.models.causal import CausalModel
from ngrpo.targets import SettingsError

SMALL = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8, "initializer_range": 0.3,
}  # fmt: skip


def made(config, dtype=torch.float32):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("config", [LlamaConfig(**SMALL), Qwen3Config(**SMALL)], ids=["llama", "qwen3"])
def test_models_of_plain_attention_are_taken_and_stay_what_they_are(config, dtype):
    model, ids = made(config, dtype), torch.arange(12)[None]
    before = model(input_ids=ids).logits
    causal = CausalModel(model)
    torch.testing.assert_close(causal.model(input_ids=ids).logits, before)


def test_sinks_are_not_dropped_in_silence():
    full = {"layer_types": ["full_attention"] * 2, "num_local_experts": 2, "num_experts_per_tok": 1}
    model = made(GptOssConfig(**SMALL, **full))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.fill_(1.0)
    with pytest.raises(SettingsError, match=r"GptOssForCausalLM: .*they differ by \d"):
        CausalModel(model)


def test_logits_that_are_more_than_the_head_are_refused():
    with pytest.raises(SettingsError, match=r"CohereForCausalLM: its logits are not head"):
        CausalModel(made(CohereConfig(**SMALL, logit_scale=0.3)))


def test_an_attention_that_does_not_heed_the_layout_is_refused(monkeypatch):
    def blind(self, layer, query, key, value):
        return layer.whole_rows(query, key, value)

    monkeypatch.setattr(attention.PackedRows, "attend", blind)
    with pytest.raises(SettingsError, match="differ"):
        CausalModel(made(LlamaConfig(**SMALL)))


def test_a_large_model_is_compared_once_for_its_weights_and_again_where_the_mark_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("NGRPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "REMEMBERED_FROM", 0)
    seen, compare = [], CausalModel._compare
    monkeypatch.setattr(CausalModel, "_compare", lambda self: seen.append(self) or compare(self))
    place, other = tmp_path / "model", tmp_path / "other"
    made(LlamaConfig(**SMALL)).save_pretrained(place)
    made(LlamaConfig(**SMALL, rms_norm_eps=1e-5)).save_pretrained(other)

    def comparisons(path) -> int:
        seen.clear()
        model = loading.load(str(path))
        assert model.model.config._attn_implementation == attention.NAME
        return len(seen)

    assert [comparisons(path) for path in (place, place, other, other)] == [1, 0, 1, 0]
    for mark in (tmp_path / "cache" / "compared").iterdir():
        mark.write_bytes(b"")
    assert [comparisons(path) for path in (place, place)] == [1, 0]
    monkeypatch.setattr(attention.PackedRows, "attend", lambda self, layer, *states: layer.whole_rows(*states))
    monkeypatch.setattr(loading.transformers, "__version__", "0")
    for _ in range(2):  # what was refused is not remembered as sound
        with pytest.raises(SettingsError, match="differ"):
            loading.load(str(place))


def test_a_cache_that_cannot_be_written_to_is_none(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NGRPO_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(loading, "REMEMBERED_FROM", 0)
    made(LlamaConfig(**SMALL)).save_pretrained(tmp_path / "model")
    assert len(loading.load(str(tmp_path / "model")).table) == 97

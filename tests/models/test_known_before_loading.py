"""What cannot be computed here is refused by its name from a model's small files, before a weight is read; a new architecture
of transformers too, and what would only show in its weights is refused when it is loaded."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, LONGROPE, SMALL, config_of, stock
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Gemma3Config,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    Mistral3Config,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ngrpo.cli.command import examine
from ngrpo.models import architectures, files
from ngrpo.models.causal import CausalModel
from ngrpo.models.loading import load, read_config
from ngrpo.models.prompting import PLAIN, Prompting, Prompts
from ngrpo.models.sizes import Sizes, needs
from ngrpo.targets import SettingsError
from ngrpo.tasks.base import Problem

COMMANDS = {"train": "config", "evaluate": "evaluate", "diagnose": "diagnose", "plan": "plan"}
WORDS = [f"w{number}" for number in range(SMALL["vocab_size"] - 2)]


def write(place, settings, words=(), added=()):
    """A directory with the small files of a model, and as many bytes of weights as it takes to look whole."""
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer(
        WordLevel({word: row for row, word in enumerate(["<unk>", "<eos>", *WORDS, *words])}, "<unk>")
    )
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")
    made.add_special_tokens({"additional_special_tokens": list(added)})
    made.save_pretrained(place)
    (place / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return place


def test_all_that_transformers_knows_is_supported_or_refused_by_its_name():
    for name in {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "next_year"}:
        told = architectures.refusal({"model_type": name})
        supported = name in (*architectures.SUPPORTED, *architectures.MULTIMODAL)
        assert (told is None) == supported or name in architectures.MULTIMODAL
        assert supported or (told and f"model_type={name}" in told and "\n" not in told)
    named = [name for names in architectures.LACKING.values() for name in names]
    assert set(named) <= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) and not set(named) & set(architectures.SUPPORTED)


def test_each_supported_architecture_keeps_the_contract():
    assert {model_type for model_type, _ in ARCHITECTURES.values()} == set(architectures.SUPPORTED)


REFUSED = {  # settings of a config.json, by words that the refusal has
    "learned positions": {"model_type": "gpt2", "n_positions": 64, "vocab_size": 61},
    "gpt_neox": {"model_type": "gpt_neox", "hidden_size": 32, "vocab_size": 61},
    "attention sinks": {"model_type": "gpt_oss", "sliding_window": 128},
    "latent attention": {"model_type": "deepseek_v3"},
    "qwen2_vl": {"model_type": "qwen2_vl", "text_config": {"model_type": "qwen2_vl_text"}},
    "gemma3n_text": {"model_type": "gemma3", "text_config": {"model_type": "gemma3n_text"}},
    "next_year": {"model_type": "next_year"},
    "model.trust_remote_code=true": {"model_type": "next_year", "auto_map": {}},
    "chunked_attention": {"model_type": "llama", "layer_types": ["full_attention", "chunked_attention"]},
    "use_bidirectional_attention": {"model_type": "gemma3_text", "use_bidirectional_attention": True},
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_refused_is_refused_in_one_line(tmp_path, words):
    told = files.refusal(str(write(tmp_path, REFUSED[words])))
    assert told and words in told and told.isprintable() and len(told) <= 400


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_it_in_one_line(tmp_path, command):
    place = write(tmp_path / "model", REFUSED["learned positions"])
    (line,) = examine(COMMANDS[command], [f"model={place}"]).problems
    assert line.startswith(f"model.path={place}: its config.json says model_type=gpt2") and line.isprintable()


def test_tokens_without_a_row_are_told_from_the_files(tmp_path):
    settings = config_of("llama 3").to_dict()
    assert files.refusal(str(write(tmp_path / "sound", settings))) is None
    assert files.refusal(str(write(tmp_path / "added", settings, added=["<image>"]))) is None, "no text has it"
    told = files.refusal(str(write(tmp_path / "more", settings, words=["more", "words"])))
    assert told and "up to 62" in told and "ends at 60" in told


def test_an_end_of_text_that_is_no_token_is_told_from_the_files(tmp_path):
    place = write(tmp_path, config_of("llama 3").to_dict())
    (place / "generation_config.json").write_text('{"eos_token_id": [1, "</s>"]}')
    assert 'eos_token_id="</s>"' in str(files.refusal(str(place)))


def asking(text) -> Any:
    """A task of one prompt."""
    return SimpleNamespace(name="asked", problems=[Problem("p", text, "")], answer_prefix="")


def test_a_prompt_with_a_token_that_has_no_row_is_refused(tmp_path):
    write(tmp_path, config_of("llama 3").to_dict(), added=["<image>"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    prompts = Prompts(tokenizer, PLAIN, 10, 61)
    prompts.read(asking("w1 w2"))
    with pytest.raises(SettingsError, match=r"the token '<image>' \(id 61\), and the model's table ends at 60"):
        prompts.read(asking("w1 <image>"))
    with pytest.raises(SettingsError, match=r"^model.answer_start=<image>: has the token"):
        Prompts(tokenizer, Prompting("plain", "<image>"), 10, 61).read(asking("w1 w2"))


@pytest.mark.parametrize(
    ("settings", "positions"),
    [
        ({"max_position_embeddings": 100}, 100),
        ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "yarn"}}, 100),
        ({"max_position_embeddings": 100, "rope_scaling": {"type": "su"}, "original_max_position_embeddings": 40}, 40),
        ({"max_position_embeddings": 100, "rope_parameters": {**LONGROPE, "original_max_position_embeddings": 30}}, 30),
        ({}, None),
    ],
)  # fmt: skip
def test_a_text_ends_where_longrope_would_turn_its_keys_otherwise(settings, positions):
    assert architectures.positions(settings) == positions


def test_longrope_turns_keys_otherwise_beyond_the_original_positions():
    """Why a text ends there: the states of its first tokens are others as soon as it is longer."""
    model, ids = stock(config_of("phi4 mini")), torch.arange(40)[None] % 61
    with torch.no_grad():
        whole, within, shorter = (
            model.model(input_ids=ids[:, :length]).last_hidden_state[:, :20] for length in (40, 32, 20)
        )
    torch.testing.assert_close(within, shorter, rtol=0, atol=1e-6)
    assert (whole - shorter).abs().max() > 0.01
    assert architectures.positions(model.config.to_dict()) == 32


SEEING = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
WHOLE = {
    "gemma3": lambda: Gemma3Config(
        text_config=config_of("gemma3").to_dict(), vision_config=SEEING, mm_tokens_per_image=4, image_token_index=60,
        boi_token_index=58, eoi_token_index=59,
    ),
    "mistral3": lambda: Mistral3Config(
        text_config=config_of("mistral").to_dict(), vision_config={**SEEING, "model_type": "pixtral"}
    ),
    "llava": lambda: LlavaConfig(
        text_config=config_of("llama 3").to_dict(), vision_config={**SEEING, "model_type": "clip_vision_model"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", architectures.MULTIMODAL)
@pytest.mark.parametrize("names", ["published", "of transformers"])
def test_the_text_model_of_a_multimodal_one_says_what_the_whole_says(tmp_path, name, names):
    torch.manual_seed(0)
    whole, ids = AutoModelForImageTextToText.from_config(WHOLE[name]()).eval(), torch.arange(12)[None]
    for parameter in whole.parameters():
        nn.init.normal_(parameter, std=0.3)
    whole.save_pretrained(tmp_path / "whole", save_original_format=names == "published")
    settings = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert architectures.refusal(settings) is None and architectures.positions(settings) == 64
    model = load(str(tmp_path / "whole"))
    model.save(tmp_path / "text")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "text").eval()
    with torch.no_grad():
        expected = whole(input_ids=ids).logits
        for logits in (model.logits(model.hidden(F.embedding(ids, model.table), ids)), again(input_ids=ids).logits):
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    config = read_config(str(tmp_path / "whole"))
    parameters = needs(config, Sizes(rows=4, prompts=2, prompt_tokens=8, new_tokens=8, micro_rows=2)).parameters
    assert parameters == sum(parameter.numel() for parameter in again.parameters())


class Blind(LlamaForCausalLM):
    """A new architecture whose attention heeds neither positions' layout nor what transformers hands on to it."""

    class Settings(LlamaConfig):
        model_type = "blind"

    config_class = Settings

    def __init__(self, config):
        super().__init__(config)
        attentions: list[Any] = [layer.self_attn for layer in self.model.layers]
        for own in attentions:
            own.forward = self._attend(own)

    @staticmethod
    def _attend(own):
        def forward(hidden_states, **ignored):
            shape = (*hidden_states.shape[:2], -1, own.head_dim)
            q, k, v = (p(hidden_states).view(shape).transpose(1, 2) for p in (own.q_proj, own.k_proj, own.v_proj))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            return own.o_proj(mixed.transpose(1, 2).flatten(2)), None

        return forward


def test_an_attention_that_ignores_the_layout_is_refused_by_name_and_when_it_is_compared(tmp_path):
    AutoConfig.register("blind", Blind.Settings)
    AutoModelForCausalLM.register(Blind.Settings, Blind)
    model = Blind(Blind.Settings(**SMALL)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="model_type=blind; supported are"):
        load(str(tmp_path))
    with pytest.raises(SettingsError, match="Blind: its logits are not"):
        CausalModel(model)

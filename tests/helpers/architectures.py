"""Small random models of every supported architecture, with each of its particulars set so that it shows in a short text."""

import copy

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

SMALL = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
WINDOW = 5  # tokens: less than a prompt and an answer together, and than the longest of either alone
ALTERNATING = ["sliding_attention", "full_attention"] * 2
LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 100.0, "partial_rotary_factor": 0.5, "short_factor": [1.0, 1.5],
    "long_factor": [2.0, 8.0],
}  # fmt: skip
GEMMA = {
    "head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": WINDOW, "layer_types": ALTERNATING,
    "tie_word_embeddings": True,
}  # fmt: skip
# name: model_type, settings beyond SMALL
ARCHITECTURES: dict[str, tuple[str, dict]] = {
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 window": ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}),
    "qwen3": ("qwen3", {"head_dim": 12}),
    "llama 3": ("llama", {"rope_parameters": LLAMA_3}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 12}),
    "mistral window": ("mistral", {"sliding_window": WINDOW}),
    "phi3": ("phi3", {"sliding_window": WINDOW}),
    "phi4 mini": (
        "phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32, "tie_word_embeddings": True}
    ),
    "gemma2": ("gemma2", {**GEMMA, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 1.0}),
    "gemma3": ("gemma3_text", GEMMA),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"sliding_window": WINDOW, "layer_types": ALTERNATING}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1, 0], "tie_word_embeddings": True}),
    "granite": (
        "granite",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2, "logits_scaling": 2.0},
    ),
}  # fmt: skip


def config_of(name: str, **changes: object) -> PreTrainedConfig:
    """The configuration of a small model."""
    model_type, settings = ARCHITECTURES[name]
    return AutoConfig.for_model(model_type, **{**copy.deepcopy(SMALL), **copy.deepcopy(settings), **changes})


def with_heads_of(name: str, width: int) -> PreTrainedConfig:
    """The same with two attention heads of this width, as kernels that are made for a few widths want it."""
    _, settings = ARCHITECTURES[name]
    changes: dict[str, object] = {"hidden_size": 2 * width, "num_attention_heads": 2, "num_key_value_heads": 1}
    if "head_dim" in settings:
        changes["head_dim"] = width
    if settings.get("rope_parameters") is LONGROPE:  # a factor for every second entry of what is rotated
        factors = {name: LONGROPE[name] * (width // 8) for name in ("short_factor", "long_factor")}
        changes["rope_parameters"] = {**LONGROPE, **factors}
    return config_of(name, **changes)


def stock(config: PreTrainedConfig, dtype: torch.dtype = torch.float64, seed: int = 0) -> PreTrainedModel:
    """As transformers runs it, in eager attention; every weight is random, norms too, so that each makes a difference."""
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:  # biases, and norms around what they begin with
            parameter.data += 0.3 * noise
        else:
            parameter.data.copy_(0.3 * noise if "embed" in name else noise / parameter.shape[-1] ** 0.5)
    return model.to(dtype)

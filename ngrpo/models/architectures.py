"""Which models are computed here as transformers computes them, told from what a config.json says; it imports no torch.

An architecture is supported once it passes tests/models/test_architectures.py. Every other one is refused by its name,
also one that transformers will add: its attention may have parts that ours would leave out without a word.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

SUPPORTED = (
    "gemma2",
    "gemma3_text",
    "granite",
    "llama",
    "mistral",
    "olmo2",
    "olmo3",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
)
MULTIMODAL = ("gemma3", "llava", "mistral3")  # whose text model is loaded by itself
# What their weights are called in files, and in the text model.
TEXT_WEIGHTS = {
    r"^language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
LACKING = {
    "attention sinks": ("gpt_oss",),
    "latent attention": ("deepseek_v2", "deepseek_v3", "minicpm3"),
    "learned positions": ("biogpt", "gpt2", "gpt_bigcode", "gpt_neo", "opt"),
    "layers without attention": ("bamba", "falcon_h1", "jamba", "mamba", "mamba2", "qwen3_next", "recurrent_gemma"),
    "a mixture of experts": ("dbrx", "glm4_moe", "granitemoe", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe"),
}
ATTENTION = ("full_attention", "sliding_attention")  # kinds of layers
LONGROPE = ("longrope", "su")


@cache
def known() -> dict[str, dict[str, Any]]:
    """Hub id -> sizes of public checkpoints, for plans without a network."""
    return json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))


def has_shape(settings: Mapping[str, Any], name: str) -> bool:
    """Whether a config.json says the sizes of the known checkpoint `name`; what it leaves out is taken to be so."""
    sizes = known().get(name, {})
    return "hidden_size" in settings.keys() & sizes and all(
        settings.get(key, sizes[key]) == sizes[key] for key in sizes
    )


def refusal(settings: Mapping[str, Any], trusted: bool = False) -> str | None:
    """Why a model with this config.json is not computed here, as a phrase; None where it is.

    trusted: python that comes with a checkpoint may run. Such a model has no name that could be known; whether it is
    computed rightly is seen when it is loaded.
    """
    text = of_text(settings)
    model_type = str(text.get("model_type"))
    if "auto_map" in settings and (trusted or model_type not in SUPPORTED):
        return None if trusted else "is made by code that comes with it; model.trust_remote_code=true runs that"
    if model_type not in SUPPORTED:
        parts = next((parts for parts, names in LACKING.items() if model_type in names), "")
        has = f", which has {parts}" if parts else ""
        return (
            f"its config.json says model_type={model_type}{has}; supported are {', '.join((*SUPPORTED, *MULTIMODAL))}"
        )
    if kinds := sorted({str(kind) for kind in text.get("layer_types") or ()}.difference(ATTENTION)):
        return f"its config.json says that layers are of kind {', '.join(kinds)}; supported are {', '.join(ATTENTION)}"
    if text.get("use_bidirectional_attention"):
        return "its config.json says use_bidirectional_attention=true, so that tokens see those after them"
    return None


def of_text(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the text model: those of a part of a multimodal model, which are tied where the whole says so."""
    inner = settings.get("text_config")
    if settings.get("model_type") not in MULTIMODAL or not isinstance(inner, Mapping):
        return settings
    return inner


def positions(settings: Mapping[str, Any]) -> int | None:
    """How many tokens a text may have; None where that is not said.

    longrope turns all tokens of a text otherwise once one of them stands beyond the original positions: keys that were
    computed before would be those of another model, so that a text ends there.
    """
    text = of_text(settings)
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    rope = rope if isinstance(rope, Mapping) else {}
    most: Any = text.get("max_position_embeddings")
    if rope.get("rope_type", rope.get("type")) in LONGROPE:
        most = text.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings") or most
    return most if isinstance(most, int) else None

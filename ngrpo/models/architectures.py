"""Which models are computed here as transformers computes them, by their config.json; it imports no torch.

An architecture is supported once it passes tests/models/test_architectures.py. All others are refused by name, also those
that transformers will add: their attention may have parts that ours would silently leave out.
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
MULTIMODAL = ("gemma3", "llava", "mistral3")  # only their text model is loaded
# Prefixes of their weights in files -> in the text model.
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
    """Whether a config.json has the sizes of the known checkpoint `name`; sizes that it leaves out count as equal."""
    sizes = known().get(name, {})
    return "hidden_size" in settings.keys() & sizes and all(
        settings.get(key, sizes[key]) == sizes[key] for key in sizes
    )


def refusal(settings: Mapping[str, Any], trusted: bool = False) -> str | None:
    """Why a model with this config.json is not supported, as a phrase; None where it is.

    trusted: Python code that comes with a checkpoint may run. The architecture of such a model is unknown; whether it is
    computed correctly is checked when it is loaded.
    """
    text = text_config(settings)
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


def text_config(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the text model, which are one part of a multimodal model's config.json."""
    inner = settings.get("text_config")
    if settings.get("model_type") not in MULTIMODAL or not isinstance(inner, Mapping):
        return settings
    return inner


def positions(settings: Mapping[str, Any]) -> int | None:
    """How many tokens a text may have; None where it is not known.

    longrope rotates all tokens of a text differently once it is longer than the original positions, so keys in the cache
    would be those of another model: a text ends there.
    """
    text = text_config(settings)
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    rope = rope if isinstance(rope, Mapping) else {}
    limit: Any = text.get("max_position_embeddings")
    if rope.get("rope_type", rope.get("type")) in LONGROPE:
        limit = text.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings") or limit
    return limit if isinstance(limit, int) else None

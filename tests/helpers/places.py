"""Where things are, and the architectures that small models are made of."""

from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

REPOSITORY = Path(__file__).resolve().parents[2]
CONF = REPOSITORY / "conf"
FAMILIES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}

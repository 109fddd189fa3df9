"""The entry point `vllm.general_plugins`, which vLLM calls in each of its processes, perhaps more than once."""

from ngrpo.rollout.engines.vllm.installed import ARCHITECTURES

PREFIX = "Ngrpo"  # of the architectures that are registered, so that vLLM's own stay as they are


def register() -> None:
    """Registers the architectures that run sessions in vLLM's second model runner."""
    from vllm import ModelRegistry  # pyright: ignore[reportAttributeAccessIssue]

    for name in ARCHITECTURES.values():
        ModelRegistry.register_model(PREFIX + name, f"ngrpo.rollout.engines.vllm.v2:{PREFIX}{name}")

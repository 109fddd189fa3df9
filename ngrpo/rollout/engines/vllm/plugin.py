"""What vLLM loads in each of its processes, by the entry point `vllm.general_plugins`; it may be called more than once."""

from ngrpo.rollout.engines.vllm.installed import ARCHITECTURES

PREFIX = "Ngrpo"  # of the names that the engine asks for, so that vLLM's own stay what they are


def register() -> None:
    """Makes the architectures known whose second runner hosts sessions."""
    from vllm import ModelRegistry  # pyright: ignore[reportAttributeAccessIssue]

    for name in ARCHITECTURES.values():
        ModelRegistry.register_model(PREFIX + name, f"ngrpo.rollout.engines.vllm.v2:{PREFIX}{name}")

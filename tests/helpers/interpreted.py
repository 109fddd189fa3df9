"""Triton's kernels on a CPU: with TRITON_INTERPRET=1 nothing is compiled, and vLLM's second runner only asks for a backend
of the name. One that is never used is enough for it to start."""

from typing import Any


class Driver:
    """What is asked of a driver where kernels are interpreted."""

    @staticmethod
    def is_active() -> bool:
        return False  # it is no device that Triton may choose

    def get_current_device(self) -> int:
        return 0


def install() -> None:
    """Before vLLM is imported."""
    from triton import backends  # pyright: ignore[reportMissingImports]

    known: Any = backends.backends
    known.setdefault("cpu", backends.Backend(compiler=object, driver=Driver))

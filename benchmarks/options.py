"""The options of every part: how long to measure, and on what."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Options:
    """threads of the CPU; repeats: pairs of timings per comparison; limit: max_new_tokens; quick: only show that it runs."""

    threads: int
    repeats: int
    limit: int
    quick: bool
    device: str
    dtype: str
    model: str | None = None  # the larger of the two that are measured; None: the part chooses

    @property
    def precision(self) -> torch.dtype:
        """The dtype of weights and activations."""
        return getattr(torch, self.dtype)

"""The seam between whoever wants answers and whatever decodes them: all that a caller may know of an engine.

An engine hosts the strategies as they are; none of them is written a second time for it. Training, evaluation, diagnosis
and benchmarks go through these verbs, and nothing outside an engine touches a cache or a decode loop.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from ngrpo.exploration.base import Exploration
from ngrpo.models.causal import CausalModel
from ngrpo.rollout.records import Rollouts


class Engine(Protocol):
    """What decodes. P prompts, B = P * G rows, S prompt length, T answer length."""

    def refuses(self, strategy: Exploration, model: str) -> str | None:
        """Why this engine cannot run a strategy on the model at a directory or hub id, in one line with what mends it; None
        where it can.

        Asked before anything is loaded.
        """
        ...

    def sync(self, model: CausalModel, step: int, *strategies: Exploration) -> Mapping[str, float]:
        """From now on `generate` samples from these weights, those after RL step `step`, and the strategies, already
        bound, are prepared for them. Returns the figures that these give of it."""
        ...

    def generate(self, strategy: Exploration, prompts: Tensor, mask: Tensor, keys: Tensor, limit: int) -> Rollouts:
        """Rollouts of B = len(keys) rows for P prompts (P, S), left-padded; rows of one prompt stand together.

        Every row has a key of its own and ends with a stop of the strategy's vocabulary, an id or the token in which a
        stop text ends, or after `limit` tokens. Raises rollout.records.NotFinite where logits were not finite.
        """
        ...

    def sleep(self) -> None:
        """Give back the memory that only generation needs; the next `sync` takes it again."""
        ...

    def close(self) -> None:
        """Give everything back, for good."""
        ...

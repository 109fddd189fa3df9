"""The interface of an engine: all that its callers may rely on.

An engine runs the strategies as they are; none is written a second time for it. Training, evaluation, diagnosis and
benchmarks call these methods, and nothing outside an engine touches a cache or a decode loop.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from ngrpo.exploration.base import Exploration
from ngrpo.models.causal import CausalModel
from ngrpo.rollout.records import Rollouts


class Engine(Protocol):
    """Decodes answers. P prompts, B = P * G rows, S prompt length, T answer length."""

    def refuses(self, strategy: Exploration, model: str) -> str | None:
        """Why this engine cannot run a strategy on the model at a directory or hub id, in one line with an override that
        fixes it; None where it can.

        Called before anything is loaded.
        """
        ...

    def sync(self, model: CausalModel, step: int, *strategies: Exploration) -> Mapping[str, float]:
        """From now on `generate` samples from these weights, those after RL step `step`. Prepares the strategies, already
        bound, for them, and returns their figures."""
        ...

    def generate(self, strategy: Exploration, prompts: Tensor, mask: Tensor, keys: Tensor, limit: int) -> Rollouts:
        """Rollouts of B = len(keys) rows for P prompts (P, S), left-padded; rows of one prompt stand together.

        Every row has a key of its own and ends with a stop of the strategy's vocabulary, an id or the token in which a
        stop text ends, or after `limit` tokens. Raises rollout.records.NotFinite where logits were not finite.
        """
        ...

    def sleep(self) -> None:
        """Free the memory that only generation needs, until the next `sync`."""
        ...

    def close(self) -> None:
        """Free everything, for good."""
        ...

"""The frozen twin of the policy: log-probabilities of recorded steps under the weights that training began with."""

import lightning
from torch import Tensor

from ngrpo.exploration.base import Exploration
from ngrpo.models.causal import CausalModel
from ngrpo.rollout.records import Rollouts
from ngrpo.training.replay import replay_in_micro_batches


class AdapterOffReference:
    """The policy's own model with its adapters off, which is what it was before training: no second copy."""

    def __init__(self, model: CausalModel):
        self.model = model

    def log_probs(self, strategy: Exploration, rollouts: Rollouts, rows: int) -> Tensor:
        """(B, T) float32; 0 where the loss mask is false. `rows` is the size of a micro-batch."""
        with self.model.base():
            return replay_in_micro_batches(self.model, strategy, rollouts, rows).log_probs


class Reference(lightning.LightningModule):
    """Holds a model that never learns; mixtures are rebuilt with its own embedding table."""

    def __init__(self, model: CausalModel):
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    def log_probs(self, strategy: Exploration, rollouts: Rollouts, rows: int) -> Tensor:
        """(B, T) float32; 0 where the loss mask is false. `rows` is the size of a micro-batch."""
        return replay_in_micro_batches(self.model, strategy, rollouts, rows).log_probs

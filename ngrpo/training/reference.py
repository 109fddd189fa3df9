"""What the policy was before training: log-probabilities of recorded steps under the weights that it began with."""

import lightning
from torch import Tensor

from ngrpo.exploration.base import Exploration
from ngrpo.models.causal import CausalModel
from ngrpo.rollout.records import Rollouts
from ngrpo.training.replay import replay_in_micro_batches


class Reference(lightning.LightningModule):
    """A frozen model of its own, or the policy's, with its adapters switched off: then there is no second copy."""

    def __init__(self, model: CausalModel):
        super().__init__()
        self.model = model if model.adapters else model.eval().requires_grad_(False)

    def log_probs(self, strategy: Exploration, rollouts: Rollouts, rows: int) -> Tensor:
        """(B, T) float32; 0 where the loss mask is false. `rows` is the size of a micro-batch.

        Mixtures are rebuilt with this model's own embedding table.
        """
        with self.model.base():
            return replay_in_micro_batches(self.model, strategy, rollouts, rows).log_probs

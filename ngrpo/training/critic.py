"""The critic: a model of its own that tells, before each token, the return still to come.

It reads the fed vectors that the policy read, rebuilt with its own embedding table.
"""

import lightning
import torch
from torch import Tensor, nn

from ngrpo.exploration.base import Exploration
from ngrpo.models.causal import CausalModel
from ngrpo.rollout.records import Rollouts
from ngrpo.training.replay import micro_batches, states


class Critic(lightning.LightningModule):
    """A backbone with one output per token, 0 everywhere at first; its embedding table stays as it was loaded."""

    def __init__(self, model: CausalModel):
        super().__init__()
        self.model = model
        self.head = nn.Linear(model.head.shape[1], 1, dtype=torch.promote_types(model.head.dtype, torch.float32))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        for frozen in (model.model.get_input_embeddings(), model.model.get_output_embeddings()):
            frozen.requires_grad_(False)  # pyright: ignore

    def forward(self, strategy: Exploration, rollouts: Rollouts) -> Tensor:
        """(B, T) values of the states that each step was drawn from; 0 where the loss mask is false."""
        with self.model.autocast():
            row, time, hidden = states(self.model, strategy, rollouts, self.model.table, learn_fed=False)
        values = self.head(hidden.to(self.head.weight.dtype)).squeeze(-1)
        return values.new_zeros(rollouts.mask.shape).index_put((row, time), values)

    @torch.no_grad()
    def values(self, strategy: Exploration, rollouts: Rollouts, rows: int) -> Tensor:
        """`forward` without gradient, `rows` at a time."""
        result = torch.zeros(rollouts.mask.shape, dtype=self.head.weight.dtype, device=rollouts.mask.device)
        for index in micro_batches(rollouts, rows):
            part = rollouts.rows(index)
            result[index, : part.mask.shape[1]] = self(strategy, part)
        return result

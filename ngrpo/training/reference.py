"""What the policy was before training: log-probabilities of recorded steps under the weights that it began with, and its
representations of answers."""

from dataclasses import replace

import lightning
import torch
from torch import Tensor
from torch.nn import functional as F

from ngrpo.exploration.base import Exploration
from ngrpo.models.causal import CausalModel
from ngrpo.rollout.records import Rollouts
from ngrpo.training.replay import micro_batches, replay_in_micro_batches, states


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

    @torch.no_grad()
    def features(self, strategy: Exploration, rollouts: Rollouts, rows: int, wanted: Tensor) -> Tensor:
        """(B, D) float32: the mean of the final hidden states at the tokens of each answer, the last of them included.

        `rows` is the size of a micro-batch. Rows that are not `wanted` (B,) are not read and 0. Where text was inserted, the
        state before it is left out.
        """
        chosen = wanted.nonzero().squeeze(1)
        means = torch.zeros(len(wanted), self.model.head.shape[1], device=wanted.device)
        if not len(chosen):
            return means
        longer = _read_to_the_end(rollouts.rows(chosen))
        for index in micro_batches(longer, rows):
            with self.model.base(), self.model.autocast():
                row, time, hidden = states(self.model, strategy, longer.rows(index), self.model.table)
            at, hidden = row[time > 0], hidden[time > 0].float()  # before the first step stands the prompt's last state
            total = hidden.new_zeros(len(index), hidden.shape[1]).index_add(0, at, hidden)
            means[chosen[index]] = total / at.bincount(minlength=len(index))[:, None].clamp(min=1)
        return means


def _read_to_the_end(rollouts: Rollouts) -> Rollouts:
    """The same with one step more in each row, so that the last token of an answer is read as well."""

    def longer(values: Tensor) -> Tensor:
        return F.pad(values, (0, 0) * (values.dim() - 2) + (0, 1))

    return replace(
        rollouts,
        steps=rollouts.steps.map(longer),
        mask=F.pad(rollouts.mask, (1, 0), value=True),
        log_probs=longer(rollouts.log_probs),
        entropy=None,
    )

"""An algorithm as configured: reward shaping x group and row filters x advantage x token selection x loss x aggregation x KL.

It puts published formulas together and does not know models, prompts or processes.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ngrpo.algorithm.groups import Groups
from ngrpo.algorithm.losses import AGGREGATIONS, KL_ESTIMATORS, Counts, TokenLoss
from ngrpo.algorithm.selections import Tokens


@dataclass(frozen=True)
class Algorithm:
    """
    advantage        rewards (P, G) -> (P, G); with a critic (token rewards, values, mask), all (B, T) -> advantages, returns
    loss             (log_probs, old, advantages, mask), all (B, T) -> TokenLoss; by naming `selected`, `top_log_probs` or
                     `greedy` among its arguments it asks for them
    aggregation      a name in losses.AGGREGATIONS
    kl               coefficient, estimator (k1, k2, k3) and placement (loss, reward)
    reward           name -> Groups -> rewards (P, G), one after the other
    group_filter     Groups -> (P,) bool, true where a group is kept; None keeps all
    max_resamples    how often a step may draw new prompts to replace groups that were not kept
    row_filter       Groups -> (P, G) bool, true where an answer enters the loss
    token_advantage  (advantages, entropy), both (B, T) -> (B, T)
    select           Tokens -> (B, T) bool, for losses that treat some tokens differently
    entropy_bonus    weight of the policy's entropy, added to the objective
    top_k            number of likeliest tokens whose log-probabilities the loss is given
    pass_k           the k of pass@k, for advantages that name it in the configuration
    critic           learning_rate and clip of the value function; None: no critic
    """

    advantage: Callable[..., Any]
    loss: Callable[..., TokenLoss]
    aggregation: str
    kl: Mapping[str, Any]
    inner_epochs: int = 1
    mini_batches: int = 1
    reward: Mapping[str, Callable[[Groups], Tensor]] = field(default_factory=dict)
    group_filter: Callable[[Groups], Tensor] | None = None
    max_resamples: int = 0
    row_filter: Callable[[Groups], Tensor] | None = None
    token_advantage: Callable[[Tensor, Tensor], Tensor] | None = None
    select: Callable[[Tokens], Tensor] | None = None
    entropy_bonus: float = 0.0
    top_k: int = 0
    pass_k: int | None = None
    critic: Mapping[str, Any] | None = None

    @property
    def penalises_reward(self) -> bool:
        """Whether the KL to the reference is subtracted from the reward."""
        return self.kl["coefficient"] > 0 and self.kl["placement"] == "reward"

    @property
    def needs_old_log_probs(self) -> bool:
        """Whether log-probs from before the first update are used: by a second update, a KL in the reward, a selection."""
        return self.penalises_reward or self.select is not None or self.inner_epochs * self.mini_batches > 1

    def keeps(self, groups: Groups) -> Tensor:
        """(P,) bool: groups that may enter the step."""
        return torch.ones_like(groups.correct[:, 0]) if self.group_filter is None else self.group_filter(groups)

    def counts(self, groups: Groups) -> Tensor:
        """(P, G) bool: answers of kept groups that enter the loss."""
        rows = torch.ones_like(groups.correct) if self.row_filter is None else self.row_filter(groups)
        return rows & self.keeps(groups)[:, None]

    def shaped(self, groups: Groups) -> Tensor:
        """(P, G) float64: the rewards after all shaping."""
        for shape in self.reward.values():
            groups = replace(groups, rewards=shape(groups))
        return groups.rewards

    @cached_property
    def _asked(self) -> set[str]:
        return set(inspect.signature(self.loss).parameters)

    def token_loss(
        self,
        log_probs: Tensor,
        old: Tensor,
        advantages: Tensor,
        mask: Tensor,
        reference: Tensor | None = None,
        entropy: Tensor | None = None,
        **extras: Tensor | None,
    ) -> tuple[TokenLoss, Tensor]:
        """The loss of every token with all that is added to it, and the KL to the reference, both (B, T)."""
        wanted = {name: value for name, value in extras.items() if name in self._asked}
        policy = self.loss(log_probs, old, advantages, mask, **wanted)
        loss, divergence = policy.loss, torch.zeros_like(log_probs)
        if reference is not None:
            divergence = KL_ESTIMATORS[self.kl["estimator"]](log_probs, reference)
            if self.kl["placement"] == "loss":
                loss = loss + self.kl["coefficient"] * divergence
        if entropy is not None:
            loss = loss - self.entropy_bonus * entropy
        return TokenLoss(loss, policy.clipped), divergence.detach()

    def weights(self, mask: Tensor, counts: Counts) -> Tensor:
        """(B, T): what each token's loss counts for within the whole mini-batch."""
        return AGGREGATIONS[self.aggregation](mask, counts)

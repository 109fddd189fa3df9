"""An algorithm as configured: reward shaping x group and row filters x advantage x token selection x loss x aggregation x KL.

It combines published formulas and knows nothing of models, prompts or processes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ngrpo.algorithm.advantages import group_normalized
from ngrpo.algorithm.combinations import refusals
from ngrpo.algorithm.correction import Correction
from ngrpo.algorithm.inputs import AnswerTokens, Counts, Groups, LossInputs, TokenLoss, Tokens
from ngrpo.algorithm.losses import AGGREGATIONS, KL_ESTIMATORS, Loss
from ngrpo.algorithm.retry import Retry
from ngrpo.targets import SettingsError


@dataclass(frozen=True)
class Algorithm:
    """
    advantage        rewards (P, G) -> (P, G); with a critic (token rewards, values, mask), all (B, T) -> advantages, returns
    loss             LossInputs -> TokenLoss; it declares what it needs besides log-probabilities (losses.asks)
    aggregation      a name in losses.AGGREGATIONS
    kl               coefficient, placement (loss, reward) and estimator (k1, k2, k3; None: k3 in the loss, k1 in the reward)
    control          Groups -> rewards (P, G) that replace the task's rewards and verdicts; None: the task's
    reward_shaping   name -> Groups -> rewards (P, G), applied one after the other
    bonus            Groups, features (P, G, D) of their answers, a key of the RL step -> (P, G) added to rewards after filters;
                     features of groups without a right answer are 0
    group_filter     Groups -> (P,) bool, true where a group is kept; None keeps all
    retry            how all-wrong groups are retried, before the filter; None: they are not
    max_resamples    how often a step may draw new prompts to replace groups that were not kept
    carry_surplus    groups kept beyond a full batch wait for the next step; False: they are dropped
    row_filter       Groups -> (P, G) bool, true where an answer enters the loss
    reweight         (advantages (P, G), Groups) -> (P, G)
    token_advantage  AnswerTokens -> advantages (B, T)
    match_norm       "grpo": advantages are scaled to the mean |advantage| that GRPO gives the same batch; None: not scaled
    select           Tokens -> (B, T) bool, for losses that treat some tokens differently
    select_per       "step": chosen once, among the step's tokens; "update": before each update, among its mini-batch's
    tempered         entropy and likeliest tokens are of softmax(logits / temperature), as ratios are; False: softmax(logits)
    correction       for an engine that differs from the policy; see algorithm.correction for all fields of that prefix
    entropy_bonus    weight of the policy's entropy, added to the objective
    top_k            how many of the likeliest tokens the loss gets log-probabilities of
    pass_k           the k of pass@k, for advantages that refer to it in the configuration
    critic           learning_rate and clip of the value function; None: no critic
    """

    advantage: Callable[..., Any]
    loss: Loss
    aggregation: str
    kl: Mapping[str, Any]
    inner_epochs: int = 1
    mini_batches: int = 1
    control: Callable[[Groups], Tensor] | None = None
    reward_shaping: Mapping[str, Callable[[Groups], Tensor]] | None = None
    bonus: Callable[[Groups, Tensor, int], Tensor] | None = None
    group_filter: Callable[[Groups], Tensor] | None = None
    retry: Retry | None = None
    max_resamples: int = 0
    carry_surplus: bool = True
    row_filter: Callable[[Groups], Tensor] | None = None
    reweight: Callable[[Tensor, Groups], Tensor] | None = None
    token_advantage: Callable[[AnswerTokens], Tensor] | None = None
    match_norm: str | None = None
    select: Callable[[Tokens], Tensor] | None = None
    select_per: str = "step"
    tempered: bool = True
    correction: str = "none"
    correction_level: str = "token"
    correction_cap: float = 2.0
    correction_floor: float = 0.0
    correction_measure: str = "ratio"
    correction_normalize: bool = False
    entropy_bonus: float = 0.0
    top_k: int = 0
    pass_k: int | None = None
    critic: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if found := refusals(self):
            raise SettingsError(found)
        if self.asks & {"top_log_probs", "greedy"} and self.top_k < 1:
            raise SettingsError(f"algorithm.top_k={self.top_k}: the loss needs the likeliest tokens; algorithm.top_k=1")
        _ = self.correction_rule  # which refuses settings that do not go together

    @property
    def asks(self) -> frozenset[str]:
        """The optional fields of LossInputs that must be computed."""
        declared = getattr(getattr(self.loss, "func", self.loss), "asks", frozenset())
        return declared | {"entropy"} if self.entropy_bonus else declared

    @property
    def regularized(self) -> bool:
        """Whether there is a KL to the reference."""
        return self.kl["coefficient"] > 0

    @property
    def needs_reference(self) -> bool:
        """Whether the policy as it was before training is used, for log-probabilities or features."""
        return self.regularized or self.bonus is not None

    @property
    def penalizes_reward(self) -> bool:
        """Whether the KL to the reference is subtracted from the reward."""
        return self.regularized and self.kl["placement"] == "reward"

    @property
    def needs_old_log_probs(self) -> bool:
        """Whether log-probs from before the first update are used: by a second update, a KL in the reward, a selection
        or a correction of the whole batch."""
        several = self.inner_epochs * self.mini_batches > 1
        return several or self.penalizes_reward or self.select is not None or self.correction_rule.of_batch

    @property
    def needs_rollout_entropy(self) -> bool:
        """Whether the entropy of the rollout is used before the first update."""
        return self.select is not None or self.token_advantage is not None

    @property
    def kl_estimate(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The configured estimator, else that of the placement: PPO's penalty is k1, GRPO's loss has k3."""
        return KL_ESTIMATORS[self.kl["estimator"] or {"reward": "k1", "loss": "k3"}[self.kl["placement"]]]

    def keeps(self, groups: Groups) -> Tensor:
        """(P,) bool: groups that may enter the step; the filter sees the task's verdicts and the shaped rewards."""
        if self.group_filter is None:
            return torch.ones_like(groups.correct[:, 0])
        return self.group_filter(self.shaped(groups))

    def rows_in_loss(self, groups: Groups) -> Tensor:
        """(P, G) bool: answers of kept groups that enter the loss."""
        rows = torch.ones_like(groups.correct)
        if self.row_filter is not None:
            rows = self.row_filter(self._controlled(groups))
        return rows & self.keeps(groups)[:, None]

    def shaped(self, groups: Groups) -> Groups:
        """The groups with their rewards after all shaping."""
        groups = self._controlled(groups)
        for shape in (self.reward_shaping or {}).values():
            groups = replace(groups, rewards=shape(groups))
        return groups

    def _controlled(self, groups: Groups) -> Groups:
        if self.control is None:
            return groups
        rewards = self.control(groups)
        return replace(groups, rewards=rewards, correct=rewards > 0)

    def penalty(self, old: Tensor | None, reference: Tensor | None) -> Tensor | float:
        """(B, T) what the KL to the reference subtracts from each token's reward; 0 where it is not in the reward."""
        if old is None or reference is None or not self.penalizes_reward:
            return 0.0
        return self.kl["coefficient"] * self.kl_estimate(old, reference)

    def group_advantages(self, groups: Groups, penalty: Tensor | float, mask: Tensor) -> Tensor:
        """(B, T) float32, the same for every token of an answer, whose reward is reduced by the penalties of its tokens."""
        penalties = (torch.zeros_like(mask, dtype=torch.float32) + penalty) * mask
        rewards = groups.rewards if groups.bonus is None else groups.rewards + groups.bonus
        advantages = self.advantage(rewards - penalties.double().sum(dim=1).view(rewards.shape))
        if self.reweight is not None:
            advantages = self.reweight(advantages, groups)
        return advantages.float().view(-1, 1).expand(mask.shape)

    def rescaled(self, advantages: Tensor, groups: Groups, mask: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, T) advantages scaled to GRPO's mean |advantage| on the tokens that count; `total` sums over ranks."""
        if self.match_norm is None:
            return advantages
        grpo = group_normalized(groups.rewards).view(-1, 1).expand(mask.shape)
        own, target = total(torch.stack([(a.double().abs() * mask).sum() for a in (advantages, grpo)]))
        return advantages * (target / own).to(advantages.dtype) if own > 0 else advantages

    def token_loss(self, inputs: LossInputs, reference: Tensor | None = None) -> tuple[TokenLoss, Tensor]:
        """The loss of every token, KL and entropy bonus included, and the KL to the reference, both (B, T)."""
        policy = self.loss(inputs)
        loss = policy.loss if inputs.correction is None else policy.loss * inputs.correction  # after the clip
        divergence = torch.zeros_like(inputs.log_probs)
        if reference is not None:
            divergence = self.kl_estimate(inputs.log_probs, reference)
            if self.kl["placement"] == "loss":
                loss = loss + self.kl["coefficient"] * divergence
        if self.entropy_bonus:
            assert inputs.entropy is not None
            loss = loss - self.entropy_bonus * inputs.entropy
        return TokenLoss(loss, policy.clipped), divergence.detach()

    @property
    def correction_rule(self) -> Correction:
        """The correction for an engine that differs from the policy."""
        names = ("level", "cap", "floor", "measure", "normalize")
        return Correction(self.correction, **{name: getattr(self, f"correction_{name}") for name in names})

    def correction_weights(self, old: Tensor, rollout: Tensor, mask: Tensor) -> Tensor | None:
        """(B, T) weights for an engine whose log-probabilities are not the policy's; None: there are none, or they were
        computed for the whole batch."""
        correction = self.correction_rule
        if correction.of_batch or correction.kind in ("none", "bypass"):
            return None
        return correction.weigh(old, rollout, mask)[0]

    def token_weights(self, mask: Tensor, counts: Counts) -> Tensor:
        """(B, T): the weight of each token's loss within the whole mini-batch."""
        return AGGREGATIONS[self.aggregation](mask, counts)

"""The policy: all that is differentiable of an RL step happens in its `forward`, from recorded rollouts to the loss."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from ngrpo.algorithm.algorithm import Algorithm
from ngrpo.algorithm.critic import clipped_value_loss, whitened
from ngrpo.algorithm.inputs import AnswerTokens, Counts, Groups, LossInputs, Tokens
from ngrpo.algorithm.losses import token_mean
from ngrpo.exploration.base import Exploration
from ngrpo.models.causal import CausalModel
from ngrpo.ranks import Ranks
from ngrpo.rollout.records import NotFinite, Rollouts
from ngrpo.training.collect import Collected, TrainingConfig
from ngrpo.training.critic import Critic
from ngrpo.training.replay import Replayed, replay, replay_in_micro_batches
from ngrpo.training.replay import micro_batches as cut

GLIMPSED = 1000  # entries of a weight, at least, that are compared before and after an update


@dataclass(frozen=True)
class Batch:
    """What the updates of one RL step work on: rollouts, the mask of tokens that count, and more (B, T) or None.

    `old` and `values` are from before the first update, `returns` and `values` are the critic's. `off_policy` is true on
    rows that the policy of the step before answered, or that answered another prompt. `correction` are weights, and `rejected`
    is true on tokens that have left the mask, where the algorithm's correction looks at the whole batch.
    """

    rollouts: Rollouts
    mask: Tensor
    advantages: Tensor
    old: Tensor | None = None
    reference: Tensor | None = None
    selected: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None
    off_policy: Tensor | None = None
    correction: Tensor | None = None
    rejected: Tensor | None = None

    def before(self, log_probs: Tensor) -> Tensor:
        """(B, T) what the ratio of `log_probs` is to: the policy before the first update, of off-policy rows their own."""
        old = log_probs.detach() if self.old is None else self.old
        return old if self.off_policy is None else torch.where(self.off_policy, self.rollouts.log_probs.to(old), old)

    def rows(self, index: Tensor) -> "Batch":
        """Some rows, trimmed to their own longest prompt and answer."""
        rollouts = self.rollouts.rows(index)
        width = rollouts.mask.shape[1]
        tensors = {name: value for name, value in vars(self).items() if name != "rollouts" and value is not None}
        return Batch(rollouts, **{name: value[index, :width] for name, value in tensors.items()})

    def micro_batches(self, rows: int) -> Iterator[tuple["Batch", bool]]:
        """Parts of at most `rows` rows that go through the model together, each with whether it is the last."""
        indices = cut(self.rollouts, rows)
        for number, index in enumerate(indices, start=1):
            yield self.rows(index), number == len(indices)

    def figures(self) -> dict[str, float]:
        """Mean |advantage| of the tokens that count, 0 where none does; the share of tokens that a correction has rejected, and
        the mean length of the answers that keep a token."""
        counted = int(self.mask.sum())
        size = (self.advantages.double().abs() * self.mask).sum().item() / max(counted, 1)
        if self.rejected is None:
            return {"advantage_size": size}
        rejected, lengths = int(self.rejected.sum()), self.rollouts.lengths[self.mask.any(dim=1)].double()
        kept_length = lengths.mean().item() if len(lengths) else 0.0
        share = rejected / max(rejected + counted, 1)
        return {"advantage_size": size, "rejected": share, "kept_length": kept_length}

    def counts(self, limit: int, rows: int, ranks: Ranks) -> Counts:
        """Tokens, sequences and micro-batches of `rows` of the whole mini-batch, over all ranks; `limit`: tokens of the longest
        answer allowed."""
        micro_batches = self.mask.new_tensor(-(-len(self.mask) // rows), dtype=torch.int64)
        own = torch.stack((self.mask.sum(), self.mask.any(dim=1).sum(), micro_batches))
        tokens, sequences, micro_batches = ranks.sum(own.double()).float()
        return Counts(tokens, sequences, limit, micro_batches)


class Policy(lightning.LightningModule):
    """The model that learns, the strategy that explores with it, and the critic where the algorithm has one."""

    def __init__(
        self,
        model: CausalModel,
        strategy: Exploration,
        algorithm: Algorithm,
        config: TrainingConfig,
        critic: Critic | None = None,
    ):
        super().__init__()
        self.model, self.strategy, self.critic = model, strategy, critic
        self.algorithm, self.config = algorithm, config

    def on_disk(self) -> tuple[int, int]:
        """(bytes of a checkpoint: what is trained and AdamW's two moments of it; bytes of the whole model in hf/)."""
        trained = sum(p.numel() * p.element_size() for p in self.parameters() if p.requires_grad)
        return 3 * trained, sum(p.numel() * p.element_size() for p in self.model.model.parameters())

    def forward(self, batch: Batch, counts: Counts) -> tuple[Tensor, dict[str, float]]:
        """The weighted loss of one micro-batch and its share of the logged figures; both just add up over micro-batches."""
        algorithm, mask, fields = self.algorithm, batch.mask, self.algorithm.asks
        top_k = algorithm.top_k if fields & {"top_log_probs", "greedy"} else 0
        options = {"entropy": "entropy" in fields, "top_k": top_k, "hidden": "hidden" in fields}
        new = replay(self.model, self.strategy, batch.rollouts, tempered=algorithm.tempered, **options)
        old = batch.before(new.log_probs)
        correction = batch.correction
        if correction is None:
            correction = algorithm.correction_weights(old, batch.rollouts.log_probs, mask)
        inputs = LossInputs(
            **new._asdict(), old=old, advantages=batch.advantages, mask=mask, correction=correction,
            selected=batch.selected,
        )  # fmt: skip
        tokens, divergence = algorithm.token_loss(inputs, batch.reference)
        loss = (tokens.loss * algorithm.token_weights(mask, counts)).sum()
        gap = (new.log_probs.detach() - batch.rollouts.log_probs).abs()
        gap = gap if batch.off_policy is None else gap.masked_fill(batch.off_policy, 0)  # there it is not the engine's
        per_token = {"kl": divergence, "clip_fraction": tokens.clipped, "engine_gap": gap}
        if correction is not None:
            per_token |= {"correction": correction, "correction_squared": correction.square()}
        if self.strategy.acts_on == "weights":
            surplus = batch.rollouts.log_probs - old
            per_token |= {"noise_kl": surplus, "capped": surplus < -math.log(algorithm.correction_cap)}
        if batch.selected is not None:
            per_token["selected"] = batch.selected
        share = token_mean(mask, counts)
        figures = {"loss": loss.item()} | {name: (value * share).sum().item() for name, value in per_token.items()}
        if self.critic is None or batch.values is None or batch.returns is None or algorithm.critic is None:
            return loss, figures
        values = self.critic(self.strategy, batch.rollouts)
        value_losses = clipped_value_loss(values, batch.values, batch.returns, clip=algorithm.critic["clip"])
        value_loss = (value_losses * share).sum()
        return loss + value_loss, figures | {"value_loss": value_loss.item()}

    def replayed(self, rollouts: Rollouts) -> Replayed:
        """Log-probabilities under the current weights, and the entropy that the algorithm looks at, if it does."""
        known, rows, algorithm = self._engine_entropy(rollouts), self.config.micro_batch_rows, self.algorithm
        options = {"entropy": algorithm.needs_rollout_entropy and known is None, "tempered": algorithm.tempered}
        replayed = replay_in_micro_batches(self.model, self.strategy, rollouts, rows, **options)
        return replayed if known is None else replayed._replace(entropy=known)

    def _engine_entropy(self, rollouts: Rollouts) -> Tensor | None:
        """The engine's entropy (B, T) where it is the one that the algorithm looks at: not tempered, nor of other weights."""
        temperature = self.strategy.temperature_of(rollouts.steps) if self.algorithm.tempered else 1.0
        plain = not isinstance(temperature, Tensor) and temperature == 1
        here = self.strategy.acts_on != "weights" and self.algorithm.select_per == "step"
        return rollouts.entropy if plain and here else None

    def batch(
        self, drawn: Collected, groups: Groups, old: Replayed | None, reference: Tensor | None, values: Tensor | None,
        ranks: Ranks,
    ) -> Batch:  # fmt: skip
        """What the updates of an RL step work on, from groups with shaped rewards: tokens that count, and advantages."""
        algorithm, rollouts, off_policy = self.algorithm, drawn.answers.rollouts, drawn.off_policy
        mask = rollouts.loss_mask & drawn.counted[:, None]
        log_probs = old.log_probs if old else None
        penalty, returns = algorithm.penalty(log_probs, reference), None
        if values is None:
            advantages = algorithm.group_advantages(groups, penalty, rollouts.loss_mask)
        else:
            advantages, returns = whitened(algorithm.advantage, groups.rewards, penalty, values, mask, ranks.sum)
        if algorithm.token_advantage is not None:
            entropy = self._engine_entropy(rollouts)
            entropy = (old or self.replayed(rollouts)).entropy if entropy is None else entropy
            assert entropy is not None
            advantages = algorithm.token_advantage(AnswerTokens(advantages, entropy, mask, groups))
        advantages = algorithm.rescaled(advantages, groups, mask, ranks.sum)
        off_policy = None if off_policy is None else off_policy[:, None].expand_as(mask)
        batch = Batch(rollouts, mask, advantages, log_probs, reference, None, values, returns, off_policy)
        batch = self._corrected(batch, ranks)
        return batch if old is None or algorithm.select is None else self._selected(batch, old, algorithm.select)

    def _corrected(self, batch: Batch, ranks: Ranks) -> Batch:
        """The batch after what a correction for the engine settles before the first update."""
        correction, engine = self.algorithm.correction_rule, batch.rollouts.log_probs
        if correction.kind == "bypass":
            return replace(batch, old=engine)
        if not correction.of_batch or batch.old is None:
            return batch
        weights, kept = correction.weigh(batch.before(batch.old), engine, batch.mask)
        weights = None if correction.kind == "rejection" else correction.normalized(weights, batch.mask, ranks.sum)
        rejects = correction.kind.startswith("rejection")
        rejected = batch.mask & ~kept if rejects else None
        return replace(batch, mask=batch.mask & kept, correction=weights, rejected=rejected)

    def _selected(self, batch: Batch, now: Replayed, select: Callable[[Tokens], Tensor]) -> Batch:
        """The batch with the tokens that are selected, `now` being of the current weights."""
        assert now.entropy is not None
        unused = batch.rollouts.keys[:, None] ^ 1  # keys that no strategy draws from
        uniform, old = replace(batch.rollouts.draws, rows=unused).token, batch.before(now.log_probs)
        tokens = Tokens(now.log_probs, batch.advantages, now.entropy, uniform, batch.mask, old)
        return replace(batch, selected=select(tokens))

    def mini_batches(self, batch: Batch) -> Iterator[Batch]:
        """The updates of an RL step: every inner epoch, whole groups together, rows that count.

        Where no row counts, one still runs backward, so that no other rank waits for its gradients.
        """
        counted = batch.mask.any(dim=1)
        groups = torch.arange(len(batch.mask), device=batch.mask.device).view(-1, self.config.group_size)
        for _ in range(self.algorithm.inner_epochs):
            for chosen in groups.tensor_split(self.algorithm.mini_batches):
                index = chosen.flatten()
                part = batch.rows(index[counted[index]] if counted[index].any() else index[:1])
                if self.algorithm.select is not None and self.algorithm.select_per == "update":
                    with self.model.gathered():
                        part = self._selected(part, self.replayed(part.rollouts), self.algorithm.select)
                yield part

    def glimpse(self) -> Tensor:
        """Some entries of every weight that learns, which tell afterwards what share of them an update moved."""
        learners = [_own(p.detach()).flatten() for p in self.parameters() if p.requires_grad]
        return torch.cat([p[:: max(1, len(p) // GLIMPSED)].float() for p in learners])

    def clip(self, optimizer: torch.optim.Optimizer) -> float:
        """Clips gradients and returns the norm of the policy's before that; the critic has its own. Raises NotFinite."""
        critic = set() if self.critic is None else set(self.critic.parameters())
        learners = [p for group in optimizer.param_groups for p in group["params"]]
        norms = [
            _whole(torch.nn.utils.clip_grad_norm_(part, self.config.max_grad_norm))
            for part in ([p for p in learners if p not in critic], [p for p in learners if p in critic])
        ]
        for norm in norms:
            if not torch.isfinite(norm):
                raise NotFinite(f"the gradient's norm is {norm.item()}: lower learning_rate or check the reward")
        return norms[0].item()

    def optimizer(self) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """AdamW over model, strategy and critic, each with its own rate, and the schedule of these rates over RL steps."""
        config = self.config
        groups = [{"params": list(self.model.parameters()), "lr": config.learning_rate}]
        groups += self.strategy.parameter_groups(config.learning_rate)
        if self.critic is not None and self.algorithm.critic is not None:
            groups.append({"params": list(self.critic.parameters()), "lr": self.algorithm.critic["learning_rate"]})
        groups = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
        adam = torch.optim.AdamW(groups, config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)
        return adam, get_scheduler(config.schedule, adam, config.warmup_steps, config.steps)

    def state(self) -> dict[str, Any]:
        """The weights that training changes and the strategy's state, as plain containers."""
        critic = {} if self.critic is None else {"critic": self.critic.state_dict()}
        return {"model": self.model.learned(), "strategy": self.strategy.state_dict(), **critic}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.model.load_learned(state["model"])
        self.strategy.load_state_dict(state["strategy"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])


def _own(tensor: Tensor) -> Tensor:
    """This rank's part of what ranks keep in parts."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole(tensor: Tensor) -> Tensor:
    """Of all ranks together, which all ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

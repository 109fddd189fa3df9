"""The policy and its training step, a straight line: collect, old log-probs, advantage, update, log.

It does not know the names of strategies and algorithms. All counting is in RL steps.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from time import perf_counter
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, distributed
from transformers import get_scheduler

from ngrpo.algorithm.algorithm import Algorithm
from ngrpo.algorithm.losses import KL_ESTIMATORS, Counts, clipped_value_loss, token_mean
from ngrpo.algorithm.selections import Tokens
from ngrpo.rollout.records import NotFinite, Rollouts
from ngrpo.rollout.sampling import Answers, Sampler, groups_of
from ngrpo.rundir.checkpoints import rng_state, set_rng_state
from ngrpo.rundir.recorder import Recorder
from ngrpo.tasks.base import Task
from ngrpo.training.collect import Training, collect
from ngrpo.training.critic import Critic
from ngrpo.training.measures import rollout_measures
from ngrpo.training.reference import Base, Reference
from ngrpo.training.replay import parts, replay_in_parts, replay_more

WHITENING = 1e-8  # added to the variance of advantages, as verl does: without a signal they stay small


@dataclass(frozen=True)
class Batch:
    """What the updates of one RL step work on: rollouts, the mask of tokens that count, and more (B, T) or None.

    `old` and `values` are from before the first update, `returns` and `values` are the critic's.
    """

    rollouts: Rollouts
    mask: Tensor
    advantages: Tensor
    old: Tensor | None = None
    reference: Tensor | None = None
    selected: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None

    def rows(self, index: Tensor) -> "Batch":
        """Some rows, trimmed to their own longest prompt and answer."""
        rollouts = self.rollouts.rows(index)
        width = rollouts.mask.shape[1]
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "rollouts"}
        return Batch(rollouts, **{name: None if v is None else v[index, :width] for name, v in given.items()})  # pyright: ignore


@dataclass(frozen=True)
class Outcome:
    """What one RL step leaves behind for the records."""

    step: int
    answers: Answers
    metrics: Mapping[str, float]
    seconds: Mapping[str, float]


class Policy(lightning.LightningModule):
    """The model that learns. Its data loader yields the numbers of RL steps, from the one it stands at to the last."""

    def __init__(
        self,
        sampler: Sampler,
        task: Task,
        algorithm: Algorithm,
        training: Training,
        recorder: Recorder,
        reference: Reference | Base | None = None,
        critic: Critic | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.model, self.strategy = sampler.model, sampler.strategy
        self.sampler, self.task, self.algorithm, self.training_plan = sampler, task, algorithm, training
        self.recorder, self.reference, self.critic = recorder, reference, critic
        self.done, self.resumed = recorder.restore()
        self.seconds: dict[str, float] = {}

    def configure_optimizers(self) -> dict[str, Any]:
        plan = self.training_plan
        groups = [{"params": list(self.model.parameters()), "lr": plan.learning_rate}]
        groups += self.strategy.parameter_groups(plan.learning_rate)
        if self.critic is not None and self.algorithm.critic is not None:
            groups.append({"params": list(self.critic.parameters()), "lr": self.algorithm.critic["learning_rate"]})
        groups = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
        optimizer = torch.optim.AdamW(groups, plan.learning_rate, betas=plan.betas, weight_decay=plan.weight_decay)
        schedule = get_scheduler(plan.schedule, optimizer, plan.warmup_steps, plan.steps)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_train_start(self) -> None:
        if self.resumed:
            self.restore(self.resumed)

    def training_step(self, batch: int, _: int) -> None:
        """Stand at RL step `batch`: take it unless the run already has (the first item of every start), then record."""
        step = int(batch)
        taken = self.rl_step(step) if step > self.done else None
        self.recorder.at(self, step, taken)

    def rl_step(self, step: int) -> Outcome:
        """One step of reinforcement learning, from prompts to new weights."""
        self.seconds = {}
        with self._phase("prepare"):
            drift = self.strategy.prepare(self.model.table.detach(), step - 1, self.model.head.detach())
        with self._phase("rollout"):
            ranks = (self.global_rank, self.world_size)
            answers, counted, drawn = collect(self.sampler, self.task, self.algorithm, self.training_plan, step, ranks)
        batch = self._batch(answers, counted)
        with self._phase("update"):
            figures = self._update(batch, counted)
        with self._phase("measure"):
            measured = rollout_measures(answers, self.strategy, self.model.table.detach())
        return Outcome(step, answers, {**measured, **drawn, **figures, **drift}, dict(self.seconds))

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, as plain containers; the data position is the RL step itself."""
        # The bare optimizer: Lightning's own keeps a copy of its fields, and state loaded into that copy is lost.
        optimizer, schedule = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        return {
            "model": self.model.learned(),
            "strategy": self.strategy.state_dict(),
            **({} if self.critic is None else {"critic": self.critic.state_dict()}),
            "optimizer": optimizer.state_dict(),  # pyright: ignore
            "schedule": schedule.state_dict(),  # pyright: ignore
            "rng": rng_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put everything back to `state`."""
        self.model.load_learned(state["model"])
        self.strategy.load_state_dict(state["strategy"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
        self.optimizers(use_pl_optimizer=False).load_state_dict(state["optimizer"])  # pyright: ignore
        self.lr_schedulers().load_state_dict(state["schedule"])  # pyright: ignore
        set_rng_state(state["rng"])

    def _batch(self, answers: Answers, counted: Tensor) -> Batch:
        """Everything that is computed once, before the first update."""
        rollouts, rows = answers.rollouts, self.training_plan.micro_batch_rows
        mask = rollouts.loss_mask & counted[:, None]
        old = reference = values = None
        if self.reference is not None:
            with self._phase("reference"):
                reference = self.reference.log_probs(self.strategy, rollouts, rows)
        if self.algorithm.needs_old_log_probs:
            with self._phase("old_log_probs"):
                old = replay_in_parts(self.model, self.strategy, rollouts, rows)
        if self.critic is not None:
            with self._phase("values"):
                values = self.critic.values(self.strategy, rollouts, rows)
        penalty = torch.zeros_like(rollouts.log_probs)
        if old is not None and reference is not None and self.algorithm.penalises_reward:
            penalty = self.algorithm.kl["coefficient"] * KL_ESTIMATORS[self.algorithm.kl["estimator"]](old, reference)
        rewards = self.algorithm.shaped(groups_of(answers, self.sampler))
        if values is None:
            advantages, returns = self._group_advantages(rollouts, rewards, penalty), None
        else:
            advantages, returns = self._critic_advantages(mask, rewards, penalty, values)
        if self.algorithm.token_advantage is not None:
            advantages = self.algorithm.token_advantage(advantages, rollouts.entropy)
        selected = None
        if self.algorithm.select is not None and old is not None:
            others = rollouts.keys[:, None] ^ 1  # keys that no strategy draws from
            uniform = replace(rollouts.draws, rows=others).token
            selected = self.algorithm.select(Tokens(old, advantages, rollouts.entropy, uniform, mask))
        return Batch(rollouts, mask, advantages, old, reference, selected, values, returns)

    def _group_advantages(self, rollouts: Rollouts, rewards: Tensor, penalty: Tensor) -> Tensor:
        """(B, T) float32, every token of an answer alike; a penalty (B, T) of tokens counts against their answer."""
        rewards = rewards - (penalty * rollouts.loss_mask).double().sum(dim=1).view(rewards.shape)
        advantages = self.algorithm.advantage(rewards)
        return advantages.float().view(-1, 1).expand(rollouts.mask.shape)

    def _critic_advantages(
        self, mask: Tensor, rewards: Tensor, penalty: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Advantages, whitened over all tokens that count, and returns, both (B, T) float32.

        The reward stands at the last token of an answer that counts, penalties at their own.
        """
        last = mask & (mask.flip(1).cumsum(dim=1).flip(1) == 1)
        tokens = last * rewards.view(-1, 1).to(values.dtype) - penalty * mask
        advantages, returns = self.algorithm.advantage(tokens, values, mask)
        seen = advantages[mask].double()
        count, total, square = self._all_sum(torch.stack((mask.sum().double(), seen.sum(), seen.square().sum())))
        mean = total / count.clamp(min=1)
        variance = (square - count * mean.square()).clamp(min=0) / (count - 1).clamp(min=1)
        return ((advantages - mean) / (variance + WHITENING).sqrt() * mask).float(), returns.float()

    def _update(self, batch: Batch, counted: Tensor) -> dict[str, float]:
        """Every inner epoch and mini-batch; returns the figures of the loss, averaged over the updates."""
        groups = torch.arange(len(batch.mask), device=batch.mask.device).view(-1, self.training_plan.group_size)
        totals: list[dict[str, float]] = []
        for _ in range(self.algorithm.inner_epochs):
            for chosen in groups.tensor_split(self.algorithm.mini_batches):
                index = chosen.flatten()
                index = index[counted[index]] if counted[index].any() else index[:1]  # one row still runs backward
                totals.append(self._mini_batch(batch.rows(index)))
        schedule = self.lr_schedulers()
        rate = float(schedule.get_last_lr()[0])  # pyright: ignore
        schedule.step()  # pyright: ignore
        return {name: sum(t[name] for t in totals) / len(totals) for name in totals[0]} | {"learning_rate": rate}

    def _mini_batch(self, batch: Batch) -> dict[str, float]:
        """One optimiser step on `batch`; the loss is a sum of weighted tokens, so micro-batches just add up.

        Without a token that counts on any rank, no step is taken and the loss is 0.
        """
        counts = self._counts(batch.mask)
        optimizer = self.optimizers()
        optimizer.zero_grad()  # pyright: ignore
        figures: dict[str, float] = {}
        micro_batches = parts(batch.rollouts, self.training_plan.micro_batch_rows)
        for number, index in enumerate(micro_batches, start=1):
            loss, seen = self._loss(batch.rows(index), counts)
            with self._local() if number < len(micro_batches) else nullcontext():
                self.manual_backward(loss * self.world_size)  # DDP averages over ranks; the counts are already global
            figures = {name: figures.get(name, 0.0) + value for name, value in seen.items()}
        figures = self._sum_over_ranks(figures)
        figures["grad_norm"] = self._step(optimizer) if counts.tokens else 0.0
        if self.reference is None:
            figures["kl"] = math.nan
        return figures

    def _loss(self, batch: Batch, counts: Counts) -> tuple[Tensor, dict[str, float]]:
        """The weighted loss of one micro-batch and its share of the logged figures."""
        algorithm, mask = self.algorithm, batch.mask
        bonus = algorithm.entropy_bonus != 0
        new = replay_more(self.model, self.strategy, batch.rollouts, entropy=bonus, top_k=algorithm.top_k)
        before = new.log_probs.detach() if batch.old is None else batch.old
        extras = {"selected": batch.selected, "top_log_probs": new.top_log_probs, "greedy": new.greedy}
        tokens, divergence = algorithm.token_loss(
            new.log_probs, before, batch.advantages, mask, batch.reference, new.entropy, **extras
        )
        loss = (tokens.loss * algorithm.weights(mask, counts)).sum()
        gap = (new.log_probs.detach() - batch.rollouts.log_probs).abs()
        seen = {"kl": divergence, "clip_fraction": tokens.clipped, "engine_gap": gap}
        if batch.selected is not None:
            seen["selected"] = batch.selected
        share = token_mean(mask, counts)
        figures = {"loss": loss.item()} | {name: (value * share).sum().item() for name, value in seen.items()}
        if self.critic is None or batch.values is None or batch.returns is None or algorithm.critic is None:
            return loss, figures
        values = self.critic(self.strategy, batch.rollouts)
        value_losses = clipped_value_loss(values, batch.values, batch.returns, clip=algorithm.critic["clip"])
        value_loss = (value_losses * share).sum()
        return loss + value_loss, figures | {"value_loss": value_loss.item()}

    def _step(self, optimizer: Any) -> float:
        """Clip, check and step; returns the norm of the policy's gradient before clipping. The critic has its own."""
        critic = set() if self.critic is None else set(self.critic.parameters())
        learners = [p for group in optimizer.param_groups for p in group["params"]]
        norms = [
            torch.nn.utils.clip_grad_norm_(part, self.training_plan.max_grad_norm)
            for part in ([p for p in learners if p not in critic], [p for p in learners if p in critic])
        ]
        for norm in norms:
            if not torch.isfinite(norm):
                raise NotFinite(f"the gradient's norm is {norm.item()}: lower learning_rate or check the reward")
        optimizer.step()
        return norms[0].item()

    def _local(self) -> AbstractContextManager[None]:
        """Within it, gradients add up on every rank by itself; the first backward pass after it sums them over ranks."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    @property
    def world_size(self) -> int:
        """Processes that train together."""
        return distributed.get_world_size() if distributed.is_initialized() else 1

    def _all_sum(self, values: Tensor) -> Tensor:
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def _sum_over_ranks(self, figures: dict[str, float]) -> dict[str, float]:
        values = torch.tensor(list(figures.values()), dtype=torch.float64, device=self.model.table.device)
        return dict(zip(figures, self._all_sum(values).tolist(), strict=True))

    def _counts(self, mask: Tensor) -> Counts:
        """Tokens and sequences of the whole mini-batch, over all ranks."""
        sizes = self._all_sum(torch.stack((mask.sum(), mask.any(dim=1).sum())).double())
        return Counts(sizes[0].float(), sizes[1].float(), self.sampler.max_new_tokens)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = perf_counter()
        yield
        if self.model.table.is_cuda:
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

"""The policy and its training step, a straight line: collect, old log-probs, advantage, update, log.

It does not know the names of strategies and algorithms. All counting is in RL steps.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import lightning
import torch
from torch import Tensor, distributed
from transformers import get_scheduler

from ngrpo.checkpoints import rng_state, set_rng_state
from ngrpo.evaluate import Answers, Sampler, answer
from ngrpo.keys import row_key
from ngrpo.losses import AGGREGATIONS, KL_ESTIMATORS, Counts, TokenLoss
from ngrpo.measures import rollout_measures
from ngrpo.recorder import Recorder
from ngrpo.reference import Reference
from ngrpo.replay import parts, replay, replay_in_parts
from ngrpo.rollouts import NotFinite, Rollouts
from ngrpo.tasks.base import Problem, Task


@dataclass(frozen=True)
class Algorithm:
    """advantage: rewards (P, G) -> (P, G); loss: (log_probs, old, advantages, mask), all (B, T) -> TokenLoss;
    aggregation: a name in losses.AGGREGATIONS; kl: coefficient, estimator (k1, k2, k3) and placement (loss, reward).
    """

    advantage: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor, Tensor, Tensor], TokenLoss]
    aggregation: str
    kl: Mapping[str, Any]
    inner_epochs: int = 1
    mini_batches: int = 1

    @property
    def needs_old_log_probs(self) -> bool:
        """Whether log-probs from before the first update are used: by a second update, or by a KL in the reward."""
        penalised = self.kl["coefficient"] > 0 and self.kl["placement"] == "reward"
        return penalised or self.inner_epochs * self.mini_batches > 1


@dataclass(frozen=True)
class Training:
    """The sizes of a run: steps, prompts_per_step and group_size count RL steps, prompts and completions."""

    steps: int
    prompts_per_step: int
    group_size: int
    learning_rate: float
    seed: int
    micro_batch_rows: int
    weight_decay: float
    betas: tuple[float, float]
    max_grad_norm: float
    schedule: str
    warmup_steps: int


def problems_of(task: Task, training: Training, step: int) -> list[Problem]:
    """The prompts of RL step `step` (from 1): the task in an order shuffled anew for every pass through it.

    A function of the seed and the step alone, so the data position needs no state of its own.
    """
    size, wanted = len(task.problems), training.prompts_per_step
    if size < wanted:
        raise ValueError(f"prompts_per_step={wanted}: {task.name} has {size} problems only")
    per_pass = size // wanted
    epoch, position = divmod(step - 1, per_pass)
    generator = torch.Generator().manual_seed(row_key("order", training.seed, epoch) % 2**63)
    order = torch.randperm(size, generator=generator)[position * wanted : (position + 1) * wanted]
    return [task.problems[i] for i in order.tolist()]


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
        reference: Reference | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.model, self.strategy = sampler.model, sampler.strategy
        self.sampler, self.task, self.algorithm, self.training_plan = sampler, task, algorithm, training
        self.recorder, self.reference = recorder, reference
        self.done, self.resumed = recorder.restore()
        self.seconds: dict[str, float] = {}

    def configure_optimizers(self) -> dict[str, Any]:
        plan = self.training_plan
        learners = [p for p in (*self.model.parameters(), *self.strategy.parameters()) if p.requires_grad]
        optimizer = torch.optim.AdamW(learners, plan.learning_rate, betas=plan.betas, weight_decay=plan.weight_decay)
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
            drift = self.strategy.prepare(self.model.table.detach(), step - 1)
        with self._phase("rollout"):
            answers = self._collect(step)
        rollouts, rows = answers.rollouts, self.training_plan.micro_batch_rows
        with self._phase("reference"):
            reference = self.reference and self.reference.log_probs(self.strategy, rollouts, rows)
        old = None
        if self.algorithm.needs_old_log_probs:
            with self._phase("old_log_probs"):
                old = replay_in_parts(self.model, self.strategy, rollouts, rows)
        advantages = self._advantages(answers, old, reference)
        with self._phase("update"):
            figures = self._update(rollouts, advantages, old, reference)
        with self._phase("measure"):
            measured = rollout_measures(answers, self.strategy, self.model.table.detach())
        return Outcome(step, answers, {**measured, **figures, **drift}, dict(self.seconds))

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, as plain containers; the data position is the RL step itself."""
        # The bare optimizer: Lightning's own keeps a copy of its fields, and state loaded into that copy is lost.
        optimizer, schedule = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        return {
            "model": self.model.state_dict(),
            "strategy": self.strategy.state_dict(),
            "optimizer": optimizer.state_dict(),  # pyright: ignore
            "schedule": schedule.state_dict(),  # pyright: ignore
            "rng": rng_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put everything back to `state`."""
        self.model.load_state_dict(state["model"])
        self.strategy.load_state_dict(state["strategy"])
        self.optimizers(use_pl_optimizer=False).load_state_dict(state["optimizer"])  # pyright: ignore
        self.lr_schedulers().load_state_dict(state["schedule"])  # pyright: ignore
        set_rng_state(state["rng"])

    def _collect(self, step: int) -> Answers:
        """This rank's share of the step's groups; whole groups stay together."""
        problems = problems_of(self.task, self.training_plan, step)
        share = len(problems) // self.world_size
        problems = problems[self.global_rank * share : (self.global_rank + 1) * share]
        plan, draw = self.training_plan, 0
        identities = [(plan.seed, step, draw, p.id, i) for p in problems for i in range(plan.group_size)]
        try:
            return answer(self.sampler, self.task, problems, identities)
        except NotFinite as error:
            raise NotFinite(f"RL step {step}: {error}") from error

    def _advantages(self, answers: Answers, old: Tensor | None, reference: Tensor | None) -> Tensor:
        """(B, T) float32, every token of a completion alike."""
        rollouts, kl = answers.rollouts, self.algorithm.kl
        rewards = torch.tensor([s.reward for s in answers.scores], dtype=torch.float64, device=rollouts.mask.device)
        if old is not None and reference is not None and kl["placement"] == "reward":
            penalty = KL_ESTIMATORS[kl["estimator"]](old, reference) * rollouts.loss_mask
            rewards = rewards - kl["coefficient"] * penalty.double().sum(dim=1)
        advantages = self.algorithm.advantage(rewards.view(-1, rollouts.group_size))
        return advantages.float().view(-1, 1).expand(rollouts.mask.shape)

    def _update(
        self, rollouts: Rollouts, advantages: Tensor, old: Tensor | None, reference: Tensor | None
    ) -> dict[str, float]:
        """Every inner epoch and mini-batch; returns the figures of the loss, averaged over the updates."""
        groups = torch.arange(len(rollouts.mask), device=rollouts.mask.device).view(-1, rollouts.group_size)
        totals: list[dict[str, float]] = []
        for _ in range(self.algorithm.inner_epochs):
            for chosen in groups.tensor_split(self.algorithm.mini_batches):
                index = chosen.flatten()
                totals.append(self._mini_batch(rollouts, index, advantages, old, reference))
        schedule = self.lr_schedulers()
        rate = float(schedule.get_last_lr()[0])  # pyright: ignore
        schedule.step()  # pyright: ignore
        return {name: sum(t[name] for t in totals) / len(totals) for name in totals[0]} | {"learning_rate": rate}

    def _mini_batch(
        self, rollouts: Rollouts, index: Tensor, advantages: Tensor, old: Tensor | None, reference: Tensor | None
    ) -> dict[str, float]:
        """One optimiser step on the rows `index`; the loss is a sum of weighted tokens, so micro-batches just add up."""
        mask = rollouts.loss_mask
        counts = self._counts(mask[index])
        optimizer = self.optimizers()
        optimizer.zero_grad()  # pyright: ignore
        batch = rollouts.rows(index)
        figures: dict[str, float] = dict.fromkeys(("loss", "kl", "clip_fraction", "engine_gap"), 0.0)
        for part in parts(batch, self.training_plan.micro_batch_rows):
            rows = index[part]
            micro = rollouts.rows(rows)
            wide = slice(0, micro.mask.shape[1])
            given = [None if value is None else value[rows, wide] for value in (advantages, old, reference)]
            loss, seen = self._loss(micro, counts, *given)  # pyright: ignore
            self.manual_backward(loss * self.world_size)  # DDP averages over ranks; the counts are already global
            for name, value in seen.items():
                figures[name] += value
        figures = self._sum_over_ranks(figures) | {"grad_norm": self._step(optimizer)}
        if self.reference is None:
            figures["kl"] = math.nan
        return figures

    def _loss(
        self, rollouts: Rollouts, counts: Counts, advantages: Tensor, old: Tensor | None, reference: Tensor | None
    ) -> tuple[Tensor, dict[str, float]]:
        """The weighted loss of one micro-batch and its share of the logged figures."""
        mask, kl = rollouts.loss_mask, self.algorithm.kl
        log_probs = replay(self.model, self.strategy, rollouts)
        before = log_probs.detach() if old is None else old
        tokens = self.algorithm.loss(log_probs, before, advantages, mask)
        divergence = torch.zeros_like(log_probs)
        if reference is not None:
            divergence = KL_ESTIMATORS[kl["estimator"]](log_probs, reference)
        penalised = tokens.loss
        if kl["placement"] == "loss":
            penalised = penalised + kl["coefficient"] * divergence
        loss = (penalised * AGGREGATIONS[self.algorithm.aggregation](mask, counts)).sum()
        share = mask / counts.tokens.clamp(min=1)
        gap = (log_probs.detach() - rollouts.log_probs).abs()
        seen = {"kl": divergence.detach(), "clip_fraction": tokens.clipped, "engine_gap": gap}
        return loss, {"loss": loss.item()} | {name: (value * share).sum().item() for name, value in seen.items()}

    def _step(self, optimizer: Any) -> float:
        """Clip, check and step; returns the gradient's norm before clipping."""
        learners = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(learners, self.training_plan.max_grad_norm)
        if not torch.isfinite(norm):
            raise NotFinite(f"the gradient's norm is {norm.item()}: lower learning_rate or check the reward")
        optimizer.step()
        return norm.item()

    @property
    def world_size(self) -> int:
        """Processes that train together."""
        return distributed.get_world_size() if distributed.is_initialized() else 1

    def _sum_over_ranks(self, figures: dict[str, float]) -> dict[str, float]:
        if self.world_size == 1:
            return figures
        values = torch.tensor(list(figures.values()), dtype=torch.float64, device=self.model.table.device)
        distributed.all_reduce(values)
        return dict(zip(figures, values.tolist(), strict=True))

    def _counts(self, mask: Tensor) -> Counts:
        """Tokens and sequences of the whole mini-batch, over all ranks."""
        sizes = torch.stack((mask.sum(), mask.any(dim=1).sum())).double()
        if self.world_size > 1:
            distributed.all_reduce(sizes)
        return Counts(sizes[0].float(), sizes[1].float(), self.sampler.max_new_tokens)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = perf_counter()
        yield
        if self.model.table.is_cuda:
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

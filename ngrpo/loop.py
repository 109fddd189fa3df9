"""The RL loop, from the first prompt to the last evaluation, top to bottom; build.py makes the parts that it is given."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from ngrpo.algorithm.correction import large_gap, settled
from ngrpo.evaluation.benchmarks import Evaluation
from ngrpo.evaluation.mechanism import step_rows
from ngrpo.evaluation.pruning import PruningReporter
from ngrpo.launched import launched
from ngrpo.ranks import Ranks
from ngrpo.rollout import join, sampling
from ngrpo.rollout.keys import row_key
from ngrpo.rundir import checkpoints
from ngrpo.rundir.interrupts import INTERRUPTS, Interrupted, Interrupts
from ngrpo.rundir.progress import Progress
from ngrpo.rundir.recorder import Clock, Recorder
from ngrpo.tasks.base import Task
from ngrpo.training import sharding
from ngrpo.training.collect import Collected, collect
from ngrpo.training.matching import Matching
from ngrpo.training.policy import Batch, Policy
from ngrpo.training.reference import Reference
from ngrpo.training.watch import Watch


@dataclass(frozen=True)
class Parts:
    """All that a training run is made of. On every rank but the first there is no recorder, and progress is silent.

    labels    are in every sample row
    reporter  tells a search how this trial does
    matching  finds the strategy's temperature before the run, where it is matched to another strategy
    keep      how many checkpoints stay on the disk
    """

    policy: Policy
    reference: Reference | None
    sampler: sampling.Sampler
    task: Task
    evaluation: Evaluation
    directory: Path
    labels: Mapping[str, Any]
    progress: Progress
    interrupts: Interrupts = INTERRUPTS
    recorder: Recorder | None = None
    reporter: PruningReporter | None = None
    matching: Matching | None = None
    keep: int = 2


def run(parts: Parts, *, accelerator: str, devices: int, strategy: str, cpu_offload: bool = False) -> None:
    """Trains with one process per device; cpu_offload: shards stay in the CPU's memory.

    Raises what `Trainer.train` raises, and RankLost where another process is gone.
    """
    launch = launched()
    nodes = launch.nodes if launch else 1
    how = sharding.strategy(devices, accelerator == "gpu", cpu_offload) if strategy == "fsdp" else strategy
    fabric = Fabric(accelerator=accelerator, devices=devices // nodes, num_nodes=nodes, strategy=how)

    def work(fabric: Fabric) -> None:
        ranks = Ranks(fabric.global_rank, fabric.world_size)
        with Watch(ranks, parts.interrupts) as watch:
            Trainer(fabric, parts, ranks, watch).train()

    try:
        with INTERRUPTS.polled():
            fabric.launch(work)
    finally:
        parts.progress.stop()
        parts.sampler.engine.close()
        if parts.recorder:
            parts.recorder.close()


class Trainer:
    """Training as one rank sees it. `train` is the loop; the methods below it are its phases, in their order."""

    def __init__(self, fabric: Fabric, parts: Parts, ranks: Ranks, watch: Watch):
        self.fabric, self.parts, self.ranks, self.watch = fabric, parts, ranks, watch
        self.policy, self.config, self.algorithm = parts.policy, parts.policy.config, parts.policy.algorithm
        self.learner: Any = fabric.setup_module(self.policy)  # sums gradients over ranks
        self.optimizer, self.schedule = self.policy.optimizer()  # only now, as sharding replaces parameters
        self.stepper: Any = fabric.setup_optimizers(self.optimizer)
        self.reference = parts.reference
        if self.reference is not None and self.reference.model is not self.policy.model:
            sharding.place(fabric, self.reference)
        self.surplus: sampling.Answers | None = None  # groups that the step before kept beyond a full batch

    def train(self) -> None:
        """From the newest checkpoint to the last RL step. Raises Interrupted, Pruned, NotFinite, Ungraded."""
        start = self.restore()
        self.evaluate_if_due(start, self.stop_signal())  # where a run begins, or was stopped before it
        for step in range(start + 1, self.config.steps + 1):
            clock = Clock(self.fabric.device)
            collected, drift = self.rollout(step, start, clock)
            with self.watch.limited():
                batch = self.prepare(step, collected, clock)
                with clock("update"):
                    figures = self.update(batch)
            self.record(step, collected, figures, drift, clock)
            stop = self.stop_signal()
            if stop or self.config.checkpoint_due(step) or self.config.evaluation_due(step):
                self.save(step, checkpoints.rng_state())
            self.evaluate_if_due(step, stop)
        with self.policy.model.gathered():
            if self.parts.recorder:
                learned = dict(self.policy.strategy.named_parameters())
                self.parts.recorder.model(self.policy.model, self.parts.sampler.prompts.tokenizer, learned)

    def restore(self) -> int:
        """Puts everything back to the newest checkpoint; returns its RL step, 0 without one."""
        parts, policy = self.parts, self.policy
        start, state = checkpoints.newest(parts.directory / "checkpoints") or (0, None)
        if parts.recorder:
            parts.recorder.restore(state.get("recorder") if state else {}, start)
        if state:
            sharding.restore(state, policy, self.optimizer)
            self.schedule.load_state_dict(state["schedule"])
            checkpoints.set_rng_state(state["rng"])
            self.surplus = join.unpacked(state["waiting"], self.ranks, self.fabric.device)
        if parts.matching:
            with self.watch.limited(), policy.model.gathered():
                parts.matching.settle(policy.model, self.ranks)
        parts.progress.start(start)
        return start

    def stop_signal(self) -> int:
        """The signal that any rank was stopped by, 0 for none; the same on all, so that they stop at one step."""
        return max(self.ranks.gather(self.parts.interrupts.number))

    def rollout(self, step: int, start: int, clock: Clock) -> tuple[Collected, Mapping[str, float]]:
        """This rank's share of the step's answers, and the drift of what the strategy prepares.

        Raises Interrupted at once where a signal comes, with the step before saved.
        """
        parts, strategy, model, rng = self.parts, self.policy.strategy, self.policy.model, checkpoints.rng_state()
        unprepared = {name: value.clone() for name, value in strategy.named_buffers()}
        with clock("prepare"):
            drift = parts.sampler.engine.sync(model, step - 1, strategy)
        with self.watch.limited():
            # A signal leaves the rollout anywhere, but not in the middle of putting weights back.
            with clock("rollout"), model.gathered(), strategy.perturbed(model):
                draw = partial(
                    collect, parts.sampler, parts.task, self.algorithm, self.config, step, self.ranks, self.surplus
                )
                collected = parts.interrupts.unless_stopped(draw)
                parts.sampler.engine.sleep()
            stop = self.stop_signal()
        if collected is None or stop:
            if step - 1 > start:  # nothing has changed since then but what was prepared for this step
                strategy.load_state_dict(unprepared, strict=False)
                self.save(step - 1, rng)
                self.ranks.barrier()  # the first one writes, and a rank that ends before it counts as lost
            raise Interrupted(stop, step - 1)
        self.surplus = collected.surplus
        return collected, drift

    def prepare(self, step: int, collected: Collected, clock: Clock) -> Batch:
        """What is computed once, before the first update: log-probs, values, advantages, and which tokens count."""
        policy, algorithm, reference = self.policy, self.algorithm, self.reference
        rollouts, rows = collected.answers.rollouts, self.config.micro_batch_rows
        reference_log_probs = old = values = None
        groups = algorithm.shaped(sampling.groups_of(collected.answers, self.parts.sampler))
        with policy.model.gathered():
            if reference is not None and algorithm.bonus is not None:
                with clock("features"), reference.model.gathered():
                    solved = groups.correct.any(dim=1, keepdim=True).expand_as(groups.correct)  # others get no bonus
                    features = reference.features(policy.strategy, rollouts, rows, solved.flatten())
                    features = features.view(*groups.rewards.shape, -1)
                key = row_key("features", self.config.seed, step)
                groups = replace(groups, bonus=algorithm.bonus(groups, features, key))
            if reference is not None and algorithm.regularized:
                with clock("reference"), reference.model.gathered():
                    reference_log_probs = reference.log_probs(policy.strategy, rollouts, rows)
            if algorithm.needs_old_log_probs:
                with clock("old_log_probs"):
                    old = policy.replayed(rollouts)
            if policy.critic is not None:
                with clock("values"):
                    values = policy.critic.values(policy.strategy, rollouts, rows)
            return policy.batch(collected, groups, old, reference_log_probs, values, self.ranks)

    def update(self, batch: Batch) -> dict[str, float]:
        """Every inner epoch and mini-batch; returns the figures of the loss, averaged over these updates."""
        policy, ranks, updates = self.policy, self.ranks, []
        for mini_batch in policy.mini_batches(batch):
            counts = mini_batch.counts(self.parts.sampler.max_new_tokens, self.config.micro_batch_rows, ranks)
            sums: dict[str, float] = {}
            self.stepper.zero_grad()
            for micro_batch, sync in sharding.passes(self.fabric, self.learner, policy, mini_batch, ranks):
                with sync:
                    loss, shares = self.learner(micro_batch, counts)  # weighted sums over tokens: micro-batches add up
                    self.fabric.backward(loss * ranks.world)  # gradients are averaged over ranks; counts are global
                sums = {name: sums.get(name, 0.0) + value for name, value in shares.items()}
            figures = settled(ranks.sums(sums, self.fabric.device)) | {"grad_norm": 0.0, "moved_weights": 0.0}
            if counts.tokens:  # else no rank has a token that counts: no step is taken, and the loss is 0
                figures["grad_norm"] = policy.clip(self.stepper)
                before = policy.glimpse()
                self.stepper.step()
                figures["moved_weights"] = (policy.glimpse() != before).double().mean().item()
            updates.append(figures if self.algorithm.regularized else figures | {"kl": torch.nan})
        gap = large_gap(updates[0]["engine_gap"], self.algorithm.correction)  # before a step was taken
        if gap and policy.strategy.acts_on != "weights":  # whose gap is meant
            self.parts.progress.warn(gap)
        figures = {name: sum(figures[name] for figures in updates) / len(updates) for name in updates[0]}
        policy.strategy.adapt(figures)
        figures |= batch.figures() | {"learning_rate": float(self.schedule.get_last_lr()[0])}
        self.schedule.step()
        return figures

    def record(
        self, step: int, collected: Collected, figures: Mapping[str, float], drift: Mapping[str, float], clock: Clock
    ) -> None:
        """Shows and writes what the step was. Raises Ungraded."""
        parts, answers, strategy, model = self.parts, collected.answers, self.policy.strategy, self.policy.model
        explored = []
        with model.gathered():
            with clock("measure"):
                measured = sampling.rollout_measures(answers, strategy, model.table.detach())
            labels = {**parts.labels, "benchmark": "train", "step": step}
            rows = sampling.sample_rows(answers, strategy.vocabulary, labels)
            rows, means = self.ranks.merge(rows, {**measured, **collected.figures, **figures, **drift})
            if parts.recorder and self.config.checkpoint_due(step):
                where = answers.rollouts.explored.nonzero()[: sampling.STEP_ROWS]
                explored = step_rows(answers, where, strategy, model.table.detach())
        parts.progress.step(step, means["reward"], sum(row["n_tokens"] for row in rows) / sum(clock.seconds.values()))
        if parts.recorder:
            parts.recorder.step(step, rows, means, clock.seconds, [{"step": step, **row} for row in explored])
        # Before any checkpoint of the step: its update took answers without a verdict for wrong ones.
        sampling.refuse_ungraded(f"RL step {step}", means, parts.evaluation.max_errors)

    def save(self, step: int, rng: Mapping[str, Any]) -> None:
        """A checkpoint of RL step `step`, with the states of the random generators after it."""
        parts, policy, folder = self.parts, self.policy, self.parts.directory / "checkpoints"
        state = {"waiting": self.ranks.gather(self.surplus and join.packed(self.surplus)), "rng": rng, **policy.state()}
        state |= {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
        state, write = sharding.split(state, policy, self.ranks)
        if parts.recorder:
            checkpoints.save(folder, step, state | {"recorder": parts.recorder.kept(step)}, parts.keep, write)
        elif write:
            write(checkpoints.unfinished(folder, step))

    def evaluate_if_due(self, step: int, stop: int) -> None:
        """Samples every benchmark and writes its results, where that is due. Raises Interrupted where `stop` is a signal
        or one comes meanwhile, and Pruned where the run is a trial that a search gives up."""
        parts, policy = self.parts, self.policy
        if self.config.evaluation_due(step) and not stop:
            labels = {**parts.labels, "step": step}
            with self.watch.limited(), policy.model.gathered():  # ranks draw other batches, and not always as many
                parts.evaluation.sync(policy.model, step, policy.strategy)
                parts.evaluation.run(
                    parts.directory, labels, parts.progress, parts.recorder, parts.interrupts, self.ranks
                )
                parts.sampler.engine.sleep()
                if parts.reporter and 0 < step < self.config.steps and self.ranks.world == 1:
                    parts.reporter(step, parts.directory)
            stop = self.stop_signal()
        if stop:
            raise Interrupted(stop, step)

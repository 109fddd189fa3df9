"""The RL loop, from the first prompt to the last evaluation, top to bottom; build.py puts together what it walks through."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from lightning.fabric import Fabric

from ngrpo.algorithm.correction import large_gap, settled
from ngrpo.evaluation.benchmarks import solved
from ngrpo.evaluation.mechanism import explored_steps
from ngrpo.launched import launched
from ngrpo.ranks import Ranks
from ngrpo.rollout import join, sampling
from ngrpo.rollout.keys import row_key
from ngrpo.rundir import checkpoints
from ngrpo.rundir.interrupts import INTERRUPTS, Interrupted
from ngrpo.rundir.recorder import Clock
from ngrpo.rundir.schema import eval_samples
from ngrpo.training import sharding
from ngrpo.training.collect import Collected, collect
from ngrpo.training.parts import Parts
from ngrpo.training.policy import Batch
from ngrpo.training.watch import Watch


def run(parts: Parts, *, accelerator: str, devices: int, strategy: str, cpu_offload: bool = False) -> None:
    """Trains on so many devices, each with a process of its own; cpu_offload: of parts that stay in the CPU's memory."""
    told = launched()
    nodes = told.nodes if told else 1
    how = sharding.strategy(devices, accelerator == "gpu", cpu_offload) if strategy == "fsdp" else strategy
    fabric = Fabric(accelerator=accelerator, devices=devices // nodes, num_nodes=nodes, strategy=how)
    try:
        with INTERRUPTS.polled():
            fabric.launch(lambda fabric: watched(fabric, parts))
    finally:
        parts.progress.stop()
        parts.sampler.engine.close()
        if parts.recorder:
            parts.recorder.close()


def watched(fabric: Fabric, parts: Parts) -> None:
    """Trains beside the other ranks. Raises RankLost where one of them is gone, and what `train` raises."""
    ranks = Ranks(fabric.global_rank, fabric.world_size)
    with Watch(ranks, parts.interrupts) as watch:
        train(fabric, parts, ranks, watch)


def train(fabric: Fabric, parts: Parts, ranks: Ranks, watch: Watch) -> None:
    """From the newest checkpoint to the last RL step. Raises Interrupted where it was asked to stop, Pruned, NotFinite."""
    policy, recorder, config = parts.policy, parts.recorder, parts.policy.config
    saved = parts.directory / "checkpoints"
    learner = fabric.setup_module(policy)  # what sums gradients over ranks
    optimizer, schedule = policy.optimizer()  # of what is a parameter now
    stepper = fabric.setup_optimizers(optimizer)
    if parts.reference is not None and parts.reference.model is not policy.model:
        sharding.place(fabric, parts.reference)
    done, state = checkpoints.newest(saved) or (0, None)
    if recorder:
        recorder.restore(state.get("recorder") if state else {}, done)
    if state:
        sharding.restore(state, policy, optimizer)
        schedule.load_state_dict(state["schedule"])
        checkpoints.set_rng_state(state["rng"])
    waiting = join.unpacked(state["waiting"], ranks, fabric.device) if state else None  # groups for the next step
    if parts.matching:
        with watch.limited(), policy.model.gathered():
            parts.matching.settle(policy.model, ranks)
    parts.progress.start(done)

    def save(step: int, rng: Mapping[str, Any]) -> None:
        state = {"waiting": ranks.gather(waiting and join.packed(waiting)), "rng": rng, **policy.state()}
        state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        state, write = sharding.split(state, policy, ranks)
        if recorder:
            checkpoints.save(saved, step, state | {"recorder": recorder.kept(step)}, parts.keep, write)
        elif write:
            write(checkpoints.unfinished(saved, step))

    for step in range(done, config.steps + 1):
        last, due = step == config.steps, step % config.checkpoint_every == 0
        if step > done:  # the first turn only stands where the checkpoint stands, as an evaluation may be due there
            clock, rng = Clock(fabric.device), checkpoints.rng_state()
            unprepared = {name: value.clone() for name, value in policy.strategy.named_buffers()}
            with clock("prepare"):
                drift = parts.sampler.engine.sync(policy.model, step - 1, policy.strategy)
            with watch.limited():
                # A signal leaves the rollout anywhere, but not in the middle of putting weights back.
                with clock("rollout"), policy.model.gathered(), policy.strategy.perturbed(policy.model):
                    draw = partial(collect, parts.sampler, parts.task, policy.algorithm, config, step, ranks, waiting)
                    drawn = parts.interrupts.unless_stopped(draw)
                    parts.sampler.engine.sleep()
                stopped = max(ranks.gather(parts.interrupts.number))
            if stopped or drawn is None:  # nothing has changed since the step before but what was prepared for this one
                if step - 1 > done:
                    policy.strategy.load_state_dict(unprepared, strict=False)
                    save(step - 1, rng)
                    ranks.barrier()  # the first one writes, and a rank that ends before it counts as lost
                raise Interrupted(stopped, step - 1)
            with watch.limited():
                waiting, batch = drawn.surplus, prepare(parts, drawn, step, ranks, clock)
                with clock("update"):
                    figures = update(fabric, parts, batch, learner, stepper, ranks)
                    policy.strategy.adapt(figures)
                    figures |= batch.figures()
                    figures["learning_rate"] = float(schedule.get_last_lr()[0])
                    schedule.step()
            with policy.model.gathered():
                with clock("measure"):
                    measured = sampling.rollout_measures(drawn.answers, policy.strategy, policy.model.table.detach())
                figures = {**measured, **drawn.figures, **figures, **drift}
                record(parts, step, drawn, figures, ranks, clock, last or due)

        between = config.evaluate_before if step == 0 else config.eval_every > 0 and step % config.eval_every == 0
        stopped = max(ranks.gather(parts.interrupts.number))  # a signal that any rank has seen: all stop at one step
        if step > done and (last or due or between or stopped):
            save(step, checkpoints.rng_state())
        if (last or between) and not stopped:
            with watch.limited(), policy.model.gathered():  # ranks draw other batches, and not always as many
                evaluate(parts, step, ranks)
        if stopped := max(ranks.gather(parts.interrupts.number)):
            raise Interrupted(stopped, step)
    with policy.model.gathered():
        if recorder:
            recorder.model(policy.model, parts.sampler.prompts.tokenizer, dict(policy.strategy.named_parameters()))


def prepare(parts: Parts, drawn: Collected, step: int, ranks: Ranks, clock: Clock) -> Batch:
    """What is computed once, before the first update: log-probabilities, values, advantages, and which tokens count."""
    policy, rollouts, rows = parts.policy, drawn.answers.rollouts, parts.policy.config.micro_batch_rows
    reference = old = values = None
    groups = policy.algorithm.shaped(sampling.groups_of(drawn.answers, parts.sampler))
    with policy.model.gathered():
        if parts.reference is not None and policy.algorithm.bonus is not None:
            with clock("features"), parts.reference.model.gathered():
                wanted = groups.correct.any(dim=1, keepdim=True).expand_as(groups.correct)  # others get no bonus
                features = parts.reference.features(policy.strategy, rollouts, rows, wanted.flatten())
                features = features.view(*groups.rewards.shape, -1)
            key = row_key("features", policy.config.seed, step)
            groups = replace(groups, bonus=policy.algorithm.bonus(groups, features, key))
        if parts.reference is not None and policy.algorithm.regularized:
            with clock("reference"), parts.reference.model.gathered():
                reference = parts.reference.log_probs(policy.strategy, rollouts, rows)
        if policy.algorithm.needs_old_log_probs:
            with clock("old_log_probs"):
                old = policy.replayed(rollouts)
        if policy.critic is not None:
            with clock("values"):
                values = policy.critic.values(policy.strategy, rollouts, rows)
        return policy.batch(drawn, groups, old, reference, values, ranks)


def update(fabric: Fabric, parts: Parts, batch: Batch, learner: Any, stepper: Any, ranks: Ranks) -> dict[str, float]:
    """Every inner epoch and mini-batch; returns the figures of the loss, averaged over these updates."""
    policy, updates = parts.policy, []
    for mini_batch in policy.mini_batches(batch):
        counts, sums = mini_batch.counts(parts.sampler.max_new_tokens, policy.config.micro_batch_rows, ranks), {}
        stepper.zero_grad()
        for micro_batch, summing in sharding.passes(fabric, learner, policy, mini_batch, ranks):
            with summing:
                loss, seen = learner(micro_batch, counts)  # a sum of weighted tokens, so micro-batches just add up
                fabric.backward(loss * ranks.world)  # ranks' gradients are averaged, and the counts are global already
            sums = {name: sums.get(name, 0.0) + value for name, value in seen.items()}
        figures = settled(ranks.sums(sums, fabric.device)) | {"grad_norm": 0.0, "moved_weights": 0.0}
        if counts.tokens:  # else no rank has a token that counts: no step is taken, and the loss is 0
            figures["grad_norm"] = policy.clip(stepper)
            before = policy.glimpse()
            stepper.step()
            figures["moved_weights"] = (policy.glimpse() != before).double().mean().item()
        updates.append(figures if policy.algorithm.regularized else figures | {"kl": torch.nan})
    line = large_gap(updates[0]["engine_gap"], policy.algorithm.correction)  # before a step was taken
    if line and policy.strategy.acts_on != "weights":  # whose gap is meant
        parts.progress.warn(line)
    return {name: sum(figures[name] for figures in updates) / len(updates) for name in updates[0]}


def record(
    parts: Parts, step: int, drawn: Collected, figures: Mapping[str, float], ranks: Ranks, clock: Clock, explored: bool
) -> None:
    """Shows and writes what the step was; `explored`: also what exploration did at some decode steps."""
    answers, strategy, steps = drawn.answers, parts.policy.strategy, []
    labels = {**parts.labels, "benchmark": "train", "step": step}
    rows, means = ranks.merge(sampling.sample_rows(answers, strategy.vocabulary, labels), figures)
    parts.progress.step(step, means["reward"], sum(row["n_tokens"] for row in rows) / sum(clock.seconds.values()))
    if parts.recorder:
        if explored and len(where := sampling.explored_places(answers)):
            steps = explored_steps(step, answers, where, strategy, parts.policy.model)
        parts.recorder.step(step, rows, means, clock.seconds, steps)
    # Before any checkpoint of the step: its update took answers without a verdict for wrong ones.
    sampling.refuse_ungraded(f"RL step {step}", means, parts.evaluation.max_errors)


def evaluate(parts: Parts, step: int, ranks: Ranks) -> None:
    """Samples every benchmark, writes its results, and reports them where this run is a trial of a search."""

    def advance(benchmark: str, tokens: int) -> None:
        if tokens:
            parts.progress.batch(benchmark)
        if stopped := max(ranks.gather(parts.interrupts.number)):
            raise Interrupted(stopped, step)

    parts.progress.evaluation(step, parts.evaluation.batches())
    parts.evaluation.sync(parts.policy.model, step, parts.policy.strategy)
    for name, entry in parts.evaluation.run(parts.directory, {**parts.labels, "step": step}, advance, ranks):
        if parts.recorder:
            parts.recorder.result(name, step, entry)
    parts.sampler.engine.sleep()
    parts.progress.evaluated()
    if parts.reporter and 0 < step < parts.policy.config.steps and ranks.world == 1:
        parts.reporter(step, lambda name: solved(eval_samples(parts.directory, name, step)))

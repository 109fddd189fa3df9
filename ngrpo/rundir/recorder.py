"""What a run leaves on disk and on the screen, step by step: rows, samples, checkpoints, evaluations, progress.

It reads the policy and never changes a number of it, except where a checkpoint is restored.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import distributed

from ngrpo.evaluation import mechanism
from ngrpo.exploration.base import Exploration
from ngrpo.rollout.sampling import Evaluation, Sampler, refuse_ungraded, sample_rows, solved
from ngrpo.rundir import checkpoints, files, records
from ngrpo.rundir.progress import Progress
from ngrpo.training.measures import consumed

if TYPE_CHECKING:
    from ngrpo.training.policy import Outcome, Policy

STRATEGY_FILE = "exploration.safetensors"  # beside the model, where the strategy has parameters of its own
STEP_ROWS = 64  # explored steps of one RL step that samples/steps.parquet keeps


class Interrupted(Exception):
    """The run was asked to stop and did so after saving; `exit_code` is what the shell expects of that signal."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after RL step {step}; the same command continues")
        self.exit_code = 128 + number


class Interrupts:
    """Notes SIGTERM and Ctrl-C so that the running step can end in order; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.number = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number == number == signal.SIGINT:
            os._exit(130)
        self.number = number
        print(f"{signal.Signals(number).name}: saving after this step", file=sys.stderr)

    def agreed(self) -> int:
        """The signal that any rank has seen, so that all stop at the same step; 0 for none."""
        if not distributed.is_initialized():
            return self.number
        seen: list[int] = [0] * distributed.get_world_size()
        distributed.all_gather_object(seen, self.number)
        return max(seen)


@dataclass
class Recorder:
    """Keeps one run directory. `run` is None on every rank but the first, which then only takes part in the sampling."""

    run: records.RunDirectory | None
    directory: Path
    labels: Mapping[str, Any]
    evaluation: Evaluation
    evaluator: Sampler
    steps: int
    eval_every: int
    evaluate_before: bool
    checkpoint_every: int
    progress: Progress
    interrupts: Interrupts
    judge: Callable[[int, Callable], None] | None = None  # of a search: may end the run

    def at(self, policy: "Policy", step: int, outcome: "Outcome | None") -> None:
        """Called once the policy stands at RL step `step`; `outcome` is that step's, None if it was not just taken."""
        if outcome is not None:
            self._record(policy, outcome)
        last = step == self.steps
        evaluates = last or (self.evaluate_before if step == 0 else self.eval_every > 0 and step % self.eval_every == 0)
        stopped = self.interrupts.agreed()
        due = last or evaluates or stopped or step % self.checkpoint_every == 0
        if self.run and outcome is not None and due:
            checkpoints.save(self.directory / "checkpoints", step, policy.state())
        if not stopped and evaluates:
            self._evaluate(policy, step)
        if stopped := self.interrupts.agreed():
            raise Interrupted(stopped, step)
        if self.run and last:
            write_hub_folder(policy, self.directory / "hf")

    def restore(self) -> tuple[int, dict[str, Any] | None]:
        """The RL step and state of the newest checkpoint, (0, None) without one; rows after it are dropped."""
        found = checkpoints.newest(self.directory / "checkpoints") if self.directory.exists() else None
        step, state = found if found else (0, None)
        if self.run:
            for name in ("metrics", "timings"):
                self.run.drop_rows_after(name, step)
            self._drop_step_samples(step)
        return step, state

    def _record(self, policy: "Policy", outcome: "Outcome") -> None:
        labels = {**self.labels, "benchmark": "train", "step": outcome.step}
        rows = sample_rows(outcome.answers, policy.strategy.vocabulary.stops, labels)
        rows = [row for part in _gathered(rows) for row in part]
        metrics = _mean_over_ranks(outcome.metrics)
        tokens = sum(row["n_tokens"] for row in rows)
        seconds = sum(outcome.seconds.values())
        self.progress.step(outcome.step, metrics["reward"], tokens / seconds)
        if self.run:
            self._write(policy, outcome, rows, metrics)
        # Before any checkpoint of this step: its update took answers without a verdict for wrong.
        refuse_ungraded(f"RL step {outcome.step}", metrics, self.evaluation.max_errors)

    def _write(self, policy: "Policy", outcome: "Outcome", rows: list[dict[str, Any]], metrics: dict) -> None:
        assert self.run is not None
        tokens = sum(row["n_tokens"] for row in rows)
        seconds = sum(outcome.seconds.values())
        self.run.append_row("metrics", {"step": outcome.step, **metrics})
        for logger in policy.loggers:
            logger.log_metrics(metrics, step=outcome.step)
        timings = {f"seconds_{name}": value for name, value in outcome.seconds.items()}
        rates = {"tokens": tokens, "tokens_per_second": tokens / seconds, "seconds": seconds}
        rates["rollout_tokens_per_second"] = tokens / outcome.seconds["rollout"]
        self.run.append_row("timings", {"step": outcome.step, **rates, **timings})
        records.write_samples(rows, records.train_samples(self.directory, outcome.step))
        if outcome.step % self.checkpoint_every == 0 or outcome.step == self.steps:
            self._record_steps(policy, outcome)

    def _record_steps(self, policy: "Policy", outcome: "Outcome") -> None:
        fresh = step_rows(policy, outcome)
        if fresh:
            files.write_parquet(self._step_samples() + fresh, self.directory / "samples" / "steps.parquet")

    def _step_samples(self) -> list[dict[str, Any]]:
        import pyarrow.parquet

        path = self.directory / "samples" / "steps.parquet"
        return pyarrow.parquet.read_table(path).to_pylist() if path.exists() else []

    def _drop_step_samples(self, step: int) -> None:
        rows = self._step_samples()
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) < len(rows):
            path = self.directory / "samples" / "steps.parquet"
            files.write_parquet(kept, path) if kept else path.unlink()

    def _evaluate(self, policy: "Policy", step: int) -> None:
        table = policy.model.table.detach()
        # Bound anew, on the model's device: what an evaluation sees must not depend on which evaluations came before.
        strategy = self.evaluator.strategy
        strategy.bind(strategy.vocabulary, table)
        strategy.prepare(table, step, policy.model.head.detach())
        if type(strategy) is type(policy.strategy):
            strategy.load_state_dict(trained_parameters(policy.strategy), strict=False)
        ranks = (policy.global_rank, policy.world_size)

        def advance(benchmark: str, tokens: int) -> None:
            self.progress.batch(benchmark, tokens)
            if self.interrupts.number and policy.world_size == 1:
                raise Interrupted(self.interrupts.number, step)

        self.progress.evaluation(step, self.evaluation.batches())
        labels = {**self.labels, "step": step}
        barrier = distributed.barrier if policy.world_size > 1 else lambda: None
        for name, entry in self.evaluation.run(self.evaluator, self.directory, labels, advance, ranks, barrier):
            if self.run:
                self.run.record_result(name, step, entry)
        self.progress.evaluated()
        if self.judge is not None and 0 < step < self.steps and policy.world_size == 1:
            self.judge(step, lambda benchmark: self._solved(benchmark, step))

    def _solved(self, benchmark: str, step: int) -> tuple[int, Any]:
        correct = solved(records.eval_samples(self.directory, benchmark, step))
        return correct.shape[1], correct.sum(axis=1)


def step_rows(policy: "Policy", outcome: "Outcome") -> list[dict[str, Any]]:
    """What exploration did at the first few explored steps of an RL step."""
    answers, table = outcome.answers, policy.model.table.detach()
    where = (answers.rollouts.steps.explored & consumed(answers.rollouts)).nonzero()[:STEP_ROWS]
    if not len(where):
        return []
    fed = mechanism.fed_vectors(answers.rollouts, where, policy.strategy, table)
    return [{"step": outcome.step, **row} for row in mechanism.step_rows(answers, where, fed, table)]


def trained_parameters(strategy: Exploration) -> dict[str, torch.Tensor]:
    """What the strategy itself has learned, by name; most have nothing to learn."""
    return {name: value.detach().cpu().contiguous() for name, value in strategy.named_parameters()}


def write_hub_folder(policy: "Policy", target: Path) -> None:
    """The model and its tokenizer as a directory for from_pretrained; it appears whole or not at all."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    policy.model.save(partial)
    policy.sampler.tokenizer.save_pretrained(partial)
    if learned := trained_parameters(policy.strategy):
        save_file(learned, partial / STRATEGY_FILE)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)


def _gathered(value: Any) -> list[Any]:
    """`value` of every rank, in rank order."""
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def _mean_over_ranks(figures: Mapping[str, float]) -> dict[str, float]:
    every = _gathered(dict(figures))
    return {name: sum(part[name] for part in every) / len(every) for name in figures}

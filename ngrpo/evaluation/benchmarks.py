"""Benchmarks to files of samples and entries of results.json: batch by batch, so that an interrupted evaluation goes on."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch

from ngrpo.evaluation import passk
from ngrpo.evaluation.first_look import warnings
from ngrpo.evaluation.table import solved
from ngrpo.exploration.base import Exploration
from ngrpo.models.causal import CausalModel
from ngrpo.ranks import ALONE, Ranks
from ngrpo.rollout.sampling import Sampler, answer, path_column, refuse_ungraded, sample_rows
from ngrpo.rundir import files
from ngrpo.rundir.directory import RunDirectory
from ngrpo.rundir.interrupts import INTERRUPTS, Interrupted
from ngrpo.rundir.progress import Progress
from ngrpo.rundir.recorder import Recorder, write_samples
from ngrpo.rundir.schema import SAMPLE_TYPES, Unreadable, eval_samples, file_digest, read_results, read_run
from ngrpo.tasks.base import OUTCOMES, UNGRADED, Task


def batch_plan(problems: int, n: int, rows_per_batch: int) -> list[tuple[int, int]]:
    """Half-open ranges of problems that are sampled together: fixed up front, so that a resumed evaluation repeats it."""
    width = max(1, rows_per_batch // n)
    return [(start, min(start + width, problems)) for start in range(0, problems, width)]


def evaluate_benchmark(
    sampler: Sampler,
    task: Task,
    plan: Sequence[tuple[int, int]],
    n: int,
    target: Path,
    labels: Mapping[str, Any],
    ranks: Ranks = ALONE,
) -> Iterator[int]:
    """Samples a benchmark batch by batch and yields the tokens of each, 0 for one that is on disk and not drawn again.

    Every batch of the plan becomes a file beside `target`. Ranks draw one each and yield as often as one another: there
    they may agree on something. Row keys are (seed, benchmark, problem, sample), so before and after training share their
    random numbers.
    """
    whole = target.exists()
    for index in range(ranks.rank, -(-len(plan) // ranks.world) * ranks.world, ranks.world):
        path = partial_file(target, index)
        if whole or index >= len(plan) or path.exists():
            yield 0
            continue
        start, end = plan[index]
        problems = [task.problems[i] for i in range(start, end)]
        identity = (labels["seed"], labels["benchmark"])
        answers = answer(sampler, task, problems, [(*identity, p.id, i) for p in problems for i in range(n)])
        write_samples(sample_rows(answers, sampler.strategy.vocabulary, labels), path)
        yield int(answers.rollouts.lengths.sum())


def partial_file(target: Path, index: int) -> Path:
    """Where batch `index` of an unfinished evaluation waits for the others."""
    return target.parent / "partial" / f"{target.stem}-{index}.parquet"


def discard_damaged(target: Path, plan: Sequence[tuple[int, int]], n: int, digest: str | None = None) -> None:
    """Takes away the samples of a benchmark that a crash or a bad disk has spoilt; they are drawn again, the same.

    digest: of the whole file, where it is known.
    """
    sizes = {target: plan[-1][1]} | {
        partial_file(target, index): end - start for index, (start, end) in enumerate(plan)
    }
    for path, problems in sizes.items():
        if not path.exists():
            continue
        table = files.read_table(path)
        changed = path == target and digest is not None and file_digest(path) != digest
        if (
            changed
            or table is None
            or table.num_rows != problems * n
            or not SAMPLE_TYPES.keys() <= {*table.column_names}
        ):
            print(f"note: {path} is damaged; its samples are drawn again")
            path.unlink()


def merge(target: Path, plan: Sequence[tuple[int, int]]) -> None:
    """All batches of the plan to one file; the parts go once it is there. A finished evaluation is left as it is."""
    parts = [partial_file(target, index) for index in range(len(plan))]
    if not target.exists():
        table = pyarrow.concat_tables([pyarrow.parquet.read_table(part) for part in parts])
        files.write_table(table, target)
    for part in parts:
        part.unlink(missing_ok=True)
    if parts and parts[0].parent.exists() and not any(parts[0].parent.iterdir()):
        parts[0].parent.rmdir()


def results_of(target: Path) -> dict[str, Any]:
    """The entry of results.json for one file of benchmark samples.

    `same_thinking` is there where it is above 0: the share of problems all of whose samples explored the same tokens, so
    that they are one thought and not n.
    """
    table = pyarrow.parquet.read_table(target, columns=["outcome", "token_ids", "explored_steps"])
    correct = solved(target)
    n, outcomes = correct.shape[1], table["outcome"].to_pylist()
    entry = passk.summarize(correct.astype(int), outcomes={name: outcomes.count(name) for name in OUTCOMES})
    pairs = zip(table["token_ids"].to_pylist(), table["explored_steps"].to_pylist(), strict=True)
    thoughts = [tuple(ids[:explored]) for ids, explored in pairs]
    groups = [set(thoughts[start : start + n]) for start in range(0, len(thoughts), n)]
    same = sum(len(group) == 1 and group != {()} for group in groups) / len(groups)
    return entry | ({"same_thinking": same} if n > 1 and same else {})


def ungraded(target: Path) -> dict[str, float]:
    """The share of each outcome that is no verdict, in a file of benchmark samples."""
    outcomes = pyarrow.parquet.read_table(target, columns=["outcome"])["outcome"].to_pylist()
    return {name: outcomes.count(name) / len(outcomes) for name in UNGRADED}


def grade_again(target: Path, task: Task) -> None:
    """Another try for the answers of a file of benchmark samples that have no verdict; the others stay as they are."""
    rows = pyarrow.parquet.read_table(target).to_pylist()
    open_ones = [row for row in rows if row["outcome"] in UNGRADED]
    problems = {problem.id: problem for problem in task.problems}
    scores = task.score([problems[row["problem_id"]] for row in open_ones], [row["completion"] for row in open_ones])
    for row, score in zip(open_ones, scores, strict=True):
        row |= {"outcome": score.outcome, "reward": float(score.reward)}
        row |= {"extracted": score.extracted, "solution_path": path_column(score)}
    write_samples(rows, target)


def written_digests(directory: Path) -> dict[str, str]:
    """What the sample files of an unfinished run were when they were written, by their paths; {} where no run is."""
    try:
        return dict(read_run(directory, trust_changed=True).content.get("checksums", {}))
    except Unreadable:
        return {}


@dataclass(frozen=True)
class Evaluation:
    """Benchmarks with the sampler and the settings that they are sampled with; n samples of each problem.

    rows_per_batch: answers that are drawn together. max_errors: the share of a benchmark's answers that may have no verdict.
    """

    sampler: Sampler
    benchmarks: Mapping[str, Task]
    n: int
    rows_per_batch: int
    problems: int | None = None
    max_errors: float = 1.0
    looked_at: set[str] = field(default_factory=set)  # benchmarks whose first results were checked for a wrong setting

    def plan(self, name: str) -> list[tuple[int, int]]:
        """Which problems of a benchmark are sampled together."""
        size = len(self.benchmarks[name].problems)
        return batch_plan(min(size, self.problems or size), self.n, self.rows_per_batch)

    def batches(self) -> int:
        """Batches of all benchmarks together."""
        return sum(len(self.plan(name)) for name in self.benchmarks)

    def sync(self, model: CausalModel, step: int, trained: Exploration | None = None) -> None:
        """From now on the benchmarks are answered by these weights, and by the parameters of `trained`, where it is a
        strategy of the same kind. Bound anew: what an evaluation sees must not depend on which ones came before."""
        strategy = self.sampler.strategy.to(model.head.device)
        with model.gathered():
            strategy.bind(strategy.vocabulary, model.table.detach())
        self.sampler.engine.sync(model, step, strategy)
        if trained is not None and type(strategy) is type(trained):
            strategy.load_state_dict(dict(trained.named_parameters()), strict=False)

    def warn(self, name: str, target: Path) -> None:
        """Says aloud, at a benchmark's first evaluation, where hardly an answer was graded, and why that may be."""
        if name not in self.looked_at:
            for line in warnings(target, self.benchmarks[name], self.sampler):
                print(f"\nWARNING: {line}\n", file=sys.stderr)
        self.looked_at.add(name)

    @torch.no_grad()
    def run(
        self,
        directory: Path,
        labels: Mapping[str, Any],
        advance: Callable[[str, int], None],
        ranks: Ranks = ALONE,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Benchmark and its entry of results.json, one after the other. `advance(benchmark, tokens)`: after every batch, on
        all ranks at once; 0 tokens where this one drew none.

        Where too many answers have no verdict, they are graded once more; a benchmark that then still has too many is
        not yielded, and Ungraded raised after the others. Its samples are kept, and graded again by the next run.
        """
        targets = {name: eval_samples(directory, name, labels["step"]) for name in self.benchmarks}
        if ranks.rank == 0:
            known = written_digests(directory)
            for name, target in targets.items():
                digest = known.get(target.relative_to(directory).as_posix())
                discard_damaged(target, self.plan(name), self.n, digest)
        ranks.barrier()
        for name, task in self.benchmarks.items():
            marked = {**labels, "benchmark": name}
            for tokens in evaluate_benchmark(self.sampler, task, self.plan(name), self.n, targets[name], marked, ranks):
                advance(name, tokens)
        ranks.barrier()
        if ranks.rank == 0:
            for name, target in targets.items():
                merge(target, self.plan(name))
                if sum(ungraded(target).values()) > self.max_errors:
                    grade_again(target, self.benchmarks[name])
                self.warn(name, target)
        ranks.barrier()
        shares = {name: ungraded(target) for name, target in targets.items()}
        for name, target in targets.items():
            if sum(shares[name].values()) <= self.max_errors:
                yield name, results_of(target)
        for name in targets:
            refuse_ungraded(f"{name} at RL step {labels['step']}", shares[name], self.max_errors)


def sample(run: RunDirectory, labels: Mapping[str, Any], evaluation: Evaluation, model: CausalModel, step: int) -> None:
    """Draws every batch of an evaluation that is not there yet and writes results.json. Raises Interrupted, Ungraded."""
    progress, recorder = Progress(step), Recorder(run)

    def advance(benchmark: str, tokens: int) -> None:
        if tokens:
            progress.batch(benchmark)
        if INTERRUPTS.number:
            raise Interrupted(INTERRUPTS.number, step)

    try:
        read_results(run.path)
    except Unreadable as error:
        print(f"note: {error}; made anew from the samples")
        (run.path / "results.json").unlink()
    progress.bars.start()
    try:
        progress.evaluation(step, evaluation.batches())
        evaluation.sampler.engine.sync(model, step, evaluation.sampler.strategy)
        with INTERRUPTS.polled():
            for name, entry in evaluation.run(run.path, {**labels, "step": step}, advance):
                recorder.result(name, step, entry)
    finally:
        progress.stop()
        evaluation.sampler.engine.close()

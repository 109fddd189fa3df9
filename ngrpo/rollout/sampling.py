"""Problems to answered, scored rollouts, and benchmarks to sample rows: what training and evaluation share.

It does not know how a model is trained.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ngrpo.algorithm.groups import Groups
from ngrpo.evaluation import passk
from ngrpo.exploration.base import Exploration
from ngrpo.models.causal import CausalModel, encode
from ngrpo.models.prompting import PLAIN, Prompting
from ngrpo.rollout.engines.transformers import generate
from ngrpo.rollout.keys import row_keys
from ngrpo.rollout.records import Rollouts, join_rollouts
from ngrpo.rundir import files, records
from ngrpo.tasks.base import OUTCOMES, UNGRADED, Problem, Score, Subset, Task


class Ungraded(RuntimeError):
    """More answers have no verdict than may: they would count as wrong, and the score would be too low."""

    exit_code = 3


@dataclass(frozen=True)
class Sampler:
    """Everything that turns a prompt into a completion."""

    model: CausalModel
    tokenizer: PreTrainedTokenizerBase
    strategy: Exploration
    max_new_tokens: int
    prompting: Prompting = PLAIN

    @property
    def prompt_room(self) -> int:
        """Tokens that a prompt may have, so that the longest answer still fits the model's context."""
        return self.model.model.config.max_position_embeddings - self.max_new_tokens

    def fits(self, problem: Problem) -> bool:
        """Whether a problem's prompt leaves room for the longest answer."""
        return 0 < len(self.asking(problem).encode(self.tokenizer, problem.prompt)) <= self.prompt_room

    def asking(self, problem: Problem) -> Prompting:
        """How a problem is put to the model: one that is a whole prompt already, as it is."""
        return self.prompting if problem.is_message else PLAIN


@dataclass(frozen=True)
class Answers:
    """Completions of P problems, G each, rows of one problem together: B = P * G texts and scores for `rollouts`."""

    problems: Sequence[Problem]
    rollouts: Rollouts
    completions: Sequence[str]
    scores: Sequence[Score]


def answer(sampler: Sampler, task: Task, problems: Sequence[Problem], identities: Sequence[tuple]) -> Answers:
    """Completions of P problems for B = P * G rows, each drawn from the key of its identity, and their scores.

    Raises ValueError where a prompt leaves no room for the answer or the model's logits are not finite.
    """
    device = sampler.model.table.device
    texts = [problem.prompt for problem in problems]
    prompts, mask = encode(sampler.tokenizer, texts, sampler.prompt_room, sampler.asking(problems[0]))
    keys = row_keys(identities, device)
    rollouts = generate(
        sampler.model, sampler.strategy, prompts.to(device), mask.to(device), keys, sampler.max_new_tokens
    )
    ids = [row[:length] for row, length in zip(rollouts.steps.tokens.tolist(), rollouts.lengths.tolist(), strict=True)]
    completions = sampler.tokenizer.batch_decode(ids, skip_special_tokens=True)
    every = [problem for problem in problems for _ in range(rollouts.group_size)]
    return Answers(problems, rollouts, completions, task.score(every, completions))


def fitting(sampler: Sampler, task: Task) -> Task:
    """The task without the messages that are too long for the model to answer; itself where there are none.

    Raises ValueError where nothing is left.
    """
    if not task.problems[0].is_message:
        return task
    kept = [problem for problem in task.problems if sampler.fits(problem)]
    if not kept:
        raise ValueError(f"{task.name}: no prompt leaves room for {sampler.max_new_tokens} tokens; set max_new_tokens")
    return task if len(kept) == len(task.problems) else Subset(task, kept)


def note_left_out(run: records.RunDirectory | None, tasks: Mapping[str, Task]) -> None:
    """Tells and puts in run.json how many problems `fitting` left out, for the tasks that lost some."""
    counts = {name: task.left_out for name, task in tasks.items() if isinstance(task, Subset)}
    if run and counts:
        told = ", ".join(f"{count} of {name}" for name, count in counts.items())
        print(f"note: prompts that are too long for the model are left out: {told}")
        run.update(left_out=counts)


def join(draws: Sequence[Answers], groups: Tensor) -> Answers:
    """The groups numbered `groups` of several draws, counted through, as one batch."""
    rollouts = join_rollouts([draw.rollouts for draw in draws])
    size = rollouts.group_size
    rows = (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()
    problems = [problem for draw in draws for problem in draw.problems]
    texts = [text for draw in draws for text in draw.completions]
    scores = [score for draw in draws for score in draw.scores]
    return Answers(
        [problems[i] for i in groups.tolist()],
        replace(rollouts.rows(rows), group_size=size),
        [texts[i] for i in rows.tolist()],
        [scores[i] for i in rows.tolist()],
    )


def truncated(rollouts: Rollouts, strategy: Exploration) -> Tensor:
    """(B,) bool: answers that do not end with a stop."""
    stops = torch.tensor(strategy.vocabulary.stops, device=rollouts.mask.device)
    return ~torch.isin(rollouts.steps.tokens.gather(1, rollouts.lengths[:, None] - 1).squeeze(1), stops)


def groups_of(answers: Answers, sampler: Sampler) -> Groups:
    """What algorithms may know of the answers of a batch."""
    rollouts, size = answers.rollouts, answers.rollouts.group_size
    device = rollouts.mask.device
    return Groups(
        rewards=torch.tensor([s.reward for s in answers.scores], dtype=torch.float64, device=device).view(-1, size),
        correct=torch.tensor([s.outcome == "correct" for s in answers.scores], device=device).view(-1, size),
        lengths=rollouts.lengths.view(-1, size),
        truncated=truncated(rollouts, sampler.strategy).view(-1, size),
        log_probs=rollouts.log_probs.double().sum(dim=1).view(-1, size),
        limit=sampler.max_new_tokens,
    )


def sample_rows(answers: Answers, stops: Sequence[int], labels: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per completion, with the columns of records.SAMPLE_COLUMNS.

    labels: run, benchmark, exploration, algorithm, step, seed.
    """
    rollouts = answers.rollouts
    tokens, lengths = rollouts.steps.tokens.tolist(), rollouts.lengths.tolist()
    log_probs = rollouts.log_probs.double().sum(dim=1).tolist()
    entropies = (rollouts.entropy.double().sum(dim=1) / rollouts.lengths).tolist()
    explored = (rollouts.steps.explored & rollouts.mask).sum(dim=1).tolist()
    rows = []
    for row, (text, score) in enumerate(zip(answers.completions, answers.scores, strict=True)):
        problem = answers.problems[row // rollouts.group_size]
        ids = tokens[row][: lengths[row]]
        values = {
            **labels,
            "problem_id": problem.id,
            "sample_index": row % rollouts.group_size,
            "prompt": problem.prompt,
            "completion": text,
            "token_ids": ids,
            "n_tokens": lengths[row],
            "finish_reason": "stop" if ids[-1] in stops else "length",
            "gold": problem.gold,
            "extracted": score.extracted,
            "solution_path": score.solution_path,
            "outcome": score.outcome,
            "reward": float(score.reward),
            "logprob_sum": log_probs[row],
            "entropy_mean": entropies[row],
            "explored_steps": explored[row],
        }
        rows.append({name: values[name] for name in records.SAMPLE_COLUMNS})
    return rows


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
    ranks: tuple[int, int] = (0, 1),
) -> Iterator[int]:
    """Samples a benchmark batch by batch and yields the tokens of each; batches on disk are not drawn again.

    Every batch of the plan becomes a file beside `target`; with ranks = (rank, world) this process draws its share. Row
    keys are (seed, benchmark, problem, sample), so before and after training share their random numbers.
    """
    for index, (start, end) in enumerate(plan):
        path = partial_file(target, index)
        if index % ranks[1] != ranks[0] or target.exists() or path.exists():
            continue
        problems = [task.problems[i] for i in range(start, end)]
        identity = (labels["seed"], labels["benchmark"])
        answers = answer(sampler, task, problems, [(*identity, p.id, i) for p in problems for i in range(n)])
        records.write_samples(sample_rows(answers, sampler.strategy.vocabulary.stops, labels), path)
        yield int(answers.rollouts.lengths.sum())


def partial_file(target: Path, index: int) -> Path:
    """Where batch `index` of an unfinished evaluation waits for the others."""
    return target.parent / "partial" / f"{target.stem}-{index}.parquet"


def merge(target: Path, plan: Sequence[tuple[int, int]]) -> None:
    """All batches of the plan to one file; the parts go once it is there. A finished evaluation is left as it is."""
    parts = [partial_file(target, index) for index in range(len(plan))]
    if not target.exists():
        table = pyarrow.concat_tables([pyarrow.parquet.read_table(part) for part in parts])
        files.write_atomically(target, lambda file: pyarrow.parquet.write_table(table, file))
    for part in parts:
        part.unlink(missing_ok=True)
    if parts and parts[0].parent.exists() and not any(parts[0].parent.iterdir()):
        parts[0].parent.rmdir()


def solved(target: Path) -> np.ndarray:
    """(P, n) bool, whether each sample of a file of benchmark samples is correct."""
    table = pyarrow.parquet.read_table(target, columns=["sample_index", "outcome"])
    n = int(max(table["sample_index"].to_pylist())) + 1
    return (np.array(table["outcome"].to_pylist()) == "correct").reshape(-1, n)


def results_of(target: Path) -> dict[str, Any]:
    """The entry of results.json for one file of benchmark samples.

    `same_thinking` is there where it is above 0: the share of problems all of whose samples explored the same tokens, so
    that they are one thought and not n.
    """
    table = pyarrow.parquet.read_table(target, columns=["outcome", "token_ids", "explored_steps"])
    correct = solved(target)
    n, outcomes = correct.shape[1], table["outcome"].to_pylist()
    entry = passk.summarise(correct.astype(int), outcomes={name: outcomes.count(name) for name in OUTCOMES})
    pairs = zip(table["token_ids"].to_pylist(), table["explored_steps"].to_pylist(), strict=True)
    thoughts = [tuple(ids[:explored]) for ids, explored in pairs]
    groups = [set(thoughts[start : start + n]) for start in range(0, len(thoughts), n)]
    same = sum(len(group) == 1 and group != {()} for group in groups) / len(groups)
    return entry | ({"same_thinking": same} if n > 1 and same else {})


def ungraded(target: Path) -> dict[str, float]:
    """The share of each outcome that is no verdict, in a file of benchmark samples."""
    outcomes = pyarrow.parquet.read_table(target, columns=["outcome"])["outcome"].to_pylist()
    return {name: outcomes.count(name) / len(outcomes) for name in UNGRADED}


def refuse_ungraded(where: str, shares: Mapping[str, float], limit: float) -> None:
    """Raises Ungraded where the shares of answers without a verdict, by outcome, add up to more than `limit`."""
    shares = {name: shares[name] for name in UNGRADED}
    if sum(shares.values()) > limit:
        told = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
        fix = "the same command tries again, a higher grading.max_errors lets them count as wrong"
        raise Ungraded(f"{where}: too many answers without a verdict ({told}), at most {100 * limit:g} % may be; {fix}")


def grade_again(target: Path, task: Task) -> None:
    """Another try for the answers of a file of benchmark samples that have no verdict; the others stay as they are."""
    rows = pyarrow.parquet.read_table(target).to_pylist()
    open_ones = [row for row in rows if row["outcome"] in UNGRADED]
    problems = {problem.id: problem for problem in task.problems}
    scores = task.score([problems[row["problem_id"]] for row in open_ones], [row["completion"] for row in open_ones])
    for row, score in zip(open_ones, scores, strict=True):
        row |= {"outcome": score.outcome, "reward": float(score.reward)}
        row |= {"extracted": score.extracted, "solution_path": score.solution_path}
    records.write_samples(rows, target)


@dataclass(frozen=True)
class Evaluation:
    """Benchmarks with the settings under which they are sampled: one method runs them all.

    max_errors: the share of a benchmark's answers that may have no verdict.
    """

    benchmarks: Mapping[str, Task]
    n: int
    rows_per_batch: int
    problems: int | None = None
    max_errors: float = 1.0

    def plan(self, name: str) -> list[tuple[int, int]]:
        """The batch plan of one benchmark."""
        size = len(self.benchmarks[name].problems)
        return batch_plan(min(size, self.problems or size), self.n, self.rows_per_batch)

    def batches(self) -> int:
        """Batches of all benchmarks together."""
        return sum(len(self.plan(name)) for name in self.benchmarks)

    @torch.no_grad()
    def run(
        self,
        sampler: Sampler,
        directory: Path,
        labels: Mapping[str, Any],
        advance: Callable[[str, int], None],
        ranks: tuple[int, int] = (0, 1),
        barrier: Callable[[], object] = lambda: None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Benchmark and its entry of results.json, one after the other. `advance(benchmark, tokens)`: after every batch.

        Where too many answers have no verdict, they are graded once more; a benchmark that then still has too many is
        not yielded, and Ungraded raised after the others. Its samples are kept, and graded again by the next run.
        """
        targets = {name: records.eval_samples(directory, name, labels["step"]) for name in self.benchmarks}
        for name, task in self.benchmarks.items():
            marked = {**labels, "benchmark": name}
            for tokens in evaluate_benchmark(sampler, task, self.plan(name), self.n, targets[name], marked, ranks):
                advance(name, tokens)
        barrier()
        if ranks[0] == 0:
            for name, target in targets.items():
                merge(target, self.plan(name))
                if sum(ungraded(target).values()) > self.max_errors:
                    grade_again(target, self.benchmarks[name])
        barrier()
        shares = {name: ungraded(target) for name, target in targets.items()}
        for name, target in targets.items():
            if sum(shares[name].values()) <= self.max_errors:
                yield name, results_of(target)
        for name in targets:
            refuse_ungraded(f"{name} at RL step {labels['step']}", shares[name], self.max_errors)

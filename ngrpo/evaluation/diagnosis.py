"""Answers to the same problems under several strategies that share their random numbers, and what was fed on the way.

Batch by batch and resumable.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from transformers import PreTrainedTokenizerBase

from ngrpo.evaluation import mechanism
from ngrpo.evaluation.benchmarks import batch_plan, merge, partial_file
from ngrpo.models.causal import CausalModel
from ngrpo.rollout.keys import row_key
from ngrpo.rollout.sampling import Sampler, answer, sample_rows
from ngrpo.rundir import files
from ngrpo.rundir.progress import Progress
from ngrpo.rundir.recorder import write_samples
from ngrpo.rundir.schema import checked_name
from ngrpo.targets import SettingsError
from ngrpo.tasks.base import Problem, Task

STEP_ROWS = 48  # explored steps of one batch that are kept
WARM_UP = 4  # tokens of an answer that is not timed: the first call of a strategy pays for what later ones find ready
LISTED = 12  # frequent anchors whose neighbors are listed, where they are ordinary tokens


@dataclass(frozen=True)
class Draw:
    """What is sampled: P problems of a task, n answers of `model` to each under every strategy. Files go to `directory`."""

    model: CausalModel
    task: Task
    problems: Sequence[Problem]
    n: int
    rows_per_batch: int
    seed: int
    directory: Path

    @property
    def plan(self) -> list[tuple[int, int]]:
        """Ranges of problems that are sampled together, the same for every strategy."""
        return batch_plan(len(self.problems), self.n, self.rows_per_batch)

    def batch(self, index: int) -> Sequence[Problem]:
        """The problems of one range of the plan."""
        start, end = self.plan[index]
        return self.problems[start:end]

    def samples(self, strategy: str) -> Path:
        """The file of a strategy's answers."""
        return self.directory / "samples" / f"{checked_name(strategy)}.parquet"

    def part(self, strategy: str, index: int, kind: str) -> Path:
        """Where the steps (`parquet`) or the timing (`json`) of a batch wait for the others; the timing comes last."""
        return self.directory / "parts" / f"{strategy}-{index}.{kind}"


def chosen_problems(task: Task, most: int, seed: int) -> list[Problem]:
    """At most so many problems of a task, drawn anew by every seed, in the order of the task."""
    order = np.random.default_rng(row_key("diagnose", seed) % 2**63).permutation(len(task.problems))[:most]
    return [task.problems[at] for at in sorted(order.tolist())]


def identities(draw: Draw, problems: Sequence[Problem]) -> list[tuple]:
    """Row identities of a batch. No strategy is in them: two strategies answer with the same random numbers."""
    return [(draw.seed, draw.task.name, p.id, i) for p in problems for i in range(draw.n)]


@torch.no_grad()
def sample(draw: Draw, samplers: Mapping[str, Sampler], tokens: Sequence[int]) -> None:
    """Draws every batch that is not there yet, strategies in turn, so that noise of the machine meets them all, and writes
    the files that last. tokens: whose neighbors are listed, besides those of the most frequent anchors."""
    batches = [(name, index) for index in range(len(draw.plan)) for name in samplers]
    missing = [(name, index) for name, index in batches if not _is_drawn(name, draw, index)]
    progress = Progress()
    progress.bars.start()
    try:
        count = progress.count("sampling", len(batches), done=len(batches) - len(missing))
        if missing:
            _warm_up(samplers, draw)
        for name, index in missing:
            _batch(name, samplers[name], draw, index)
            count.advance(name)
    finally:
        progress.stop()
    _finish(draw, next(iter(samplers.values())), list(samplers), tokens)


def _finish(draw: Draw, sampler: Sampler, strategies: Sequence[str], tokens: Sequence[int]) -> None:
    """All batches to the files that last: samples/, steps and neighbors (parquet), timings.csv."""
    table, strategy, words = draw.model.table.detach(), sampler.strategy, sampler.prompts.tokenizer
    batches = range(len(draw.plan))
    for name in strategies:
        merge(draw.samples(name), draw.plan)
    parts = [(name, pyarrow.parquet.read_table(draw.part(name, i, "parquet"))) for name in strategies for i in batches]
    steps = [{"strategy": name, **row} for name, part in parts for row in part.to_pylist()]
    ordinary = strategy.vocabulary.ordinary(len(table), table.device)
    anchors = [token for token in mechanism.frequent_anchors(steps, LISTED) if bool(ordinary[token])]
    tokens = list(dict.fromkeys([*tokens, *anchors]))
    neighbors = mechanism.neighbor_rows(tokens, table, ordinary, lambda token: str(words.decode([token])))
    files.write_parquet(steps, draw.directory / "steps.parquet")
    files.write_parquet(neighbors, draw.directory / "neighbors.parquet")
    times = [json.loads(draw.part(name, i, "json").read_text("utf-8")) for name in strategies for i in batches]
    files.write_csv(times, draw.directory / "timings.csv")  # the last: where it is, nothing is left to draw
    shutil.rmtree(draw.directory / "parts")


def token_of(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """The one token that `text` is, as it stands or at the beginning of a word. Raises ValueError where it is none."""
    for form in (text, f" {text}"):
        ids = tokenizer.encode(form, add_special_tokens=False)
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return ids[0]
    ids = tokenizer.encode(text, add_special_tokens=False)
    parts = ", ".join(repr(tokenizer.decode([token])) for token in ids[:8])
    raise SettingsError(f"tokens={text}: must name single tokens of the model, and this is {len(ids)} ({parts})")


def _warm_up(samplers: Mapping[str, Sampler], draw: Draw) -> None:
    first = draw.problems[:1]
    for sampler in samplers.values():
        length = min(WARM_UP, sampler.max_new_tokens)
        answer(replace(sampler, max_new_tokens=length), draw.task, first, identities(draw, first))


def _is_drawn(name: str, draw: Draw, index: int) -> bool:
    """Whether all files of a batch are there and whole; a note says where one is damaged, as the batch is drawn again."""
    timing = draw.part(name, index, "json")
    if not timing.exists():
        return False
    whole = files.read_table(draw.part(name, index, "parquet")) is not None
    if not draw.samples(name).exists():  # else a crash came between the last batch and the end of the merge
        answers = files.read_table(partial_file(draw.samples(name), index))
        whole = whole and answers is not None and answers.num_rows == len(draw.batch(index)) * draw.n
    with suppress(ValueError, LookupError, TypeError):
        if whole and isinstance(json.loads(timing.read_bytes())["seconds"], float):
            return True
    print(f"note: batch {index} of {name} in {draw.directory} is damaged or incomplete; it is drawn again")
    return False


def _batch(name: str, sampler: Sampler, draw: Draw, index: int) -> None:
    problems, started = draw.batch(index), time.perf_counter()
    answers = answer(sampler, draw.task, problems, identities(draw, problems))
    seconds = time.perf_counter() - started
    labels: dict[str, Any] = {"run": draw.directory.name, "benchmark": draw.task.name, "exploration": name}
    labels |= {"algorithm": "none", "step": 0, "seed": draw.seed}
    rows = sample_rows(answers, sampler.strategy.vocabulary, labels)
    write_samples(rows, partial_file(draw.samples(name), index))
    where = mechanism.spread(answers.rollouts, STEP_ROWS)
    steps = mechanism.step_rows(answers, where, sampler.strategy, draw.model.table.detach())
    after = mechanism.next_token_rows(answers.rollouts, where, sampler.strategy, draw.model)
    steps = [{**step, **row} for step, row in zip(steps, after, strict=True)]
    files.write_parquet(steps, draw.part(name, index, "parquet"))
    tokens = int(answers.rollouts.lengths.sum())
    timing = {"strategy": name, "batch": index, "answers": len(rows), "tokens": tokens, "seconds": seconds}
    files.write_json(timing, draw.part(name, index, "json"))

"""What is said aloud where a benchmark's answers were hardly graded at all: the likeliest cause and what to try."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet

from ngrpo.rollout.sampling import Sampler
from ngrpo.tasks.base import Task

UNPARSED, TRUNCATED = 0.95, 0.5  # from these shares on, a score says more of the settings than of the model
COLUMNS = ("completion", "outcome", "finish_reason")


def warnings(target: Path, task: Task, sampler: Sampler) -> list[str]:
    """At most two lines on a file of benchmark samples; none where enough of the answers could be graded."""
    rows = pyarrow.parquet.read_table(target, columns=list(COLUMNS)).to_pylist()
    cut, unparsed = [row for row in rows if row["finish_reason"] == "length"], _unparsed(rows)
    lines = []
    if len(cut) >= TRUNCATED * len(rows):
        lines.append(
            f"{task.name}: {_percent(len(cut) / len(rows))} of the answers are truncated; {_cut(cut, sampler)}"
        )
    if unparsed >= UNPARSED:
        cause = _unread(rows, task, sampler, bool(lines))
        lines.append(f"{task.name}: {_percent(unparsed)} of the answers are unparsed; {cause}")
    return lines


def _unparsed(rows: Sequence[Mapping[str, str]]) -> float:
    return sum(row["outcome"] == "unparsed" for row in rows) / len(rows)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _cut(cut: Sequence[Mapping[str, str]], sampler: Sampler) -> str:
    """Why answers are truncated."""
    if _unparsed(cut) < 0.5:
        return "most go on after an answer, and nothing that they say is a stop: model.stop='[<text that ends a turn>]'"
    limit = sampler.max_new_tokens
    return f"they likely need more than max_new_tokens={limit}: max_new_tokens={2 * limit}"


def _unread(rows: Sequence[Mapping[str, str]], task: Task, sampler: Sampler, truncated: bool) -> str:
    """Why answers are unparsed, where many are `truncated` or not."""
    prompting, start = sampler.prompts.prompting, task.answer_start
    if start and not any(start in row["completion"] for row in rows):
        cause = f"none has {start!r}, after which alone an answer counts"
        if prompting.answer_start is None:
            return f"{cause}, and the model is said to have no thinking part: choose another task or benchmark"
        return f"{cause}; for a model without a thinking part model.answer_start=null"
    if truncated:
        return f"likely as they are truncated: max_new_tokens={2 * sampler.max_new_tokens}"
    if prompting.form == "plain" and sampler.prompts.tokenizer.chat_template:
        return "the model's chat template is likely meant to be used: model.prompt=chat"
    return "they are likely not in the form that the task reads, see samples/eval: task.instruction='<how to answer>'"

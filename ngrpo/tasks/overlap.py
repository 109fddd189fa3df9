"""How many problems of a benchmark stand in the training set: word for word, or nearly.

Texts are compared as lowercase words, without spaces, dollar signs and punctuation. `exact` is the same sequence
of words; `near` shares at least NEAR of its five-word runs (intersection over union) with one training problem, and is
not exact. A problem of fewer than five words is one run.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from ngrpo.tasks.base import Problem, Task

RUN = 5
NEAR = 0.5
WORD = re.compile(r"\w+|[-+*/=<>^]")


def overlap(training: Task, benchmarks: Mapping[str, Task]) -> dict[str, dict[str, int]]:
    """Benchmark -> {"exact": problems, "near": problems}; only for tasks whose problems are messages (others are drawn by
    rules that keep their splits apart)."""
    compared = {name: task for name, task in benchmarks.items() if task.problems[0].is_message}
    if not compared or not training.problems[0].is_message:
        return {}
    found = [(name, words, runs) for name, task in compared.items() for words, runs in _all_runs(task.problems)]
    owners: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, (_, _, runs) in enumerate(found):
        for run in runs:
            owners[run].append(number)
    exact = {words for words, _ in _all_runs(training.problems)}
    near = _near(owners, [len(runs) for _, _, runs in found], training.problems)
    counts = {name: {"exact": 0, "near": 0} for name in compared}
    for number, (name, words, _) in enumerate(found):
        if words in exact:
            counts[name]["exact"] += 1
        elif number in near:
            counts[name]["near"] += 1
    return counts


def _near(owners: Mapping[tuple[str, ...], list[int]], sizes: list[int], training: Sequence[Problem]) -> set[int]:
    found: set[int] = set()
    for _, runs in _all_runs(training):
        shared = Counter(number for run in runs if run in owners for number in owners[run])
        found |= {number for number, both in shared.items() if both >= NEAR * (sizes[number] + len(runs) - both)}
    return found


def _all_runs(problems: Sequence[Problem]) -> list[tuple[tuple[str, ...], set[tuple[str, ...]]]]:
    return [_runs(problem.question or problem.prompt) for problem in problems]


def _runs(text: str) -> tuple[tuple[str, ...], set[tuple[str, ...]]]:
    words = tuple(WORD.findall(unicodedata.normalize("NFKC", text).lower()))
    return words, {words[at : at + RUN] for at in range(max(1, len(words) - RUN + 1))}

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
Words = tuple[str, ...]


def overlap(training: Task, benchmarks: Mapping[str, Task]) -> dict[str, dict[str, int]]:
    """Benchmark -> {"exact": problems, "near": problems}; only for tasks whose problems are messages (others are drawn by
    rules that keep their splits apart)."""
    compared = {name: task for name, task in benchmarks.items() if task.problems[0].is_message}
    if not compared or not training.problems[0].is_message:
        return {}
    found = [(name, words, runs) for name, task in compared.items() for words, runs in _runs(task.problems)]
    owners: dict[Words, list[int]] = defaultdict(list)
    for number, (_, _, runs) in enumerate(found):
        for run in runs:
            owners[run].append(number)
    trained = _runs(training.problems)
    exact, near = {words for words, _ in trained}, _near(owners, [len(runs) for _, _, runs in found], trained)
    counts = {name: {"exact": 0, "near": 0} for name in compared}
    for number, (name, words, _) in enumerate(found):
        if words in exact:
            counts[name]["exact"] += 1
        elif number in near:
            counts[name]["near"] += 1
    return counts


def words_of(text: str) -> Words:
    """A text as its lowercase words, in which it is compared."""
    return tuple(WORD.findall(unicodedata.normalize("NFKC", text).lower()))


def _near(owners: Mapping[Words, list[int]], sizes: list[int], trained: Sequence[tuple[Words, set[Words]]]) -> set[int]:
    found: set[int] = set()
    for _, runs in trained:
        shared = Counter(number for run in runs if run in owners for number in owners[run])
        found |= {number for number, both in shared.items() if both >= NEAR * (sizes[number] + len(runs) - both)}
    return found


def _runs(problems: Sequence[Problem]) -> list[tuple[Words, set[Words]]]:
    """The words of every problem, and the runs in them."""
    every = [words_of(problem.question or problem.prompt) for problem in problems]
    return [(words, {words[at : at + RUN] for at in range(max(1, len(words) - RUN + 1))}) for words in every]

"""Questions with one right answer each, from a file or a public data set, graded by what the configuration names."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

from ngrpo.grading.answers import Verdict
from ngrpo.tasks.base import ANSWER_PREFIX, UNGRADED, Problem, Score, answer_part, with_instruction
from ngrpo.tasks.dataset import REFUSE, Dataset, Item, ReadOptions
from ngrpo.tasks.question_text import transcript
from ngrpo.tasks.reading import read_dataset
from ngrpo.tasks.rows import rows_of

# What could not be told goes before a wrong answer, because it may have been right.
BEST_FIRST = ("correct", *UNGRADED, "wrong", "unparsed")


class Grader(Protocol):
    """Grades the answer parts of completions against gold answers, in order; it is cheap to make and raises on no text."""

    def grade(self, completions: Sequence[str], golds: Sequence[str]) -> Sequence[Verdict]: ...


@dataclass(kw_only=True)
class FromRows:
    """What tasks share whose problems are rows of a file or of a public data set.

    name: of the task, and of its file in `directory`. path, directory, dataset with subset and split: where the rows come
    from, the first that is given. columns: tasks.columns. repeats: of problems that repeat the first is taken (`first`), all
    are (`keep`), or they are an error (`refuse`). instruction: follows the problem in the user's message, null for nothing.
    answer_start: ends the thinking part, after which alone an answer counts; null where the model has none. `version` is a
    digest of the rows and of how they are read; `notes` say what was joined, chosen, folded or left out. Raises ValueError
    for rows that cannot be used.
    """

    name: str
    path: str | None = None
    directory: str | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    repeats: str = REFUSE
    instruction: str | None = None
    answer_start: str | None = None
    version: str = field(default="", init=False)
    problems: Sequence[Problem] = field(default=(), init=False)
    data: Dataset = field(init=False, repr=False)

    answer_prefix = ANSWER_PREFIX

    @property
    def notes(self) -> list[str]:
        """What was joined, chosen, folded or left out, a line each."""
        return self.data.notes

    def read_rows(self, options: ReadOptions, problem_of: Callable[[Item], Problem]) -> None:
        """Reads the problems, and prints each note once in a process, which may build its tasks several times."""
        rows = rows_of(self.name, self.path, self.directory, self.dataset, self.subset, self.split)
        self.data = read_dataset(self.name, rows, options)
        if not self.data.items:
            raise ValueError(f"{self.name}: no row of {rows.source} has an answer; set task.columns.answer=<column>")
        self.version = self.data.version(rows.digest)
        self.problems = [problem_of(item) for item in self.data.items]
        for note in self.notes:
            _print_once(f"note: {self.name}: {note}")

    def as_problem(self, item: Item, message: str, golds: Sequence[str]) -> Problem:
        """A problem whose user's message, in a conversation the last one, is `message` and the instruction."""
        messages = (*item.messages[:-1], ("user", with_instruction(message, self.instruction)))
        conversation = messages if len(messages) > 1 else None
        return Problem(item.id, transcript(messages), golds[0], True, item.question, tuple(golds[1:]), conversation)


@cache
def _print_once(line: str) -> None:
    if not any(int(os.environ.get(name, 0)) for name in ("LOCAL_RANK", "NODE_RANK")):  # one of all ranks
        print(line)


@dataclass(kw_only=True)
class Questions(FromRows):
    r"""A task of questions with final answers in `\boxed{}`, graded by `grader`.

    unanswered: rows without one answer (none, a word such as N/A, golds that disagree) are an error (`refuse`) or passed
    over (`leave_out`). answer_form: how answers name a choice, one of choices.FORMS, null for the rule.
    Other arguments: FromRows. Raises ValueError, in one line.
    """

    grader: Grader
    unanswered: str = REFUSE
    answer_form: str | None = None

    def __post_init__(self):
        options = ReadOptions(self.columns, self.unanswered, self.repeats, self.answer_form, self._same)
        self.read_rows(options, lambda item: self.as_problem(item, item.question, item.golds))

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """Verdicts, one per pair, in order; a problem with several right answers takes the best of its verdicts.

        Ways to an answer are not distinguished: `reading` says what was folded or dropped to compare one, if anything.
        """
        finals = [answer_part(completion, self.answer_start) for completion in completions]
        pairs = [(final, gold) for final, problem in zip(finals, problems, strict=True) for gold in problem.golds]
        verdicts = iter(self.grader.grade([final for final, _ in pairs], [gold for _, gold in pairs]))
        best = [
            min((next(verdicts) for _ in problem.golds), key=lambda verdict: BEST_FIRST.index(verdict.outcome))
            for problem in problems
        ]
        return [Score.of(v.outcome, v.extracted, reading=v.reading) for v in best]

    def _same(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        boxed = [f"\\boxed{{{answer}}}" for _, answer in pairs]
        return [verdict.outcome == "correct" for verdict in self.grader.grade(boxed, [gold for gold, _ in pairs])]

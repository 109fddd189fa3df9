"""Questions with one right answer each, from a file or a public data set, graded by what the configuration names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ngrpo.tasks.base import ANSWER_PREFIX, Problem, Score, answer_part
from ngrpo.tasks.columns import LEAVE_OUT, REFUSE, Item, read_items
from ngrpo.tasks.rows import Rows, read_rows


class Verdict(Protocol):
    """What a grader finds: one of tasks.base.OUTCOMES, and the answer as it stood in the text (None: there is none)."""

    @property
    def outcome(self) -> str: ...
    @property
    def extracted(self) -> str | None: ...


class Grader(Protocol):
    """Grades the answer parts of completions against gold answers, in order; it is cheap to make and raises on no text."""

    def grade(self, completions: Sequence[str], golds: Sequence[str]) -> Sequence[Verdict]: ...


@dataclass(kw_only=True)
class FromRows:
    """What tasks share whose problems are rows of a file or of a public data set.

    name: of the task, and of its file in `directory`. path, directory, dataset with subset and split: where the rows come
    from, the first that is given (tasks.rows). columns: tasks.columns. instruction: follows the problem in the user's
    message, null for nothing. answer_start: ends the thinking part, after which alone an answer counts; null where the
    model has none. `version` is a digest of the rows. Raises ValueError for rows that cannot be used.
    """

    name: str
    path: str | None = None
    directory: str | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    instruction: str | None = None
    answer_start: str | None = None
    version: str = field(default="", init=False)
    answer_prefix: str = field(default=ANSWER_PREFIX, init=False)
    problems: Sequence[Problem] = field(default=(), init=False)

    def read_rows(self) -> Rows:
        """The rows, after whose digest the task's version is called."""
        source = read_rows(self.name, self.path, self.directory, self.dataset, self.subset, self.split)
        self.version = source.digest
        return source

    def problem(self, item: Item, prompt: str, gold: str) -> Problem:
        """An item as a problem with this prompt, before the instruction, and this gold answer."""
        return Problem(item.id, with_instruction(prompt, self.instruction), gold, True, item.problem)


@dataclass(kw_only=True)
class Questions(FromRows):
    r"""A task of questions with final answers in `\boxed{}`, graded by `grader`.

    unanswered: rows without an answer are an error (`refuse`) or passed over (`leave_out`). Other arguments: FromRows.
    """

    grader: Any
    unanswered: str = REFUSE

    def __post_init__(self):
        if self.unanswered not in (REFUSE, LEAVE_OUT):
            raise ValueError(f"unanswered {self.unanswered!r}, expected {REFUSE} or {LEAVE_OUT}; set task.unanswered")
        items = read_items(self.name, self.read_rows(), self.columns, self.unanswered)
        self.problems = [self.problem(item, item.problem, item.gold) for item in items]

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """Verdicts, one per pair, in order; no `solution_path`: ways to an answer are not distinguished."""
        finals = [answer_part(completion, self.answer_start) for completion in completions]
        verdicts = self.grader.grade(finals, [problem.gold for problem in problems])
        return [Score.of(verdict.outcome, verdict.extracted) for verdict in verdicts]


def with_instruction(problem: str, instruction: str | None) -> str:
    """The user's message."""
    return f"{problem}\n{instruction}" if instruction else problem

"""Questions with one right answer each, from a file or a public data set, graded by what the configuration names.

It does not know what makes an answer right: that is the grader's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ngrpo.tasks.base import Problem, Score, answer_part
from ngrpo.tasks.columns import LEAVE_OUT, REFUSE, read_items
from ngrpo.tasks.rows import read_rows
from ngrpo.tasks.story_text import ANSWER_PREFIX


class Verdict(Protocol):
    """What a grader finds: one of tasks.base.OUTCOMES, and the answer as it stood in the text (None: there is none)."""

    @property
    def outcome(self) -> str: ...
    @property
    def extracted(self) -> str | None: ...


class Grader(Protocol):
    """Grades the answer parts of completions against gold answers, in order; it is cheap to make and raises on no text."""

    def grade(self, completions: Sequence[str], golds: Sequence[str]) -> Sequence[Verdict]: ...


@dataclass
class Questions:
    r"""A task of questions with final answers in `\boxed{}`.

    name: of the task, and of its file in `directory`. path, directory, dataset with subset and split: where the rows come
    from, the first that is given (tasks.rows). columns: tasks.columns. unanswered: rows without an answer are an error
    (`refuse`) or passed over (`leave_out`). instruction: follows the problem in the user's
    message, null for nothing. answer_start: ends the thinking part, after which alone an answer counts; null where the
    model has none. `version` is a digest of the rows. Raises ValueError for rows that cannot be used.
    """

    name: str
    grader: Any
    path: str | None = None
    directory: str | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    unanswered: str = REFUSE
    instruction: str | None = None
    answer_start: str | None = None
    version: str = field(default="", init=False)
    answer_prefix: str = field(default=ANSWER_PREFIX, init=False)
    problems: Sequence[Problem] = field(default=(), init=False)

    def __post_init__(self):
        if self.unanswered not in (REFUSE, LEAVE_OUT):
            raise ValueError(f"unanswered {self.unanswered!r}, expected {REFUSE} or {LEAVE_OUT}; set task.unanswered")
        source = read_rows(self.name, self.path, self.directory, self.dataset, self.subset, self.split)
        self.version = source.digest
        self.problems = [
            Problem(item.id, with_instruction(item.problem, self.instruction), item.gold, True, item.problem)
            for item in read_items(self.name, source, self.columns, self.unanswered)
        ]

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """Verdicts, one per pair, in order: reward 1 for a correct answer, else 0; the way to it is not told apart."""
        finals = [answer_part(completion, self.answer_start) for completion in completions]
        verdicts = self.grader.grade(finals, [problem.gold for problem in problems])
        return [Score(float(v.outcome == "correct"), v.outcome, v.extracted, "") for v in verdicts]


def with_instruction(problem: str, instruction: str | None) -> str:
    """The user's message."""
    return f"{problem}\n{instruction}" if instruction else problem

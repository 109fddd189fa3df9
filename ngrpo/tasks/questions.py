"""Questions with one right answer each, from a file or a public data set, graded by what the configuration names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ngrpo.grading.verdict import Verdict
from ngrpo.tasks.base import Problem, Score, answer_part
from ngrpo.tasks.columns import LEAVE_OUT, REFUSE, read_items
from ngrpo.tasks.rows import FromRows


class Grader(Protocol):
    """Grades the answer parts of completions against gold answers, in order; it is cheap to make and raises on no text."""

    def grade(self, completions: Sequence[str], golds: Sequence[str]) -> Sequence[Verdict]: ...


@dataclass(kw_only=True)
class Questions(FromRows):
    r"""A task of questions with final answers in `\boxed{}`, graded by `grader`.

    unanswered: rows without an answer are an error (`refuse`) or passed over (`leave_out`). Other arguments: rows.FromRows.
    """

    grader: Grader
    unanswered: str = REFUSE

    def __post_init__(self):
        if self.unanswered not in (REFUSE, LEAVE_OUT):
            raise ValueError(f"unanswered {self.unanswered!r}, expected {REFUSE} or {LEAVE_OUT}; set task.unanswered")
        items = read_items(self.name, self.read_rows(), self.columns, self.unanswered)
        self.problems = [
            Problem(item.id, with_instruction(item.problem, self.instruction), item.gold, True, item.problem)
            for item in items
        ]

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """Verdicts, one per pair, in order; `solution_path` says what was folded or dropped to compare an answer."""
        finals = [answer_part(completion, self.answer_start) for completion in completions]
        verdicts = self.grader.grade(finals, [problem.gold for problem in problems])
        return [Score.of(verdict.outcome, verdict.extracted, verdict.reading) for verdict in verdicts]


def with_instruction(problem: str, instruction: str | None) -> str:
    """The user's message."""
    return f"{problem}\n{instruction}" if instruction else problem

"""Questions with one right answer each, from a file or a public data set, graded by what the configuration names."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ngrpo.grading.answers import Verdict
from ngrpo.tasks.base import UNGRADED, Problem, Score, answer_part
from ngrpo.tasks.items import REFUSE, DataReport, Item, ReadOptions
from ngrpo.tasks.question_text import transcript
from ngrpo.tasks.reading import read_items
from ngrpo.tasks.rows import FromRows


class Grader(Protocol):
    """Grades the answer parts of completions against gold answers, in order; it is cheap to make and raises on no text."""

    def grade(self, completions: Sequence[str], golds: Sequence[str]) -> Sequence[Verdict]: ...


@dataclass(kw_only=True)
class Questions(FromRows):
    r"""A task of questions with final answers in `\boxed{}`, graded by `grader`.

    unanswered: rows without one answer (none, a word such as N/A, golds that disagree) are an error (`refuse`) or passed
    over (`leave_out`). repeats: of problems that repeat the first is taken (`first`), all are (`keep`), or they are an error
    (`refuse`). answer_form: how answers name a choice, one of choices.FORMS, null for the rule. Other arguments:
    rows.FromRows. Raises ValueError, in one line.
    """

    grader: Grader
    unanswered: str = REFUSE
    repeats: str = REFUSE
    answer_form: str | None = None
    report: DataReport = field(init=False, repr=False)

    def __post_init__(self):
        options = ReadOptions(self.columns, self.unanswered, self.repeats, self.answer_form, self._same)
        source = self.read_rows()
        self.report = read_items(self.name, source, options)
        if not self.report.items:
            raise ValueError(f"{self.name}: no row of {source.source} has an answer; set task.columns.answer=<column>")
        self.version = self.report.version(source.digest)
        self.problems = [as_problem(item, item.question, item.golds, self.instruction) for item in self.report.items]
        self.print_notes(self.report.notes)

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """Verdicts, one per pair, in order; a problem with several right answers takes the best of its verdicts.

        Ways to an answer are not distinguished: `reading` says what was folded or dropped to compare one, if anything.
        """
        finals = [answer_part(completion, self.answer_start) for completion in completions]
        asked = [(final, gold) for final, p in zip(finals, problems, strict=True) for gold in p.golds]
        verdicts = iter(self.grader.grade([final for final, _ in asked], [gold for _, gold in asked]))
        best = [min((next(verdicts) for _ in problem.golds), key=_rank) for problem in problems]
        return [Score.of(v.outcome, v.extracted, reading=v.reading) for v in best]

    def _same(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        boxed = [f"\\boxed{{{answer}}}" for _, answer in pairs]
        return [verdict.outcome == "correct" for verdict in self.grader.grade(boxed, [gold for gold, _ in pairs])]


def _rank(verdict: Verdict) -> int:
    """A right answer first; then what could not be told, because it may have been one; `unparsed` where nothing was."""
    order = ("correct", *UNGRADED, "wrong")
    return order.index(verdict.outcome) if verdict.outcome in order else len(order)


def as_problem(item: Item, message: str, golds: Sequence[str], instruction: str | None) -> Problem:
    """A problem whose user's message, in a conversation the last one, is `message` and the instruction."""
    messages = (*item.messages[:-1], ("user", with_instruction(message, instruction)))
    conversation = messages if len(messages) > 1 else None
    return Problem(item.id, transcript(messages), golds[0], True, item.question, tuple(golds[1:]), conversation)


def with_instruction(problem: str, instruction: str | None) -> str:
    """The user's message."""
    return f"{problem}\n{instruction}" if instruction else problem

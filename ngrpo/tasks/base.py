"""What a task is: problems, their prompt text, and the reward of a completion."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

UNGRADED = ("timeout", "error")  # no verdict: the grader could not tell
OUTCOMES = ("correct", "wrong", "unparsed", *UNGRADED)
ANSWER_PREFIX = "\\boxed{"
Messages = tuple[tuple[str, str], ...]  # (role, content) of each, the last of them the user's


@dataclass(frozen=True)
class Problem:
    """One question. `id` is unique within its task and stable across versions of the same task.

    prompt: what the model is asked. is_message: true where that is what a user says, so that the model's own prompt goes
    around it; false where it is encoded as it stands. question: the bare problem without instruction, for comparing data
    sets; empty where the prompt is it. alternatives: other answers that are as right as `gold`. messages: the whole
    conversation where it is more than one message of the user's; `prompt` is then a transcript of it.
    """

    id: str
    prompt: str
    gold: str
    is_message: bool = False
    question: str = ""
    alternatives: tuple[str, ...] = ()
    messages: Messages | None = None

    @property
    def golds(self) -> tuple[str, ...]:
        """Every right answer."""
        return (self.gold, *self.alternatives)


@dataclass(frozen=True)
class Score:
    """The verdict on one completion.

    `outcome` is one of OUTCOMES; `extracted` is the final answer as it stood in the text (None when there is none);
    `solution_path` is a normal form of the reasoning, equal for completions that solve the problem the same way.
    `reading` says what was folded or dropped so that the answer could be compared.
    """

    reward: float
    outcome: str
    extracted: str | None
    solution_path: str
    reading: str = ""

    @classmethod
    def of(cls, outcome: str, extracted: str | None, solution_path: str = "", reading: str = "") -> "Score":
        """With reward 1 for a correct answer, else 0."""
        return cls(float(outcome == "correct"), outcome, extracted, solution_path, reading)


class Task(Protocol):
    """A named, versioned sequence of problems with their scorer; training sets and benchmarks are both tasks.

    `answer_start` is the text that ends the thinking part (None: there is no such part) and `answer_prefix` the text
    that opens the final answer; strategies that act only while the model thinks need both. A task that is read from data
    also has `notes`, a line for everything that was joined, chosen, folded or left out.
    """

    name: str
    version: str
    answer_prefix: str

    @property
    def answer_start(self) -> str | None: ...
    @property
    def problems(self) -> Sequence[Problem]: ...

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """Verdicts, one per (problem, completion) pair, in order."""
        ...


class Derived:
    """A task made from another, which it is but for what a subclass changes."""

    def __init__(self, task: Task):
        self.task, self.name, self.version, self.problems = task, task.name, task.version, task.problems
        self.answer_start, self.answer_prefix = task.answer_start, task.answer_prefix
        self.notes: list[str] = list(getattr(task, "notes", ()))

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """As the whole task does."""
        return self.task.score(problems, completions)


class Subset(Derived):
    """Some problems of a task, which is otherwise what it was; `left_out`: how many are not among them."""

    def __init__(self, task: Task, problems: Sequence[Problem]):
        super().__init__(task)
        self.problems, self.left_out = problems, len(task.problems) - len(problems)


def answer_part(completion: str, answer_start: str | None) -> str:
    """What follows the first `answer_start`, nothing where it never comes; all of the text where there is no such mark."""
    return completion if answer_start is None else completion.partition(answer_start)[2]


def with_instruction(problem: str, instruction: str | None) -> str:
    """The user's message."""
    return f"{problem}\n{instruction}" if instruction else problem

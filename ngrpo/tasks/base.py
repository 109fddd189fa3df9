"""What a task is: problems, their prompt text, and the reward of a completion. It knows nothing of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

UNGRADED = ("timeout", "error")  # no verdict: the grader could not tell
OUTCOMES = ("correct", "wrong", "unparsed", *UNGRADED)


@dataclass(frozen=True)
class Problem:
    """One question. `id` is unique within its task and stable across versions of the same task.

    prompt: what the model is asked. is_message: true where that is what a user says, so that the model's own prompt goes
    around it; false where it is encoded as it stands. question: the bare problem without instruction, for comparing data
    sets; empty where the prompt is it.
    """

    id: str
    prompt: str
    gold: str
    is_message: bool = False
    question: str = ""


@dataclass(frozen=True)
class Score:
    """The verdict on one completion.

    `outcome` is one of OUTCOMES; `extracted` is the final answer as it stood in the text (None when there is none);
    `solution_path` is a normal form of the reasoning, equal for completions that solve the problem the same way.
    """

    reward: float
    outcome: str
    extracted: str | None
    solution_path: str


class Task(Protocol):
    """A named, versioned sequence of problems with their scorer; training sets and benchmarks are both tasks.

    `answer_start` is the text that ends the thinking part (None: there is no such part) and `answer_prefix` the text
    that opens the final answer; strategies that act only while the model thinks need both.
    """

    name: str
    version: str
    answer_start: str | None
    answer_prefix: str
    problems: Sequence[Problem]

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """Verdicts, one per (problem, completion) pair, in order."""
        ...


@dataclass
class Subset:
    """Some problems of a task, which is otherwise what it was."""

    task: Task
    problems: Sequence[Problem]
    name: str = field(init=False)
    version: str = field(init=False)
    answer_start: str | None = field(init=False)
    answer_prefix: str = field(init=False)

    def __post_init__(self):
        self.name, self.version = self.task.name, self.task.version
        self.answer_start, self.answer_prefix = self.task.answer_start, self.task.answer_prefix

    @property
    def left_out(self) -> int:
        """Problems of the whole task that are not among these."""
        return len(self.task.problems) - len(self.problems)

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """As the whole task does."""
        return self.task.score(problems, completions)


def answer_part(completion: str, answer_start: str | None) -> str:
    """What follows the first `answer_start`, nothing where it never comes; all of the text where there is no such mark."""
    return completion if answer_start is None else completion.partition(answer_start)[2]

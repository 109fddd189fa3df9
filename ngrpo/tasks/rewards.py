"""Rewards that are more than the verdict: functions of problem, completion and score, added to what a task gives.

The outcome stays the grader's, so that no estimate of Pass@k sees them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ngrpo.grading.answers import extract_boxed
from ngrpo.tasks.base import Derived, Problem, Score, Task, answer_part

RewardFunction = Callable[[Problem, str, Score], float]


class NoReward(ValueError):
    """A function returned what is no reward."""

    exit_code = 2


def well_formed(
    problem: Problem, completion: str, score: Score, *, weight: float = 0.1, answer_start: str | None = None
) -> float:
    r"""`weight` for a completion with one end of its thinking part and a complete `\boxed{}` after it, else 0.

    answer_start: the text that ends the thinking part; None: there is none, and the box is all that is asked for.
    """
    ended = answer_start is None or completion.count(answer_start) == 1
    return weight if ended and extract_boxed(answer_part(completion, answer_start)) else 0.0


def right(problem: Problem, completion: str, score: Score, *, weight: float) -> float:
    """`weight` for an answer that the grader takes, else 0."""
    return weight if score.outcome == "correct" else 0.0


class Rewarded(Derived):
    """A task whose rewards have the values of `functions` added; otherwise what it was."""

    def __init__(self, task: Task, functions: Mapping[str, RewardFunction]):
        super().__init__(task)
        self.functions = functions

    def score(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """The task's scores with other rewards; NoReward where a function returns anything but a finite number."""
        scores = super().score(problems, completions)
        rows = zip(problems, completions, scores, strict=True)
        return [replace(row[2], reward=row[2].reward + self._added(*row)) for row in rows]

    def _added(self, problem: Problem, completion: str, score: Score) -> float:
        values = {name: function(problem, completion, score) for name, function in self.functions.items()}
        for name, value in values.items():
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise NoReward(
                    f"extra_rewards.{name}: returned {value!r} for {problem.id}, expected a finite number; mend it"
                )
        return float(sum(values.values()))

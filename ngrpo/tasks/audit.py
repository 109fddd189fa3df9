"""Whether a task's grader takes the task's own gold answers for correct."""

import time

from ngrpo.tasks.base import Problem, Score, Task


def audit(name: str, task: Task) -> tuple[str, list[tuple[Problem, Score]]]:
    """A line that counts the gold answers of `task` which its grader takes for correct, and those that it does not."""
    problems = list(task.problems)
    started = time.perf_counter()
    scores = task.score(problems, [f"{task.answer_start or ''}\\boxed{{{problem.gold}}}" for problem in problems])
    speed = len(problems) / max(time.perf_counter() - started, 1e-9)
    missed = [pair for pair in zip(problems, scores, strict=True) if pair[1].outcome != "correct"]
    right = len(problems) - len(missed)
    counted = f"{right} of {len(problems)} correct, {100 * right / len(problems):.2f} %, {speed:,.0f} answers/s"
    return f"{name} ({task.name} {task.version}): {counted}", missed

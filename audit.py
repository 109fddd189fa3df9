"""Check data sets: every gold answer goes through its own grader, and those that are not found correct are listed.

python audit.py benchmark='[aime25,math500]' paths.data=<directory with aime25.jsonl and math500.jsonl>
python audit.py task=jsonl task.path=<file.jsonl or .parquet>
"""

import time
from typing import Any

from omegaconf import DictConfig

from ngrpo import build, cli
from ngrpo.cli.settings import SettingsError
from ngrpo.cli.settings.composed import printable


def main(config: DictConfig) -> None:
    """Build the tasks that are named and print a line for each, and one for each answer that fails."""
    nodes = dict((config.get("benchmark") or {}).items())
    nodes |= {"task": config.task} if config.get("task") else {}
    if not nodes:
        raise SettingsError(["nothing to check; name data sets, as task=gsm8k or benchmark='[aime25,math500]'"])
    for name, node in nodes.items():
        audit(name, build.task(node))


def audit(name: str, task: Any) -> None:
    """Print how many gold answers of `task` its grader takes for correct, and each one that it does not."""
    problems = list(task.problems)
    started = time.perf_counter()
    scores = task.score(problems, [f"{task.answer_start or ''}\\boxed{{{problem.gold}}}" for problem in problems])
    seconds = time.perf_counter() - started
    misses = [(problem, score) for problem, score in zip(problems, scores, strict=True) if score.outcome != "correct"]
    right = len(problems) - len(misses)
    share, speed = 100 * right / len(problems), len(problems) / max(seconds, 1e-9)
    print(
        f"{name} ({task.name} {task.version}): {right} of {len(problems)} correct, {share:.2f} %, {speed:,.0f} answers/s"
    )
    for problem, score in misses:
        print(f"  {problem.id}  {score.outcome}  {printable(problem.gold)}")


if __name__ == "__main__":
    cli.prepare("audit")
    cli.run(main, "audit")

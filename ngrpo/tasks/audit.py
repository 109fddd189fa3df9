"""What is wrong with a data set: golds that its grader does not take, however written, and rows that are not plain."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from ngrpo.tasks.base import Problem, Task
from ngrpo.tasks.dataset import KEEP, LEAVE_OUT, Dataset
from ngrpo.tasks.overlap import words_of
from ngrpo.tasks.respelling import respellings

Finding = tuple[str, list[str]]  # what was found, and a line for each place


@dataclass
class Report:
    """line: how many golds are taken for correct, and how fast. notes: what is worth knowing and no fault."""

    line: str
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def find(self, what: str, places: Sequence[str]) -> None:
        """Adds a finding where there are places."""
        self.findings += [(what, list(places))] if places else []


def lenient(node: Mapping[str, Any]) -> dict[str, Any]:
    """A task's node that leaves out or keeps what the node may refuse, so that all of it is found at once."""
    return {**node, **{key: value for key, value in (("unanswered", LEAVE_OUT), ("repeats", KEEP)) if key in node}}


def audit(name: str, task: Task) -> Report:
    """What the grader of `task` makes of its golds, and what its rows were read as."""
    problems = list(task.problems)
    golds = [(problem, gold, gold) for problem in problems for gold in problem.golds]
    started = time.perf_counter()
    missed = _missed(task, golds)
    speed = len(golds) / max(time.perf_counter() - started, 1e-9)
    correct = len(problems) - len({problem.id for problem, *_ in missed})
    counted = f"{correct} of {len(problems)} correct, {100 * correct / len(problems):.2f} %, {speed:,.0f} answers/s"
    report = Report(f"{name} ({task.name} {task.version}): {counted}")
    report.find("golds that the grader does not take", [f"{p.id}  {outcome}  {gold}" for p, gold, _, outcome in missed])
    data = getattr(task, "data", None)
    if isinstance(data, Dataset):
        spellings = [(problem, gold, text) for problem, gold, _ in golds for text in respellings(gold)]
        lost = [f"{p.id}  {outcome}  {text}  for {gold}" for p, gold, text, outcome in _missed(task, spellings)]
        report.notes.append(f"{len(spellings) - len(lost)} of {len(spellings)} other spellings of golds are taken")
        report.find("spellings of golds that the grader does not take", lost)
        _add_data(data, report)
    report.find("problems that stand there twice (as words)", _twice(problems))
    return report


def _missed(task: Task, answers: Sequence[tuple[Problem, str, str]]) -> list[tuple[Problem, str, str, str]]:
    """Of problems, golds and texts of an answer those that are not correct, with their outcomes."""
    texts = [f"{task.answer_start or ''}\\boxed{{{text}}}" for _, _, text in answers]
    scores = task.score([problem for problem, *_ in answers], texts)
    return [
        (*answer, score.outcome) for answer, score in zip(answers, scores, strict=True) if score.outcome != "correct"
    ]


def _add_data(data: Dataset, report: Report) -> None:
    unused = [name for name in data.unused if name not in data.needed]
    report.notes += [f"columns not used: {', '.join(unused)}"] if unused else []
    report.find("columns not used that the question may need", data.needed)
    report.find("rows whose answer is no value", [f"row {at}: it {says}" for at, says in data.unanswered.items()])
    report.find("rows whose golds disagree", [f"row {at}: {says}" for at, says in data.disagreeing.items()])
    items = {item.number: item for item in data.items}
    places = []
    for number, before in data.repeated.items():
        golds = [items[at].golds for at in (number, before) if at in items]
        differ = len(golds) == 2 and set(golds[0]).isdisjoint(golds[1])
        says = f" with the answer {golds[0][0]!r} for {golds[1][0]!r}" if differ else ""
        places.append(f"row {number} repeats row {before}{says}")
    report.find("rows that repeat a problem", places)


def _twice(problems: Sequence[Problem]) -> list[str]:
    known: dict[tuple[str, ...], Problem] = {}
    found = []
    for problem, words in _words(problems):
        first = known.setdefault(words, problem)
        if first is not problem and first.prompt != problem.prompt:  # the same letter by letter is told by the row
            found.append(f"{problem.id}  is  {first.id}")
    return found


def between(tasks: Mapping[str, Task]) -> list[Finding]:
    """Problems of one data set that are in another, by their words; two ways to grade one data set are not compared."""
    found = []
    words = {name: _words(list(task.problems)) for name, task in tasks.items()}
    for name, other in combinations(tasks, 2):
        if (tasks[name].name, tasks[name].version) == (tasks[other].name, tasks[other].version):
            continue
        known = {key: problem for problem, key in words[name]}
        places = [f"{known[key].id}  is  {problem.id}" for problem, key in words[other] if key in known]
        found += [(f"problems of {name} that are in {other} (as words)", places)] if places else []
    return found


def _words(problems: Sequence[Problem]) -> list[tuple[Problem, tuple[str, ...]]]:
    """Only of messages: other problems are drawn by rules."""
    messages = [problem for problem in problems if problem.is_message]
    texts = [problem.prompt if problem.messages else problem.question or problem.prompt for problem in messages]
    return [(problem, words_of(text)) for problem, text in zip(messages, texts, strict=True)]

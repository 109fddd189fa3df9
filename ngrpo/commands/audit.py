"""Check data sets: golds go through their own grader as they stand and in other spellings, and rows are looked at."""

if __name__ == "__main__":  # first of all: a signal may come during the imports, which take seconds
    from ngrpo.rundir import interrupts

    interrupts.begin()

from typing import Any

from omegaconf import DictConfig

from ngrpo import cli, composed
from ngrpo.cli.rules import printable
from ngrpo.targets import SettingsError
from ngrpo.tasks.audit import Finding, audit, between, lenient
from ngrpo.tasks.base import Task
from ngrpo.tasks.columns import MayBeNeeded
from ngrpo.tasks.rows import Unreadable


class AuditFailed(Exception):
    """What an audit ends with where data have faults."""

    exit_code = 1
    one_line = True


def main(config: DictConfig) -> None:
    """Build the tasks that are named and print a line for each, and what is found. Raises AuditFailed where anything is."""
    nodes = dict((config.get("benchmark") or {}).items())
    nodes |= {"task": config.task} if config.get("task") else {}
    if not nodes:
        raise SettingsError(["nothing to check; name data sets, as task=gsm8k or benchmark='[aime25,math500]'"])
    tasks: dict[str, Task] = {}
    count = 0
    for name, node in nodes.items():
        task, findings = _build(name, composed.plain(node))
        if task is not None:
            tasks[name] = task
            report = audit(name, task)
            print("\n".join([report.line, *(f"  {line}" for line in report.notes)]))
            findings += report.findings
        count += _print(findings, config.audit.rows)
    count += _print(between(tasks), config.audit.rows)
    if count:
        raise AuditFailed(f"the audit has {count} finding{'s' if count > 1 else ''}, listed above")


def _build(name: str, node: dict[str, Any]) -> tuple[Task | None, list[Finding]]:
    """The task, None where its rows are refused, and what is found before it can be built."""
    findings: list[Finding] = []
    node, path = lenient(node), name if name == "task" else f"benchmark.{name}"
    while True:
        try:
            return composed.task(node), findings
        except (SettingsError, Unreadable) as error:
            raise SettingsError([_message(path, error)]) from None
        except MayBeNeeded as error:
            findings.append((_message(path, error), []))
            node = {**node, "columns": {**node.get("columns", {}), "problem": error.column}}
        except ValueError as error:
            return None, [*findings, (_message(path, error), [])]


def _message(path: str, error: Exception) -> str:
    return f"{path}: {' '.join(str(error).split())}".replace(" task.", f" {path}.")


def _print(findings: list[Finding], most: int) -> int:
    for what, places in findings:
        print(f"  found: {printable(what, 600)}{f': {len(places)}' if places else ''}")
        print("".join(f"    {printable(place)}\n" for place in places[:most]), end="")
        if len(places) > most:
            print(f"    and {len(places) - most} more; audit.rows={len(places)} lists them")
    return len(findings)


if __name__ == "__main__":
    cli.prepare("audit")
    cli.run(main, "audit")

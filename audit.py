"""Check data sets: every gold answer goes through its own grader, and those that are not found correct are listed.

python audit.py benchmark='[aime25,math500]' paths.data=<directory with aime25.jsonl and math500.jsonl>
python audit.py task=jsonl task.path=<file.jsonl or .parquet>
"""

from omegaconf import DictConfig

from ngrpo import build, cli
from ngrpo.cli.rules import printable
from ngrpo.targets import SettingsError
from ngrpo.tasks.audit import audit


def main(config: DictConfig) -> None:
    """Build the tasks that are named and print a line for each, and one for each answer that fails."""
    nodes = dict((config.get("benchmark") or {}).items())
    nodes |= {"task": config.task} if config.get("task") else {}
    if not nodes:
        raise SettingsError(["nothing to check; name data sets, as task=gsm8k or benchmark='[aime25,math500]'"])
    for name, node in nodes.items():
        line, missed = audit(name, build.task(node))
        print("\n".join([line, *(f"  {p.id}  {s.outcome}  {printable(p.gold)}" for p, s in missed)]))


if __name__ == "__main__":
    cli.prepare("audit")
    cli.run(main, "audit")

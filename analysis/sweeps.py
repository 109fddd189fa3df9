"""Jobs and trials of sweeps that left no finished run, with the reason that the sweep recorded.

It reads `sweeps/<name>.json` of grids and `sweeps/<name>/trials.csv` of searches.
"""

import csv
import json
from collections.abc import Iterable
from pathlib import Path

NOT_PARAMETERS = ("number", "state", "spread", "seconds", "reason")


def without_run(root: Path) -> list[dict[str, str]]:
    """`path` and `reason` of each refused, failed or never started job below `root` that has no run directory of its own,
    and of each failed trial."""
    left_out: dict[str, str] = {}
    for record in sorted(root.rglob("sweeps/*.json"), key=lambda path: path.stat().st_mtime):
        left_out |= dict(_jobs(record))
    searches = {path.parent for name in ("trials.csv", "journal.log") for path in root.rglob(f"sweeps/*/{name}")}
    for folder in sorted(searches):
        left_out |= dict(_trials(folder))
    return [{"path": path, "reason": reason} for path, reason in left_out.items()]


def _jobs(record: Path) -> Iterable[tuple[str, str]]:
    try:
        records = json.loads(record.read_text("utf-8"))["runs"]
        jobs = [(Path(job["directory"]), job["status"], job["error"], " ".join(job["overrides"])) for job in records]
    except (OSError, ValueError, LookupError, TypeError) as error:
        yield str(record), f"is no record of a sweep: {' '.join(str(error).split())}"
        return
    place = record.parent.parent
    for directory, status, error, overrides in jobs:
        if directory.parent.name != place.name or (place / directory.name / "run.json").exists():
            continue  # of another tree, which has the same record; or a run, which tells its state itself
        if status in ("finished", "finished before"):
            error = "is no longer there"
        yield f"{place / directory.name} ({overrides})", f"{status}: {error or 'its sweep ended before it'}"


def _trials(folder: Path) -> Iterable[tuple[str, str]]:
    path = folder / "trials.csv"
    if not path.exists():
        yield str(folder), "its search has not ended: trials that failed are not known yet"
        return
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row.get("state") == "FAIL":
                values = ", ".join(f"{key}={row[key]}" for key in row if key not in NOT_PARAMETERS and row[key])
                reason = row["reason"] or "its worker died or had no room for it"
                yield f"{folder} trial {row['number']} ({values})", reason

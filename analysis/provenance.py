"""What was compared: model, task, data, code, machines and dates of the runs, and the settings in which they differ."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from analysis.arms import NOT_COMPARED, is_knob
from analysis.load import Study
from analysis.tables import Cell, Table
from ngrpo.rundir.schema import read_run

FEW = 6  # values that are listed one by one
BESIDES = ("exploration.", "data:", "results.version")  # the strategy is the arm; the others have rows of their own


def table(study: Study) -> Table:
    """A row per fact, with all the values that occur in the runs; for sample files only their paths."""
    places = list(dict.fromkeys(map(str, study.runs["path"])))
    records = [read_run(Path(place)).content for place in places if Path(place, "run.json").exists()]
    facts = {
        "methods": [", ".join(study.arms)],
        "benchmarks": study.benchmarks,
        "runs": [f"{len(places)}, {(seeds := study.runs['seed'].nunique())} training seed{'s' * (seeds > 1)}"],
        **_of_records(records),
    }
    if not records:
        facts["files"] = places
    facts |= _differing(study)
    rows = [[Cell(name), Cell(_listed(values))] for name, values in facts.items() if _listed(values)]
    return Table("compared", "What was compared", ["what", "which"], rows, "as each run recorded it")


def _of_records(records: list[Mapping[str, Any]]) -> dict[str, list[str]]:
    def every(*path: str) -> list[Any]:
        values: list[Any] = list(records)
        for name in path:
            values = [value.get(name) if isinstance(value, Mapping) else None for value in values]
        return values

    data = [f"{name} {version}" for record in records for name, version in (record.get("data") or {}).items()]
    machines = [_machine(record.get("hardware") or {}) for record in records]
    versions = [
        " ".join(f"{name} {(record.get('versions') or {}).get(name)}" for name in ("ngrpo", "torch", "transformers"))
        for record in records
        if record.get("versions")
    ]
    dates = sorted(str(value)[:10] for value in every("created") if value)
    return {
        "model": every("config", "model", "path"),
        "task": every("config", "task", "_target_"),
        "data and model versions": data,
        "code": [commit[:12] + "-dirty" * commit.endswith("-dirty") for commit in every("git_commit") if commit],
        "libraries": versions,
        "dates": list(dict.fromkeys([*dates[:1], *dates[-1:]])),
        "hardware": machines,
        "threads": every("threads"),
    }


def _machine(hardware: Mapping[str, Any]) -> str:
    gpus = hardware.get("gpus") or []
    cores = f"{hardware['cores']} cores" if hardware.get("cores") else ""
    return ", ".join(str(part) for part in (hardware.get("cpu"), cores, *gpus) if part)


def _differing(study: Study) -> dict[str, list[str]]:
    """Settings other than the strategy's own that differ between runs."""
    configs, found = list(study.runs["config"]), {}
    for key in dict.fromkeys(key for config in configs for key in config):
        values = [json.dumps(config.get(key), default=str) for config in configs]
        if len(set(values)) > 1 and not (key in NOT_COMPARED or is_knob(key) or key.startswith(BESIDES)):
            found[f"differs: {key}"] = [value.strip('"') for value in values]
    return found


def _listed(values: Iterable[Any]) -> str:
    """The distinct values, or the first FEW of many."""
    different = list(dict.fromkeys(str(value) for value in values if value not in (None, "")))
    more = f" and {len(different) - FEW} more" if len(different) > FEW else ""
    return ", ".join(different[:FEW]) + more

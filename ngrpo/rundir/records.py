"""The run directory: its names, its files, its lock, and the hash that says which run it is.

Every file is written whole or not at all. What the numbers in the files mean, it does not know.
"""

import hashlib
import json
import math
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from ngrpo import __version__
from ngrpo.rundir.files import clean, finite_or_none, plain, read_csv, write_atomically, write_csv, write_json
from ngrpo.rundir.lock import acquire, holds, release, unwritable
from ngrpo.rundir.provenance import git_commit, hardware, package_versions
from ngrpo.tasks.base import OUTCOMES

SAMPLE_TYPES = {
    "run": "string", "benchmark": "string", "problem_id": "string", "sample_index": "int64", "prompt": "string",
    "completion": "string", "token_ids": "list<int32>", "n_tokens": "int64", "finish_reason": "string",
    "gold": "string", "extracted": "string", "solution_path": "string", "outcome": "string", "reward": "float64",
    "exploration": "string", "algorithm": "string", "step": "int64", "seed": "int64", "logprob_sum": "float64",
    "entropy_mean": "float64", "explored_steps": "int64",
}  # fmt: skip
SAMPLE_COLUMNS = tuple(SAMPLE_TYPES)

NOT_IDENTITY = {"hydra", "logger", "sweep", "limits", "fresh", "paths", "grading"}
PLACES = {"path", "directory"}  # of a data set: what it holds counts, by its version, and not where it lies
NOT_IDENTITY_OF_TRAINER = {"accelerator", "devices", "strategy"}
KEPT_HERE = {"status", "reason", "config_hash", "config", "data", "seed", "versions", "git_commit", "hardware",
             "resumed", "earlier", "wall_seconds", "created", "updated", "finished"}  # fmt: skip
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=-]{0,99}")
PART = re.compile(r"\..+\.[0-9a-f]{32}\.part")
SECONDS_BETWEEN_HEARTBEATS = 30.0


class ForeignRun(RuntimeError):
    """The directory holds something else than the run that was asked for."""


def checked_name(name: str) -> str:
    """`name` if it may be a part of a file name: up to 100 of `A-Z a-z 0-9 _ . + = -`, the first a letter or digit.

    Raises:
        ValueError: anything else, so that no name from a config or a data file can leave the run directory.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a file: use up to 100 letters, digits and _ . + = - (first: a-z, 0-9)")
    return name


def train_samples(directory: str | Path, step: int) -> Path:
    """The file of the training completions of one RL step."""
    return Path(directory, "samples", "train", f"{_step(step)}.parquet")


def eval_samples(directory: str | Path, benchmark: str, step: int) -> Path:
    """The file of the completions of one benchmark at one RL step; an unfit benchmark name is a ValueError."""
    return Path(directory, "samples", "eval", f"{checked_name(benchmark)}-{_step(step)}.parquet")


def write_samples(rows: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Sample rows as a parquet file with the columns and types of `SAMPLE_TYPES`, also where all cells are None.

    Raises:
        ValueError: a row with other columns, or an outcome that is not one of `OUTCOMES`.
    """
    import pyarrow
    import pyarrow.parquet

    rows = list(rows)
    for row in rows:
        if row.keys() != SAMPLE_TYPES.keys():
            raise ValueError(f"a sample row has other columns: {sorted(row.keys() ^ SAMPLE_TYPES.keys())}")
        if row["outcome"] not in OUTCOMES:
            raise ValueError(f"outcome must be one of {', '.join(OUTCOMES)}, got {row['outcome']!r}")
    columns = {}
    for name, kind in SAMPLE_TYPES.items():
        cells = [clean(row[name], text=kind == "string") for row in rows]
        arrow = pyarrow.list_(pyarrow.int32()) if kind == "list<int32>" else pyarrow.type_for_alias(kind)
        columns[name] = pyarrow.array(cells, arrow)
    write_atomically(path, lambda file: pyarrow.parquet.write_table(pyarrow.table(columns), file))


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that says which run it is: all but `NOT_IDENTITY`, PLACES and the devices of `trainer`."""
    kept = {str(key): value for key, value in config.items() if str(key) not in NOT_IDENTITY}
    for name, benchmark in (("task", False), ("benchmark", True)):
        if isinstance(node := kept.get(name), Mapping):
            kept[name] = {key: _placeless(child) for key, child in node.items()} if benchmark else _placeless(node)
    if isinstance(trainer := kept.get("trainer"), Mapping):
        kept["trainer"] = {key: value for key, value in trainer.items() if key not in NOT_IDENTITY_OF_TRAINER}
    return _canonical(kept)


def _placeless(node: Any) -> Any:
    return {key: child for key, child in node.items() if key not in PLACES} if isinstance(node, Mapping) else node


def config_hash(config: Mapping[str, Any], versions: Mapping[str, str] | None = None) -> str:
    """sha256 (64 hex digits) of the identity of a resolved config, of this package's version and of `versions`.

    The order of keys does not matter, nor whether a whole number is written 1 or 1.0.
    `versions` holds those of the data, such as {"story_math": "v1"}.
    """
    content = {"config": identity(config), "ngrpo": __version__, "data": _canonical(versions or {})}
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def run_directory(
    config: Mapping[str, Any], choices: Mapping[str, str | None], versions: Mapping[str, str] | None = None
) -> str:
    """`outputs/<experiment or task>/<exploration>-<algorithm>-s<seed>-<first 8 of the hash>`.

    Args:
        config: resolved, with `seed`.
        choices: group -> chosen option; `exploration`, `algorithm`, and `experiment` or `task` are needed.
    Raises:
        ValueError: a choice is missing or cannot name a directory.
    """
    chosen = {group: str(option) for group, option in choices.items() if option not in (None, "", "null")}
    named = [chosen.get("experiment") or chosen.get("task"), chosen.get("exploration"), chosen.get("algorithm")]
    if None in named:
        raise ValueError(f"a run is named after exploration, algorithm and experiment or task, got only {chosen}")
    study, exploration, algorithm = (checked_name(str(option).replace("/", "-")) for option in named)
    seed = int(config["seed"])
    return f"outputs/{study}/{exploration}-{algorithm}-s{seed}-{config_hash(config, versions)[:8]}"


class RunDirectory:
    """The files of one run, held under a lock by one process. Made by `open`, a context manager.

    Attributes:
        path: the directory.
        status: None (nothing was there), running (a run that was cut off), failed or finished, as found by `open`;
            then what `finish` and `fail` make of it.
        record: the content of run.json.
    """

    def __init__(self, path: Path, lock: int, record: dict[str, Any]):
        self.path, self.record = path, record
        self.status: str | None = record.get("status")
        self._lock = lock
        self._started = self._saved = time.monotonic()
        self._earlier_seconds = float(record.get("wall_seconds", 0.0))

    @classmethod
    def open(
        cls,
        path: str | Path,
        config: Mapping[str, Any],
        *,
        hash: str,
        fresh: bool = False,
        info: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> Self:
        """Starts or continues the run of `config` in `path`; a finished one is opened and nothing in it changed.

        Args:
            config: resolved; its `identity` stands in run.json.
            hash: `config_hash(config, versions)`.
            fresh: empties the directory first, but for .lock and .hydra, if it holds a run.
            info: further entries of run.json: `threads`, `batch_plan`, `gpus` (names) and what else is worth keeping.
            versions: those of the data.
        Raises:
            RunLocked: another living process holds the directory.
            ForeignRun: it holds another run, a damaged run.json, or files that belong to no run.
            OSError: it cannot be written.
        """
        path = Path(path)
        try:
            _refuse_other_files(path)
        except OSError as error:
            raise unwritable(path, error) from error
        lock = acquire(path)
        try:
            record = _read_record(path, fresh)
            if record and (fresh or record["config_hash"] is None):
                _clear(path, record)
                record = {}
            if record and record["config_hash"] != hash:
                raise ForeignRun(_difference(path, record, config, versions))
            _sweep(path)
            run = cls(path, lock, record)
            if run.status != "finished":
                run._begin(config, hash, plain(info or {}, "info", finite_or_none), dict(versions or {}))
        except BaseException:
            release(lock)
            raise
        return run

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # Ctrl-C and a signal leave the run unfinished; only what would happen again has failed.
        if isinstance(error, Exception) and self.status != "finished":
            with suppress(OSError):  # a full disk must not hide the error that it caused
                self.fail(f"{type(error).__name__}: {error}")
        self.close()

    def close(self) -> None:
        """Notes the time spent and lets go of the lock; the status stays what it is."""
        if holds(self._lock):  # not so in a forked child, which owns nothing here
            if self.status not in ("finished", "failed"):
                with suppress(OSError):
                    self._save()
            release(self._lock)

    def update(self, **fields: Any) -> None:
        """Puts `fields` in run.json; those that this class keeps itself are a ValueError."""
        if kept := fields.keys() & KEPT_HERE:
            raise ValueError(f"{', '.join(sorted(kept))} in run.json cannot be set by hand")
        self.record |= fields
        self._save()

    def finish(self) -> None:
        """Marks the run as finished: opening it again changes nothing."""
        self._save(status="finished", reason=None, finished=_now())

    def fail(self, reason: str) -> None:
        """Marks the run as failed for `reason`; the same command tries again from the last checkpoint."""
        self._save(status="failed", reason=reason)

    def append_row(self, name: str, row: Mapping[str, Any]) -> None:
        """Adds a row to `<name>.csv` (metrics, or timings for all that depends on the clock).

        Raises:
            ValueError: no whole number under `step`, or one that is not beyond the last row's.
        """
        path = self.path / f"{checked_name(name)}.csv"
        rows = _raw_rows(path)
        step, last = row.get("step"), int(rows[-1]["step"] or -1) if rows else -1
        if not isinstance(step, int) or step <= last:
            raise ValueError(f"{path.name} takes one row per RL step: got step={step!r} after {last}")
        write_csv([*rows, {key: None if value == "" else value for key, value in row.items()}], path)
        if time.monotonic() - self._saved > SECONDS_BETWEEN_HEARTBEATS:
            self._save()

    def drop_rows_after(self, name: str, step: int) -> None:
        """Takes out of `<name>.csv` the rows of RL steps beyond `step`, which are going to be done again."""
        path = self.path / f"{checked_name(name)}.csv"
        rows = _raw_rows(path)
        kept = [row for row in rows if int(row["step"] or -1) <= step]
        if len(kept) < len(rows):
            # All columns stay, in their order: a run that was cut off then writes the same file as one that was not.
            write_csv(kept, path) if kept else path.unlink()

    def read_results(self) -> dict[str, dict[str, Any]]:
        """results.json: benchmark -> RL step, as text -> entry; empty where there is none."""
        path = self.path / "results.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else {}

    def record_result(self, benchmark: str, step: int, entry: Mapping[str, Any]) -> None:
        """Puts the entry of a benchmark at an RL step in results.json, in place of an earlier one."""
        results = self.read_results()
        steps = {**results.get(checked_name(benchmark), {}), _step(step): entry}
        results[benchmark] = {key: steps[key] for key in sorted(steps, key=int)}
        write_json(results, self.path / "results.json")

    def _begin(self, config: Mapping[str, Any], hash: str, info: dict[str, Any], versions: dict[str, str]) -> None:
        facts = {"versions": package_versions(), "git_commit": git_commit(), "hardware": hardware(info.pop("gpus", []))}
        facts |= {"threads": info.get("threads"), "batch_plan": info.get("batch_plan")}
        if self.status is None:
            self.record = {
                "status": "running", "reason": None, "config_hash": hash, "config": identity(config), "data": versions,
                "seed": config.get("seed"), **facts, "resumed": 0, "earlier": [],
                "wall_seconds": 0.0, "created": _now(), "updated": None, "finished": None,
            }  # fmt: skip
        else:
            changed = {key: self.record.get(key) for key in facts if self.record.get(key) != facts[key]}
            earlier = [*self.record["earlier"], *([changed] if changed else [])]
            self.record |= {**facts, "status": "running", "reason": None, "earlier": earlier}
            self.record["resumed"] += 1
        self.update(**info)

    def _save(self, **fields: Any) -> None:
        self._saved = time.monotonic()
        if self.status != "finished":
            self.record["wall_seconds"] = round(self._earlier_seconds + self._saved - self._started, 3)
        self.record |= {"updated": _now(), **fields}
        write_json(self.record, self.path / "run.json")
        self.status = fields.get("status", self.status)


def _canonical(config: Mapping[str, Any]) -> dict[str, Any]:
    """Plain containers in which 1.0 is 1, and inf and nan are words, as in the hash."""

    def number(value: float) -> float | int | str:
        if not math.isfinite(value):
            return str(value)
        return int(value) if value.is_integer() and abs(value) < 2**53 else value

    return plain(config, "config", number)


def _raw_rows(path: Path) -> list[dict[str, str | None]]:
    return [{name: cell or None for name, cell in row.items()} for row in read_csv(path)]


def _refuse_other_files(path: Path) -> None:
    if path.is_dir() and not (path / "run.json").exists():
        others = [entry.name for entry in path.iterdir() if entry.name not in (".hydra", ".lock")]
        if others := [name for name in others if not PART.fullmatch(name)]:
            raise ForeignRun(
                f"{path} holds {min(others)} and no run.json, so it is no run: choose another with hydra.run.dir="
            )


def _read_record(path: Path, fresh: bool) -> dict[str, Any]:
    try:
        record = json.loads((path / "run.json").read_text("utf-8"))
        return {"config_hash": None, "earlier": [], "resumed": 0} | record
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        if fresh:
            return {"config_hash": None}
        raise ForeignRun(
            f"{path}/run.json is damaged ({error}): fresh=true deletes that run and starts anew"
        ) from error


def _clear(path: Path, record: dict[str, Any]) -> None:
    # Without its hash the record says, to whoever finds a half-emptied directory, that the emptying must go on.
    cut_off = {"status": "failed", "reason": "emptying for fresh=true was cut off", "config_hash": None}
    write_json({**record, **cut_off}, path / "run.json")
    for entry in path.iterdir():
        if entry.name in (".lock", ".hydra", "run.json"):
            continue
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    (path / "run.json").unlink()


def _sweep(path: Path) -> None:
    for part in path.rglob(".*.part"):
        if PART.fullmatch(part.name):
            part.unlink()


def _difference(
    path: Path, record: dict[str, Any], config: Mapping[str, Any], versions: Mapping[str, str] | None
) -> str:
    there = {**record.get("config", {}), "data": record.get("data", {})}
    here = {**identity(config), "data": _canonical(versions or {})}
    before = _flat({**there, "ngrpo": record.get("versions", {}).get("ngrpo")})
    after = _flat({**here, "ngrpo": __version__})
    keys = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
    shown = [f"{key}={before.get(key, 'absent')} there, {after.get(key, 'absent')} here" for key in keys[:6]]
    more = f" and {len(keys) - 6} more" if len(keys) > 6 else ""
    return (
        f"{path} holds another run ({'; '.join(shown) or 'same config, other hash'}{more}): "
        "fresh=true deletes it, hydra.run.dir=<directory> keeps it"
    )


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, str]:
    leaves: dict[str, str] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and value
        leaves |= _flat(value, f"{above}{key}.") if nested else {f"{above}{key}": json.dumps(value)}
    return leaves


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _step(step: int) -> str:
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError(f"an RL step is a whole number of at least 0, got {step!r}")
    return str(step)

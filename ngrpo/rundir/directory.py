"""The life of a run directory: opened under a lock by one process, begun or continued, finished, failed or cut off."""

import json
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from ngrpo.rundir.files import DiskFull, no_room, plain, write_json, write_over
from ngrpo.rundir.interrupts import INTERRUPTS, Interrupted
from ngrpo.rundir.lock import Gone, acquire, gone, holds, is_gone, release, unwritable
from ngrpo.rundir.provenance import git_commit, hardware, package_versions
from ngrpo.rundir.schema import (
    MAY_CHANGE_BITS,
    RESULTS_VERSION,
    RunRecord,
    Unreadable,
    canonical,
    check_files,
    checksum_of,
    checksums,
    leaves,
    read_run,
    recorded,
)

OF_A_RUN = ("checkpoints", "metrics.csv", "results.json", "samples", "hf")
PART = re.compile(r"\..+\.[0-9a-f]{32}\.part")


class ForeignRun(RuntimeError):
    """The directory holds something else than the run that was asked for."""


class RunDirectory:
    """The files of one run, held under a lock by one process. Made by `open`, a context manager.

    Attributes:
        path: the directory.
        status: None (nothing was there), running (a run that was killed), interrupted, failed or finished, as found by
            `open`; then what `finish`, `interrupt` and `fail` make of it.
        record: the content of run.json.
        trust_changed: whether it goes on where a file of the run is another than it was.
    """

    def __init__(self, path: Path, lock: int, record: dict[str, Any], trust_changed: bool = False):
        self.path, self.record, self.trust_changed = path, record, trust_changed
        self.status: str | None = record.get("status")
        self._lock = lock
        self._started = self.saved = time.monotonic()
        self._earlier_seconds = float(record.get("wall_seconds", 0.0))

    @classmethod
    def open(
        cls,
        path: str | Path,
        config: Mapping[str, Any],
        *,
        hash: str,
        kind: str = "run",
        fresh: bool = False,
        trust_changed: bool = False,
        info: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> Self:
        """Starts or continues the run of `config` in `path`; a finished one is opened and nothing in it changed.

        Args:
            config: resolved; its `identity` stands in run.json.
            hash: `config_hash(config, versions)`.
            kind: one of schema.KINDS.
            fresh: empties the directory first, but for .lock and .hydra, if it holds a run.
            trust_changed: goes on where a file is not what the run left.
            info: further entries of run.json: `threads`, `devices`, `batching` and what else is worth keeping.
            versions: those of the data.
        Raises:
            RunLocked: another living process holds the directory.
            ForeignRun: it holds another run, one of an older version, or files that belong to no run.
            Unreadable: its run.json is gone or damaged, or a file of the finished run is not what it was then.
            OSError: it cannot be written.
        """
        path = Path(path)
        try:
            _refuse_other_files(path)
        except OSError as error:
            raise unwritable(path, error) from error
        lock = acquire(path)
        try:
            found = _found(path, fresh, trust_changed)
            if found and (fresh or found.config_hash is None):
                _clear(path, dict(found.content))
                found = None
            identity = {
                "kind": kind, "results_version": RESULTS_VERSION, "config_hash": hash, "config": recorded(config),
                "data": canonical(versions or {}), "seed": config.get("seed"),
            }  # fmt: skip
            if found and found.config_hash != hash:
                raise ForeignRun(_difference(found, identity))
            if found and found.status == "finished" and not trust_changed:
                check_files(found)
            _remove_parts(path)
            run = cls(path, lock, {"earlier": [], "resumed": 0} | dict(found.content) if found else {}, trust_changed)
            if run.status != "finished":
                run._begin(identity, plain(info or {}))
        except BaseException:
            release(lock)
            raise
        return run

    def __enter__(self) -> Self:
        INTERRUPTS.last_words.append(self.interrupt)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        lost = isinstance(error, Exception) and is_gone(self._lock)
        # Another exception, such as SystemExit, leaves the run unfinished; only what would happen again has failed.
        if error is not None and self.status != "finished" and not lost:
            with suppress(OSError):  # what cannot be written must not hide the error that it came of
                if isinstance(error, (Interrupted, KeyboardInterrupt)):
                    self.interrupt(str(error) or "stopped by Ctrl-C")
                elif isinstance(error, Exception):
                    self.fail(f"{type(error).__name__}: {no_room(error) or error}")
        self.close()
        if lost and not isinstance(error, Gone):
            raise gone(self.path) from error

    def close(self) -> None:
        """Notes the time spent and lets go of the lock; the status stays what it is."""
        with suppress(ValueError):
            INTERRUPTS.last_words.remove(self.interrupt)
        if holds(self._lock):  # not so in a forked child, which owns nothing here
            if self.status not in ("finished", "failed", "interrupted"):
                with suppress(OSError, Gone):
                    self.save()
            release(self._lock)

    def finish(self) -> None:
        """Marks the run as finished: opening it again changes nothing."""
        self.save(status="finished", reason=None, finished=_now(), checksums=checksums(self.path))

    def fail(self, reason: str) -> None:
        """Marks the run as failed for `reason`; the same command tries again from the last checkpoint."""
        self.save(status="failed", reason=reason, finished=None)

    def interrupt(self, reason: str) -> None:
        """Marks the run as stopped by whoever uses it: the same command continues."""
        if holds(self._lock) and self.status != "finished":  # not in a forked child
            self.save(status="interrupted", reason=reason, finished=None)

    def save(self, **fields: Any) -> None:
        """Writes run.json with the time spent so far, and `fields` in it."""
        self.saved = time.monotonic()
        if self.status != "finished":
            self.record["wall_seconds"] = round(self._earlier_seconds + self.saved - self._started, 3)
        self.record |= {"updated": _now(), **fields}
        try:
            write_json(_sealed(self.record), self.path / "run.json")
        except DiskFull:
            if fields.get("status") not in ("failed", "interrupted"):
                raise
            self.record.pop("checksums", None)  # of an end that could not be written
            try:  # without the indents it is mostly shorter than what was there
                write_over(_sealed(self.record), self.path / "run.json")
            except OSError:
                self.record["reason"] = "no room on the disk"
                write_over(_sealed(self.record), self.path / "run.json")
        self.status = fields.get("status", self.status)

    def _begin(self, identity: dict[str, Any], info: dict[str, Any]) -> None:
        facts = {"versions": package_versions(), "git_commit": git_commit(), "hardware": hardware()}
        facts |= {name: info.get(name) for name in ("threads", "devices", "batching")}
        if self.status is None:
            self.record = {
                "status": "running", "reason": None, **identity, **facts, "resumed": 0, "earlier": [],
                "wall_seconds": 0.0, "created": _now(), "updated": None, "finished": None,
            }  # fmt: skip
        else:
            changed = {key: self.record.get(key) for key in facts if self.record.get(key) != facts[key]}
            earlier = [*self.record["earlier"], *([changed] if changed else [])]
            if others := _changes(changed, facts):
                print(
                    f"note: continued with {others}: numbers may differ in their last digits from those of one machine"
                )
            self.record |= {**identity, **facts, "status": "running", "reason": None, "earlier": earlier}
            self.record["resumed"] += 1
        self.save(**info)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What of a machine is another than it was, where that may change bits: `threads=1, which was 2`."""
    old, new = dict(leaves(before)), dict(leaves(now))
    changed = [key for key in MAY_CHANGE_BITS if old.get(key) is not None and old[key] != new.get(key)]
    return "; ".join(
        f"{key.rpartition('.')[2]}={new.get(key) or 'none'}, which was {old[key] or 'none'}" for key in changed
    )


def _refuse_other_files(path: Path) -> None:
    if path.is_dir() and not (path / "run.json").exists():
        names = {entry.name for entry in path.iterdir()} - {".hydra", ".lock"}
        if others := [name for name in names if not PART.fullmatch(name)]:
            if lost := next((name for name in OF_A_RUN if name in others), None):
                line = f"{path}/run.json is gone, which stood beside {lost}: put it back, or choose another directory"
                raise Unreadable(f"{line} with hydra.run.dir=")
            raise ForeignRun(
                f"{path} holds {min(others)} and no run.json, so it is no run: choose another with hydra.run.dir="
            )


def _found(path: Path, fresh: bool, trust_changed: bool) -> RunRecord | None:
    if not (path / "run.json").exists():
        return None
    try:
        return read_run(path, trust_changed=trust_changed)
    except Unreadable as error:
        if fresh:
            return RunRecord(path)
        raise Unreadable(f"{error}; fresh=true deletes that run and starts anew") from error


def _clear(path: Path, record: dict[str, Any]) -> None:
    # Without its hash the record says, to whoever finds a half-emptied directory, that the emptying must go on.
    cut_off = {"status": "failed", "reason": "emptying for fresh=true was cut off", "config_hash": None}
    write_json(_sealed({**record, **cut_off}), path / "run.json")
    for entry in path.iterdir():
        if entry.name in (".lock", ".hydra", "run.json"):
            continue
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    (path / "run.json").unlink()


def _sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """What is written as run.json: the record with its own checksum."""
    content = plain(record)
    return {**content, "checksum": checksum_of(content)}


def _remove_parts(path: Path) -> None:
    for part in path.rglob(".*.part"):
        if PART.fullmatch(part.name):
            part.unlink()


def _difference(found: RunRecord, identity: Mapping[str, Any]) -> str:
    mend = "fresh=true deletes it, hydra.run.dir=<directory> keeps it"
    if found.results_version is None:
        version = found.content.get("versions", {}).get("ngrpo", "0.1")
        return f"{found.path} holds a run of ngrpo {version}, which this version reads and cannot continue: {mend}"
    before, after = _flat(found.content), _flat(identity)
    keys = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
    shown = [f"{key}={before.get(key, 'absent')} there, {after.get(key, 'absent')} here" for key in keys[:6]]
    more = f" and {len(keys) - 6} more" if len(keys) > 6 else ""
    return f"{found.path} holds another run ({'; '.join(shown) or 'same config, other hash'}{more}): {mend}"


def _flat(record: Mapping[str, Any]) -> dict[str, str]:
    """What says which run it is, as JSON, by dotted keys."""
    tree = {**record.get("config", {}), **{name: record.get(name) for name in ("data", "results_version")}}
    return {key: json.dumps(value) for key, value in leaves(tree)}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

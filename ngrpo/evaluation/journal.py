"""The journal file of a search: a lock that dies with its holder, and what is done about damaged records."""

import fcntl
import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.study import StudyDirection

from ngrpo.rundir.files import write_atomically

NEW_STUDY, NEW_TRIAL = 0, 4  # Optuna's numbers of records that begin one; those after them count trials in their order
MENDED = "mended"  # the worker that lost records are written by


class DamagedJournal(RuntimeError):
    """A record cannot be read; those before it have been."""


class OwnedLock(BaseJournalFileLock):
    """One process, and one thread of it, at a time. The system opens it when its holder dies, however that dies.

    Optuna's own locks are files that a dead holder leaves behind, over which all others then wait. On network disks it needs
    flock to work between machines, as NFS since Linux 2.6.12 does; where it does not, use a database.
    """

    def __init__(self, path: str | Path):
        self.path = f"{path}.flock"
        self._descriptor = -1

    def acquire(self) -> bool:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)  # its own for each thread
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        os.close(self._descriptor)


class Journal(JournalFileBackend):
    """Optuna's journal with that lock. Raises DamagedJournal where a record cannot be read."""

    def __init__(self, path: str | Path):
        super().__init__(str(path), OwnedLock(path))
        self.path = path

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        try:
            yield from super().read_logs(log_number_from)
        except ValueError as error:
            raise DamagedJournal(f"{self.path}: a record is damaged ({error}); the same command mends it") from error

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        try:
            super().append_logs(logs)
        except OSError as error:
            error.filename = error.filename or str(self.path)  # a full disk says nothing of the file
            raise


def open_journal(path: str | Path) -> JournalStorage:
    """The storage in a journal file, which is made if it is missing."""
    return JournalStorage(Journal(path))


def mend(path: Path, name: str, directions: Sequence[str]) -> str | None:
    """Takes damaged records out of the journal of the study `name` and says so in a line; the file as it was is kept.

    A lost record that had begun the study or a trial is replaced, because later ones count trials. What cannot be read in
    spite of that ends before the first damaged record.
    """
    lock = OwnedLock(path)
    lock.acquire()
    try:
        content = path.read_bytes()
        records = [_record(line) for line in io.BytesIO(content).readlines()]
        bad = [at for at, record in enumerate(records) if record is None]
        if not bad:
            return None
        filled = _filled(records, name, [StudyDirection[word.upper()].value for word in directions])
        if filled is None or not _replays(filled, path.with_suffix(f".{os.getpid()}.trial")):
            filled = records[: bad[0]]
        aside = path.with_suffix(f".damaged-{time.time_ns() // 10**6}.log")
        write_atomically(aside, content)
        write_atomically(path, _text(filled))
    finally:
        lock.release()
    kept = sum(record is not None and record["worker_id"] != MENDED for record in filled)
    what = f"record {bad[0] + 1} of {len(records)} is cut off or damaged"
    return f"{path}: {what}: {len(records) - kept} moved aside, {kept} kept; the file as it was is {aside.name}"


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("trial_id", 0), int):
        return None
    return record if isinstance(record.get("op_code"), int) and "worker_id" in record else None


def _filled(
    records: Sequence[dict[str, Any] | None], name: str, directions: Sequence[int]
) -> list[dict[str, Any] | None] | None:
    """The records, with the beginning of the study or a trial in a lost one's place wherever later ones know of more than
    have begun; None where there are not enough lost ones for that."""
    found, trials, lost = list(records), 0, []
    if records[0] is None:
        found[0] = {"op_code": NEW_STUDY, "worker_id": MENDED, "study_name": name, "directions": directions}
    for at, record in enumerate(records):
        if record is None:
            lost += [at] * (at > 0)
            continue
        while record.get("trial_id", -1) >= trials:
            if not lost:
                return None
            found[lost.pop()] = {"op_code": NEW_TRIAL, "worker_id": MENDED, "study_id": 0, "datetime_start": None}
            trials += 1
        trials += record["op_code"] == NEW_TRIAL
    return found


def _replays(records: Sequence[dict[str, Any] | None], path: Path) -> bool:
    """Whether Optuna reads them."""
    path.write_bytes(_text(records))
    try:
        open_journal(path).get_all_studies()
    except Exception:  # noqa: BLE001 - a record that makes no sense can fail in any way
        return False
    finally:
        path.unlink()
        Path(f"{path}.flock").unlink(missing_ok=True)
    return True


def _text(records: Sequence[dict[str, Any] | None]) -> bytes:
    return "".join(f"{json.dumps(r, separators=(',', ':'))}\n" for r in records if r is not None).encode()

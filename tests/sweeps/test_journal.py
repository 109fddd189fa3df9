"""The journal of a search: a lock that dies with its holder, and damage that costs what is damaged."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import optuna
import pytest
from places import REPOSITORY

from ngrpo.evaluation.journal import DamagedJournal, OwnedLock, mend, open_journal
from ngrpo.rundir.files import no_room

optuna.logging.set_verbosity(optuna.logging.ERROR)
HOLDER = """
import sys, time
from ngrpo.evaluation.journal import OwnedLock
from ngrpo.rundir.files import no_room
OwnedLock(sys.argv[1]).acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_is_free_once_its_holder_is_killed(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "journal.log")]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    lock, got = OwnedLock(tmp_path / "journal.log"), threading.Event()
    threading.Thread(target=lambda: (lock.acquire(), got.set()), daemon=True).start()
    before = time.process_time()
    assert not got.wait(0.3) and time.process_time() - before < 0.1  # it waits, and does not spin
    os.kill(holder.pid, signal.SIGKILL)
    assert got.wait(5)
    lock.release()
    holder.wait()


def test_threads_take_turns(tmp_path):
    lock, inside, most = OwnedLock(tmp_path / "journal.log"), [], []

    def work() -> None:
        for _ in range(20):
            lock.acquire()
            inside.append(1)
            most.append(len(inside))
            inside.pop()
            lock.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 80


def studied(path) -> optuna.Study:
    options = {"study_name": "s", "direction": "maximize", "load_if_exists": True}
    return optuna.create_study(storage=open_journal(path), sampler=optuna.samplers.RandomSampler(0), **options)


def work(study: optuna.Study, trials: int) -> list[float | None]:
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1) + trial.suggest_int("k", 1, 3), trials)
    return [trial.value for trial in study.trials]


@pytest.mark.parametrize("garbage", [b"garbage\n", b"\xff\x00\r\x01\n", b'{"op_code":5\n', b"\n"])
def test_wherever_a_record_is_damaged_at_most_its_trial_is_lost(tmp_path, garbage):
    path = tmp_path / "journal.log"
    values = work(studied(path), 4)
    lines = path.read_bytes().splitlines(keepends=True)
    for at in range(len(lines)):
        damaged = b"".join([*lines[:at], garbage, *lines[at + 1 :]])
        path.write_bytes(damaged)
        if at < len(lines) - 1 and garbage != b"\n":
            with pytest.raises(DamagedJournal, match=r"journal.log: a record is damaged .* the same command mends it"):
                studied(path)
        told = mend(path, "s", ["maximize"])
        assert told and f"record {at + 1} of {len(lines)} is cut off or damaged: 1 moved aside" in told
        (aside,) = tmp_path.glob("journal.damaged-*.log")
        assert aside.name in told and aside.read_bytes() == damaged
        aside.unlink()
        kept = [trial.value for trial in studied(path).trials]
        assert len(kept) == 4 and sum(a == b for a, b in zip(kept, values, strict=True)) >= 3
        assert mend(path, "s", ["maximize"]) is None and len(work(studied(path), 1)) == 5


@pytest.mark.parametrize("content", [b"", b"\xff" * 5000, b"{}\n", b"[" * 100_000])
def test_a_file_that_is_no_journal_is_kept_and_the_study_begins_anew(tmp_path, content):
    path = tmp_path / "journal.log"
    path.write_bytes(content)
    told = mend(path, "s", ["maximize"])
    assert (told is not None) == bool(content)
    assert [p.read_bytes() for p in tmp_path.glob("*.damaged-*")] == [content] * bool(content)
    assert len(work(studied(path), 2)) == 2


def test_a_full_disk_names_the_journal(tmp_path, monkeypatch):
    study = studied(tmp_path / "journal.log")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        study.set_user_attr("a", 1)
    assert str(tmp_path / "journal.log") in str(no_room(caught.value))

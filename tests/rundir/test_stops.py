"""Processes that are stopped, lose the reader of their output, or run out of disk: one line, a status, and no traceback."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from places import REPOSITORY
from study import make_run

from ngrpo.rundir import checkpoints
from ngrpo.rundir.directory import RunDirectory
from ngrpo.rundir.files import DiskFull, no_room, write_atomically
from ngrpo.rundir.interrupts import Interrupted
from ngrpo.rundir.lock import Gone

BEGIN = """
import os, signal, sys, time
from ngrpo.rundir import interrupts
interrupts.begin()
"""
RUN = (
    BEGIN
    + """
from ngrpo.rundir.directory import RunDirectory
with RunDirectory.open(sys.argv[1], {"seed": 0}, hash="a") as run:
    print("open", flush=True)
"""
)


def start(code: str, *arguments: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, **options)


def record(place: Path) -> dict:
    return json.loads((place / "run.json").read_text())


def opened(process: subprocess.Popen) -> subprocess.Popen:
    assert process.stdout is not None
    while process.stdout.readline().strip() != "open":
        assert process.poll() is None
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_outside_of_a_step_a_signal_ends_a_run_at_once_and_is_noted(tmp_path, number):
    process = opened(start(f"{RUN}    time.sleep(60)", tmp_path))
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert err == f"error: stopped by {number.name}; the same command continues\n"
    assert (record(tmp_path)["status"], record(tmp_path)["reason"]) == ("interrupted", err[7:].strip())


def test_a_process_without_a_run_ends_in_one_line():
    process = start(f"{BEGIN}print('open', flush=True)\ntime.sleep(60)")
    opened(process).send_signal(signal.SIGINT)
    assert (process.communicate(timeout=20)[1], process.returncode) == ("error: stopped by SIGINT\n", 130)


def test_the_second_ctrl_c_ends_at_once_and_shows_the_cursor_again(tmp_path):
    leader, terminal = pty.openpty()
    body = "    with interrupts.INTERRUPTS.polled():\n        print('working', flush=True)\n        time.sleep(60)"
    process = start(f"{RUN}{body}", tmp_path, stdout=terminal, stderr=terminal)
    os.close(terminal)
    text = b""
    for awaited in (b"working", b"saving after this step"):
        while awaited not in text:
            text += os.read(leader, 1000)
        process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    while b"\x1b[?25h" not in text:
        text += os.read(leader, 1000)
    os.close(leader)
    assert record(tmp_path)["status"] == "interrupted"


def test_nohup_keeps_a_process_from_hearing_that_its_terminal_is_gone():
    code = f"import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN){BEGIN}os.kill(os.getpid(), signal.SIGHUP)"
    assert start(code).wait(20) == 0


def test_a_stopped_run_is_interrupted_and_not_failed(tmp_path):
    with pytest.raises(Interrupted), RunDirectory.open(tmp_path, {"seed": 0}, hash="a"):
        raise Interrupted(signal.SIGTERM, 7)
    assert record(tmp_path)["status"] == "interrupted" and "after RL step 7" in record(tmp_path)["reason"]


def test_a_signal_while_the_end_is_being_written_leaves_a_run_that_goes_on(tmp_path, monkeypatch):
    with RunDirectory.open(tmp_path, {"seed": 0}, hash="a") as run:
        with monkeypatch.context() as patch:
            patch.setattr("ngrpo.rundir.directory.write_json", full)
            with pytest.raises(OSError, match="No space"):
                run.finish()
        run.interrupt("stopped by SIGTERM")
    assert (record(tmp_path)["status"], record(tmp_path)["finished"]) == ("interrupted", None)


# --- output that nobody reads


def test_a_closed_pipe_does_not_end_a_process(tmp_path):
    code = f"{BEGIN}for at in range(9999): print('x' * 99)\nprint('x', file=sys.stderr)\nopen(sys.argv[1], 'w').close()"
    process = start(code, tmp_path / "done")
    assert process.stdout is not None and process.stderr is not None
    process.stderr.close()
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(20) == 0 and (tmp_path / "done").exists()


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-", "> /dev/full 2>&1"])
def test_closed_streams_are_not_taken_for_files(tmp_path, closed):
    code = f"{BEGIN}file = open(sys.argv[1], 'w')\nprint('x')\nprint('y', file=sys.stderr)\nos.system('echo z')\nfile.close()"
    shell = ["sh", "-c", f'exec "$0" -c "$1" "$2" {closed}', sys.executable, code, str(tmp_path / "file")]
    done = subprocess.run(shell, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True)
    assert done.returncode == 0 and (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("script", ["plan.py", "report.py", "audit.py"])
def test_entry_points_end_quietly_where_nobody_reads(script, tmp_path):
    make_run(tmp_path, "token_sampling", 0, [1, 2, 3])
    words = {"plan.py": [], "report.py": [f"runs={tmp_path}"], "audit.py": ["task=story_math"]}[script]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, script, *words], cwd=REPOSITORY, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.stderr, done.returncode) == ("", 0)
    assert (tmp_path / "report").is_dir() == (script == "report.py")


# --- a disk without room, and a directory that is gone


def full(*_: object):
    raise OSError(28, "No space left on device")


def test_where_run_json_cannot_be_written_anew_it_is_written_over(tmp_path, monkeypatch):
    told = pytest.raises(DiskFull, match=r"metrics.csv was not written: No space.* needs 3 bytes.*kept")
    with told, RunDirectory.open(tmp_path, {"seed": 0}, hash="a") as run:
        size = (tmp_path / "run.json").stat().st_size
        monkeypatch.setattr(os, "open", full)  # what makes files
        write_atomically(run.path / "metrics.csv", b"a,b")
    monkeypatch.undo()
    assert record(tmp_path)["status"] == "failed" and (tmp_path / "run.json").stat().st_size == size
    with RunDirectory.open(tmp_path, {"seed": 0}, hash="a") as run:
        assert run.status == "failed"


def test_what_a_library_says_of_a_full_disk_is_understood():
    told = no_room(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert told and "os error 28" in str(told) and no_room(ValueError("no")) is None
    try:
        full()
    except OSError as error:
        assert str(no_room(error)).count("\n") == 0


def test_room_for_checkpoints_is_looked_for_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 2**20))
    checkpoints.refuse_full(tmp_path, 2**18, 2**18, 3)
    with pytest.raises(DiskFull, match=r"3 MiB are needed .* 1 MiB are free; nothing was begun: .* checkpoints.keep=1"):
        checkpoints.refuse_full(tmp_path, 2**19, 3 * 2**19, 3)


def test_a_directory_that_is_deleted_or_another_is_not_written_to(tmp_path):
    for again in (False, True):
        place = tmp_path / f"run{again}"
        with pytest.raises(Gone, match="was deleted or moved"), RunDirectory.open(place, {"seed": 0}, hash="a") as run:
            shutil.rmtree(place)
            if again:
                place.mkdir()
                (place / ".lock").touch()
                write_atomically(run.path / "a.json", b"{}")
            raise FileNotFoundError("a file of the run")
        assert [p.name for p in place.glob("*")] == [".lock"] * again

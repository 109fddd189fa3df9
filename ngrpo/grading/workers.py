"""Processes that compare formulas, each of which may be killed: one that overruns or dies costs its answer and no other.

It does not know what is compared. Nothing here uses signals of this process, so it may be called from any thread and
after a fork.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("latex_worker.py")
SECONDS = 1.0  # of wall clock for one comparison
PATIENCE = 1.8  # times that, where other programs kept the processor from it for half of it
START = 60.0  # seconds in which a process must be ready
IN_FLIGHT = 16_000  # bytes sent ahead to one process, so that writing never blocks on a full pipe
DEATHS = 10  # of processes on one request before it is the request's fault: to crash so many takes a moment only


class GraderFailed(RuntimeError):
    """The processes that compare formulas cannot be started."""


@dataclass
class _Process:
    """One process, our ends of its pipes, and the numbers of the requests that it has not answered, in order."""

    tasks: int
    answers: int
    waiting: deque[int] = field(default_factory=deque)
    buffer: bytes = b""
    pid: int = 0  # 0 until it is ready
    dead: bool = False
    since: float = field(default_factory=time.monotonic)  # when it began with the first of them
    busy_since: float = 0.0  # its processor seconds at that time


class Workers:
    """A process that compares and a warm spare, started when first needed and ended with this process."""

    def __init__(self):
        self._lock = threading.Lock()
        self._owner = 0
        self._idle: list[_Process] = []
        self._fork_server: subprocess.Popen | None = None  # has imported everything and forks the others
        self._requests: socket.socket | None = None
        atexit.register(self.close)

    def compare(self, requests: Sequence[Sequence[Any]]) -> list[str]:
        """An outcome for each list of pairs (gold, answer), of which the best counts.

        It is what the process says, `timeout`, or `error` where several died on it.

        Raises GraderFailed where no process can be started.
        """
        with self._lock:
            if self._owner != os.getpid():  # a fork has copies of our pipes, which are not its own
                self._owner, self._idle, self._fork_server, self._requests = os.getpid(), [], None, None
            return _Batch(requests, self).run()

    def take(self) -> _Process:
        """A process to work with, the spare where there is one; another one is on its way."""
        while len(self._idle) < 2:
            self._idle.append(self._start())
        return self._idle.pop(0)

    def give_back(self, process: _Process) -> None:
        """It is not needed for now."""
        self._idle.insert(0, process)

    def close(self) -> None:
        """Ends all processes."""
        if self._owner == os.getpid():
            for process in self._idle:
                end(process)
            self._idle = []
            self._close_fork_server()

    def _close_fork_server(self) -> None:
        if self._fork_server is not None and self._requests is not None:
            self._requests.close()
            self._fork_server.kill()
            self._fork_server.wait()
        self._fork_server = self._requests = None

    def _start(self) -> _Process:
        """A process that will be ready in a moment, or found dead if its fork server is."""
        if self._fork_server is not None and self._fork_server.poll() is not None:
            if self._fork_server.returncode > 0:  # nobody killed it: it would fail again
                raise GraderFailed(f"the grader's process ends at once; {sys.executable} {WORKER} 1 says why")
            self._close_fork_server()
        if self._fork_server is None or self._requests is None:
            self._requests, theirs = socket.socketpair()
            command = [sys.executable, "-I", str(WORKER), str(SECONDS * PATIENCE + 0.1)]
            silent = subprocess.DEVNULL
            self._fork_server = subprocess.Popen(command, stdin=theirs.fileno(), stdout=silent, stderr=silent)
            theirs.close()
        (tasks, our_tasks), (our_answers, answers) = os.pipe(), os.pipe()
        with suppress(OSError):  # the fork server has just died: so will the process, for want of pipes
            socket.send_fds(self._requests, [b"+"], [tasks, answers])
        os.close(tasks)
        os.close(answers)
        return _Process(our_tasks, our_answers)


class _Batch:
    """Requests on their way through the processes."""

    def __init__(self, requests: Sequence[Sequence[Any]], workers: Workers):
        self.workers = workers
        self.lines = [(json.dumps(request) + "\n").encode() for request in requests]
        self.outcomes: list[str | None] = [None] * len(requests)
        self.todo, self.deaths = deque(range(len(requests))), [0] * len(requests)

    def run(self) -> list[str]:
        """The outcomes, once all are there."""
        process = self.workers.take()
        while process.waiting or self.todo:
            self._feed(process)
            select.select([process.answers], [], [], 0.02)
            self._read(process)
            if process.dead or self._late(process):
                self._take_back(process)
                process = self.workers.take()
        self.workers.give_back(process)
        return [str(outcome) for outcome in self.outcomes]

    def _feed(self, process: _Process) -> None:
        room = IN_FLIGHT - sum(len(self.lines[number]) for number in process.waiting)
        while process.pid and self.todo and (room > 0 or not process.waiting):
            number = self.todo.popleft()
            room -= len(self.lines[number])
            if not process.waiting:
                process.since, process.busy_since = time.monotonic(), processor_seconds(process.pid)
            process.waiting.append(number)
            try:
                os.write(process.tasks, self.lines[number])
            except OSError:  # it died before it was asked
                process.dead = True
                self.todo.appendleft(process.waiting.pop())
                return

    def _read(self, process: _Process) -> None:
        while select.select([process.answers], [], [], 0)[0]:
            content = os.read(process.answers, 65536)
            if not content:
                process.dead = True
                return
            *lines, process.buffer = (process.buffer + content).split(b"\n")
            for line in lines:
                if not process.pid:
                    process.pid = int(line)
                else:
                    self.outcomes[process.waiting.popleft()] = line.decode()
            process.since, process.busy_since = time.monotonic(), processor_seconds(process.pid)

    def _late(self, process: _Process) -> bool:
        """Whether its comparison takes too long; one that hardly got a processor has a little longer."""
        spent = time.monotonic() - process.since
        if not process.pid and spent > START:
            raise GraderFailed(f"the grader's process is not ready after {START:.0f} s: {sys.executable} {WORKER}")
        if not process.pid or not process.waiting or spent < SECONDS:
            return False
        idle = processor_seconds(process.pid) - process.busy_since < SECONDS / 2  # false where the system does not tell
        return not idle or spent > SECONDS * PATIENCE

    def _take_back(self, process: _Process) -> None:
        """Ends it; the request that it was at is a timeout if it overran, else asked again, as all after it are."""
        if process.waiting:
            first = process.waiting[0]
            self.deaths[first] += 1
            if not process.dead or self.deaths[first] >= DEATHS:
                self.outcomes[process.waiting.popleft()] = "error" if process.dead else "timeout"
        self.todo.extendleft(reversed(process.waiting))
        end(process)


def processor_seconds(pid: int) -> float:
    """What a process has spent on processors; infinity where the system does not tell, so that the wall clock decides."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return float("inf")


def end(process: _Process) -> None:
    """Kills it, unless it is dead, in which case its number may be another's by now."""
    if process.pid and not process.dead:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    os.close(process.tasks)
    os.close(process.answers)

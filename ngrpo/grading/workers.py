"""Processes that compare formulas, each of which may be killed: one that overruns or dies costs its answer and no other.

It does not know what is compared. Nothing here uses signals, so it may be called from any thread and after a fork.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("latex_worker.py")
SECONDS = 1.0  # of wall clock for one comparison
START = 60.0  # seconds in which a process must be ready
IN_FLIGHT = 16_000  # bytes sent ahead to one process, so that writing never blocks on a full pipe


@dataclass
class _Process:
    """One process and the numbers of the pairs that it has not answered, in order."""

    popen: subprocess.Popen
    waiting: deque[int] = field(default_factory=deque)
    buffer: bytes = b""
    since: float = 0.0  # when it began with the first of them
    ready: bool = False


class Workers:
    """`count` processes and one warm spare, started when first needed and ended with this process."""

    def __init__(self, count: int = 1, seconds: float = SECONDS):
        self.count, self.seconds = count, seconds
        self._lock = threading.Lock()
        self._owner = 0
        self._idle: list[_Process] = []
        atexit.register(self.close)

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """An outcome for each (gold, answer): what the process says, `timeout`, or `error` where it died on it twice."""
        with self._lock:
            if self._owner != os.getpid():  # a fork has copies of our pipes, which are not its own
                self._owner, self._idle = os.getpid(), []
            return self._compare(pairs)

    def close(self) -> None:
        """Ends all processes."""
        if self._owner == os.getpid():
            for process in self._idle:
                _end(process)
            self._idle = []

    def _compare(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        outcomes: list[str | None] = [None] * len(pairs)
        todo, deaths = deque(range(len(pairs))), dict.fromkeys(range(len(pairs)), 0)
        while len(self._idle) <= self.count:
            self._idle.append(self._start())
        at_work = [self._idle.pop(0) for _ in range(self.count)]
        while any(outcome is None for outcome in outcomes):
            for process in at_work:
                self._feed(process, pairs, todo)
            self._collect(at_work, outcomes)
            for place, process in enumerate(at_work):
                late = process.ready and process.waiting and time.monotonic() - process.since > self.seconds
                if not (late or process.popen.poll() is not None):
                    continue
                self._read(process, outcomes)
                overran = time.monotonic() - process.since >= self.seconds
                _end(process)
                if process.waiting and process.ready:
                    first = process.waiting.popleft()
                    deaths[first] += 1
                    if overran or deaths[first] > 1:
                        outcomes[first] = "timeout" if overran else "error"
                    else:
                        process.waiting.appendleft(first)
                todo.extendleft(reversed(process.waiting))
                at_work[place] = self._idle.pop(0)
                self._idle.append(self._start())
        self._idle = at_work + self._idle
        return [str(outcome) for outcome in outcomes]

    def _start(self) -> _Process:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHONSTARTUP")}
        command = [sys.executable, "-I", str(WORKER), str(self.seconds + 0.5)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return _Process(subprocess.Popen(command, **pipes, env=environment, bufsize=0), since=time.monotonic())

    def _feed(self, process: _Process, pairs: Sequence[tuple[str, str]], todo: deque[int]) -> None:
        room = IN_FLIGHT - sum(map(_size, (pairs[i] for i in process.waiting)))
        if not process.ready or process.popen.poll() is not None:
            return
        while todo and (room > 0 or not process.waiting):
            number = todo.popleft()
            room -= _size(pairs[number])
            if not process.waiting:
                process.since = time.monotonic()
            process.waiting.append(number)
            try:
                os.write(process.popen.stdin.fileno(), (json.dumps(pairs[number]) + "\n").encode())  # pyright: ignore
            except OSError:  # it has just died: its pairs are taken back by whoever looks
                return

    def _collect(self, at_work: Sequence[_Process], outcomes: list[str | None]) -> None:
        pipes: list[Any] = [process.popen.stdout for process in at_work]
        found, _, _ = select.select(pipes, [], [], 0.02)
        for process in at_work:
            if process.popen.stdout in found:
                self._read(process, outcomes)
            elif not process.ready and time.monotonic() - process.since > START:
                raise RuntimeError(f"the grader's process is not ready after {START:.0f} s: {sys.executable} {WORKER}")

    def _read(self, process: _Process, outcomes: list[str | None]) -> None:
        pipe: Any = process.popen.stdout
        while select.select([pipe], [], [], 0)[0]:
            content = os.read(pipe.fileno(), 65536)
            if not content:
                break
            *lines, process.buffer = (process.buffer + content).split(b"\n")
            for line in lines:
                if not process.ready:
                    process.ready = True
                elif process.waiting:
                    outcomes[process.waiting.popleft()] = line.decode()
                process.since = time.monotonic()


def _size(pair: tuple[str, str]) -> int:
    return 6 * (len(pair[0]) + len(pair[1])) + 16  # JSON may write a sign in six


def _end(process: _Process) -> None:
    process.popen.kill()
    process.popen.wait()
    for pipe in (process.popen.stdin, process.popen.stdout):
        if pipe:
            pipe.close()

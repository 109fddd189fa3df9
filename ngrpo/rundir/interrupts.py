"""Signals that ask a process to stop: a run that looks for them ends in order, everything else at once and in one line."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, TypeVar

from ngrpo import streams

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RELAYED = signal.SIGURG  # one that nobody sends, and that ends no process which does not know it
SHOW_CURSOR = b"\x1b[?25h"

Work = TypeVar("Work")


class Interrupted(Exception):
    """The run was asked to stop and did so after saving; `exit_code` is what the shell expects of that signal."""

    def __init__(self, number: int, step: int | None = None):
        self.number, self.step, self.exit_code = number, step, 128 + number
        where = "" if step is None else f" after RL step {step}"
        super().__init__(f"stopped by {signal.Signals(number).name}{where}; the same command continues")

    def __reduce__(self):
        return Interrupted, (self.number, self.step)


class Interrupts:
    """Notes SIGTERM, Ctrl-C and SIGHUP: `number` is the last one, 0 for none.

    Inside `polled` somebody looks at `number` and stops in order. Outside, and at a second Ctrl-C, the process ends at once
    with 128 + number, after the `last_words`, functions of the reason, each of which may fail.
    """

    def __init__(self) -> None:
        self.number = 0
        self.last_words: list[Callable[[str], object]] = []
        self._polls, self._abandons, self._relayed = 0, False, 0
        self._tell: Callable[[], object] | None = None

    def listen(self) -> None:
        """From now on signals are noted; not in a thread, and not SIGHUP where nohup had it ignored."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (*SIGNALS, RELAYED):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def defer(self) -> None:
        """From now on signals are noted and end nothing by themselves: whoever gives this process work checks first."""
        self.listen()
        self._polls += 1

    @contextmanager
    def polled(self, tell: Callable[[], object] | None = None) -> Iterator[None]:
        """While somebody looks at `number` and stops where it is not 0, or is told of a signal by `tell`."""
        self._polls, before, self._tell = self._polls + 1, self._tell, tell
        try:
            yield
        finally:
            self._polls, self._tell = self._polls - 1, before

    def unless_stopped(self, work: Callable[[], Work]) -> Work | None:
        """What `work` returns, or None where a signal came, which leaves it at once: it must change nothing that is kept."""
        try:
            self._abandons = True
            self.check()
            return work()
        except Interrupted:
            return None
        finally:
            self._abandons = False

    def relay(self, number: int) -> None:
        """Another process of the run has heard this signal; from any thread."""
        self._relayed = number
        os.kill(os.getpid(), RELAYED)

    def check(self) -> None:
        """Raises Interrupted where a signal came that nobody has stopped for."""
        if self.number:
            raise Interrupted(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == RELAYED:
            number, self._relayed = self._relayed, 0
            if self.number or not number:
                return
        at_once, name = self.number == number == signal.SIGINT or not self._polls, signal.Signals(number).name
        self.number = number
        if at_once:
            self.end(f"stopped by {name}{'; the same command continues' * bool(self.last_words)}", 128 + number)
        abandons, self._abandons = self._abandons, False
        _say(f"{name}: saving" + " after this step" * (not abandons))
        if self._tell:
            self._tell()
        if abandons:
            raise Interrupted(number)

    def end(self, reason: str, code: int) -> NoReturn:
        """Ends the process at once, after its last words."""
        for words in self.last_words:
            with suppress(Exception):
                words(reason)
        _say(f"error: {reason}")
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        for terminal in (descriptor for descriptor in (1, 2) if os.isatty(descriptor)):
            with suppress(OSError):
                os.write(terminal, SHOW_CURSOR)  # which the bars of a run had hidden
        os._exit(code)  # an exception could be lost in whatever code the signal came to


INTERRUPTS = Interrupts()  # one for the process, as signals are


def begin() -> None:
    """What an entry point does first, before imports that take seconds: listens to signals, outlives its readers."""
    streams.tolerate_lost_readers()
    INTERRUPTS.listen()


def _say(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except (RuntimeError, OSError, ValueError, AttributeError):  # the signal came to another print
        with suppress(OSError):
            os.write(2, f"{line}\n".encode())

"""Signals that ask a run to stop: noted, so that the step that runs can end in order."""

import os
import signal
import sys
from types import FrameType


class Interrupted(Exception):
    """The run was asked to stop and did so after saving; `exit_code` is what the shell expects of that signal."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after RL step {step}; the same command continues")
        self.exit_code = 128 + number


class Interrupts:
    """Notes SIGTERM and Ctrl-C: `number` is the signal, 0 for none. A second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.number = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number == number == signal.SIGINT:
            os._exit(130)
        self.number = number
        print(f"{signal.Signals(number).name}: saving after this step", file=sys.stderr)

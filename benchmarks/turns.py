"""Measurements in child processes: commands that run to their end, and two trainers that take turns step by step.

The trainer that waits sleeps, so a machine that slows down slows both.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Self

from benchmarks.measuring import resident

REPOSITORY = Path(__file__).resolve().parents[1]


def environment(threads: int) -> dict[str, str]:
    """The environment of a child that computes with so many threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}


def output(command: Sequence[str], threads: int, timeout: float | None = None, **variables: str) -> str:
    """What a Python command prints; SystemExit with its last words where it fails or takes more seconds than `timeout`.

    Processes that it started end with it.
    """
    started = subprocess.Popen(
        [sys.executable, *command], cwd=REPOSITORY, env={**environment(threads), **variables}, text=True,
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    printed, errors = "", f"not done after {timeout} seconds"
    try:
        with suppress(subprocess.TimeoutExpired):
            printed, errors = started.communicate(timeout=timeout)
    finally:
        if started.returncode != 0:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
    if started.returncode != 0:
        raise SystemExit("\n".join([f"{' '.join(command)} did not finish:", *errors.splitlines()[-5:]]))
    return printed


class TrainerProcess:
    """The measuring side of a trainer: a module of this package that takes a step when requested."""

    def __init__(self, module: str, log: Path, threads: int, **options: Any):
        command = [sys.executable, "-m", module, f"--threads={threads}"]
        command += [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None]
        self.module, self.log = module, log
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment(threads), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w", encoding="utf-8"),
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def step(self) -> dict[str, Any]:
        """The figures of one step; SystemExit with its last words where the module has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            last = "\n".join(self.log.read_text("utf-8").splitlines()[-5:])
            raise SystemExit(f"{self.module} ended with status {self.process.wait()}:\n{last}")
        return json.loads(line)


class Turn:
    """The training side. Everything else that is printed goes to stderr."""

    def __init__(self) -> None:
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.before: float | None = None

    def wait(self) -> None:
        """Waits until the next step is requested; ends the process if none is."""
        self.before = self.before or resident()[0]
        if not sys.stdin.readline():
            os._exit(0)
        self.start, self.cpu_start = perf_counter(), process_time()

    def done(self, **figures: Any) -> None:
        """Reports wall-clock and processor seconds since `wait`, the memory, and `figures`."""
        seconds, cpu = perf_counter() - self.start, process_time() - self.cpu_start
        memory = {"before_mib": self.before, "peak_mib": resident()[1]}
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, **memory, **figures}), file=self.answers, flush=True)


def parse(description: str | None) -> argparse.Namespace:
    """The options of both trainers: a step of `prompts` x `group` answers of at most `limit` tokens."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--model", required=True, help="a directory")
    parser.add_argument("--prompts", type=int, required=True)
    parser.add_argument("--group", type=int, required=True)
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True, help="of one forward and backward pass")
    parser.add_argument("--lengths", type=Path, help="a file that says where every row ends; without it, at a stop")
    parser.add_argument("--place", type=Path, required=True, help="where files may be written")
    return parser.parse_args()


def lengths_of(options: argparse.Namespace) -> list[int] | None:
    """Tokens of each row, or None where rows end by themselves."""
    return json.loads(options.lengths.read_text("utf-8")) if options.lengths else None

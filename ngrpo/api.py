"""From Python, for notebooks and scripts: run what the command line runs, load runs, compare them.

A run has a process of its own, which leaves a notebook its memory; what loads and compares reads files, without Hydra.

    from ngrpo.api import compare, load, run
    place = run("train", exploration="neighbor_mix", mix_rate=0.1, steps=20)
    study = load(["outputs/story_math"])
    compare(study, baseline="token_sampling").estimates
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from analysis.comparison import Comparison, compare
from analysis.load import Study, load
from analysis.verdict import verdict

__all__ = ["Comparison", "RunFailed", "Study", "compare", "load", "run", "verdict"]


class RunFailed(RuntimeError):
    """A command that failed; the message is the reason that it printed. `status`: its exit status."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status

    def __reduce__(self):
        return RunFailed, (str(self), self.status)


def run(command: str, *words: str, **values: Any) -> Path | None:
    """Does what `ngrpo <command> <words> <key>=<value> ...` does and prints its output line by line as it comes.

    A key with a dot in it goes among the words, `"trainer.threads=1"`; so do `-m` and the listed values of a grid,
    `"seed=0,1,2"`.

    Returns:
        the run directory, or the page of a report; None of a grid, which has several.
    Raises:
        RunFailed: wrong words (status 2), or a run that failed or was stopped.
    """
    from ngrpo.cli.rules import as_override

    overrides = [f"{key}={as_override(value)}" for key, value in values.items()]
    typed = [sys.executable, "-u", "-m", "ngrpo", command, *words, *overrides]
    lines = [""]
    with subprocess.Popen(typed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            print(lines[-1], flush=True)
    if process.returncode:
        reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        raise RunFailed("\n".join(reasons or lines[-1:]), process.returncode)
    last = Path(lines[-1])
    return last if lines[-1] and last.exists() else None

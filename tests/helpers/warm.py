"""Entry points run in children that are forked from a process which has imported everything: a start takes no 8 seconds."""

import multiprocessing
import os
import runpy
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(
    [
        "torch", "lightning.fabric", "faiss", "pandas", "pyarrow.parquet", "rich.progress", "ngrpo.loop", "ngrpo.cli",
        "transformers.models.qwen2.modeling_qwen2", "transformers.models.auto.modeling_auto",
    ]
)  # fmt: skip


def command(script: str, overrides: list[str], log: Path) -> None:
    """What `python <script> <overrides>` does, in this process, with its output in `log`."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(REPOSITORY)
    sys.path.insert(0, str(REPOSITORY))
    sys.argv = [script, *overrides]
    runpy.run_path(str(REPOSITORY / script), run_name="__main__")


def start(script: str, log: Path, *overrides: str) -> ForkServerProcess:
    """The child, running."""
    process = server.Process(target=command, args=(script, list(overrides), log))
    process.start()
    return process


def finish(script: str, log: Path, *overrides: str, status: int = 0) -> str:
    """What the command printed, once it has ended with `status`."""
    process = start(script, log, *overrides)
    process.join(timeout=240)
    text = log.read_text()
    assert process.exitcode == status, f"exit status {process.exitcode}, expected {status}:\n{text}"
    return text

"""Commands run in children that are forked from a process which has imported everything: a start takes no 8 seconds."""

import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import mkdtemp

REPOSITORY = Path(__file__).resolve().parents[2]
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(
    [
        "torch", "lightning.fabric", "faiss", "pandas", "pyarrow.dataset", "pyarrow.parquet", "rich.progress", "tabulate",
        "hydra_plugins.ngrpo_sweeper._search", "ngrpo.build", "ngrpo.cli", "ngrpo.loop",
        "transformers.models.qwen2.modeling_qwen2", "transformers.models.auto.modeling_auto",
    ]
)  # fmt: skip


def command(script: str, overrides: list[str], log: Path) -> None:
    """What `python <script> <overrides>` does, in this process, with its output in `log`."""
    _write_to(log, 1, 2)
    os.chdir(REPOSITORY)
    _run(script, overrides)


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


class Started:
    """A script of the repository, or the text of a program, in a child; of what `subprocess.Popen` has, what tests need."""

    def __init__(self, script: str, words: tuple[str, ...], folder: Path, environment: dict[str, str]):
        self.args, self.place = [script, *words], Path(mkdtemp(prefix="ngrpo-warm-"))
        arguments = (script, words, folder, environment, self.place)
        self.process = server.Process(target=_in_folder, args=arguments)
        self.process.start()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()

    def terminate(self) -> None:
        self.process.terminate()

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """What it printed and what it said of errors, once it has ended; they are kept until then, and asked for once."""
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        out, err = ((self.place / name).read_text() for name in ("out", "err"))
        shutil.rmtree(self.place)
        return out, err


def run(script: str, *words: str, folder: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` would give of the command, begun in `folder`."""
    process = Started(script, words, folder, environment)
    out, err = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _in_folder(script: str, words: tuple[str, ...], folder: Path, environment: dict[str, str], place: Path) -> None:
    _write_to(place / "out", 1)
    _write_to(place / "err", 2)
    os.chdir(folder)
    os.environ.update(environment)
    _run(script, words)


def _write_to(path: Path, *streams: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in streams:
        os.dup2(descriptor, stream)


def _run(script: str, words: list[str] | tuple[str, ...]) -> None:
    sys.path.insert(0, str(REPOSITORY))
    sys.argv = [script, *words]
    if script.endswith(".py"):
        runpy.run_path(str(REPOSITORY / script), run_name="__main__")
    else:
        exec(script, {"__name__": "__main__"})

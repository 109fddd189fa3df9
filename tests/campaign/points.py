"""Named points of a process, and what happens to it there: a signal, a kill, or a disk that has no room from then on.

A point is the change of a file, or an import, as Python's audit events tell of it: `open checkpoints/step-#.pt`,
`os.rename results.json`, `import torch`. Nothing of the package is changed for it.

    python -m tests.campaign.points SIGTERM 'open checkpoints/step-#.pt' 2 train.py trainer=smoke hydra.run.dir=<directory>
"""

import errno
import os
import re
import runpy
import signal
import sys
from pathlib import Path

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
PART = re.compile(r"\.(.+)\.[0-9a-f]{32}\.part")
PACKAGES = {"torch", "hydra", "omegaconf", "transformers", "lightning", "numpy", "pandas", "pyarrow", "faiss", "rich",
            "optuna", "scipy", "matplotlib", "sympy", "tokenizers", "safetensors", "datasets", "yaml", "ngrpo"}  # fmt: skip


def point(event: str, arguments: tuple, root: str) -> str | None:
    """The name of the point that an audit event is; None for what is neither a change below `root` nor a library."""
    if event == "import":
        return f"import {arguments[0]}" if arguments[0] in PACKAGES else None
    changes = event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT)
    if not changes or isinstance(arguments[0], int):
        return None
    target = os.fsdecode(arguments[1] if event == "os.rename" else arguments[0])
    path = os.path.relpath(os.path.abspath(target), root)
    if path.startswith(".."):
        return None
    parts = [PART.sub(r"\1", part) for part in Path(path).parts]
    return f"{event} {re.sub(r'[0-9]+', '#', '/'.join(parts) or '.')}"


def install(action: str, name: str, count: int, root: str) -> None:
    """From now on the `count`-th time at the point `name` has its consequence: `full`, `note` (all points are written to the
    file `name`), or the name of a signal."""
    seen, full, busy = 0, False, False
    listed = open(name, "a", buffering=1) if action == "note" else None  # noqa: SIM115 - open until the process ends

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen, full, busy
        if busy or (event != "import" and event != "open" and event not in CHANGES):
            return
        busy = True
        try:
            here = point(event, arguments, root)
        finally:
            busy = False
        if here is None:
            return
        if listed:
            listed.write(f"{here}\n")
            return
        seen += here == name
        if here == name and seen == count:
            if action != "full":
                os.kill(os.getpid(), signal.Signals[action])
            full = action == "full"
        if full and (event == "open" or event == "os.mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(arguments[0]))

    sys.addaudithook(hook)


def root_of(words: list[str]) -> str:
    """The directory whose changes are points: that of the run or the sweep."""
    given = (word.partition("=")[2] for word in words if word.startswith(("hydra.run.dir=", "hydra.sweep.dir=")))
    return os.path.abspath(next(given, "."))


def main(argv: list[str]) -> None:
    action, name, count, script, *words = argv
    install(action, name, int(count), root_of(words))
    sys.argv = [script, *words]
    sys.path.insert(0, os.getcwd())
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])

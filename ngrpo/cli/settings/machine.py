"""What this machine offers a run: GPUs, packages, a directory that can be written to. It asks the file system only.

It does not know torch, which takes seconds to import.
"""

import os
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

NEEDED = {
    "TensorBoardLogger": ("tensorboard", "tensorboardX"),
    "WandbLogger": ("wandb",),
    "MLFlowLogger": ("mlflow",),
    "CometLogger": ("comet_ml",),
}


def gpu_refusal(devices: int) -> str | None:
    """Why a run cannot use `devices` GPUs, as a phrase; None where it looks as if it could."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    nodes = [path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()]
    others = any(Path(path).exists() for path in ("/proc/driver/nvidia", "/dev/kfd", "/dev/dxg"))
    if hidden in ("", "-1") or (not nodes and not others):
        return "this machine shows no GPU"
    try:
        if "cpu" in version("torch"):
            return f"this torch ({version('torch')}) is built for the CPU only"
    except PackageNotFoundError:
        return "torch is not installed"
    count = len(hidden.split(",")) if hidden else len(nodes)
    return f"this machine shows {count} of the {devices} GPUs asked for" if 0 < count < devices else None


def package_refusal(target: str) -> str | None:
    """Why an optional logger cannot be built, as a phrase; None where it can, and for everything else."""
    packages = NEEDED.get(target.rpartition(".")[2], ())
    if not packages or any(find_spec(package) for package in packages):
        return None
    return f"needs the package {packages[0]}, which is not installed; pip install {packages[0]}"


def directory_refusal(path: str) -> str | None:
    """Why a run cannot write to the directory `path`, which need not exist, as a phrase; None where it can."""
    if not path or "\0" in path:
        return "must be a directory"
    place = Path(path).absolute()
    if any(len(os.fsencode(part)) > 255 for part in place.parts):
        return "a part of it is longer than 255 bytes"
    try:
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            return f"{place} is a file, not a directory"
        # Being allowed to write says little: root may write anywhere, and to /proc it still cannot.
        os.rmdir(tempfile.mkdtemp(prefix=".writable-", dir=place))
    except OSError as error:
        return f"cannot be written to ({error.strerror or error})"
    return None

"""What Hydra's launchers need to place the runs of a sweep: their packages, and a GPU for each process."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from ctypes import CDLL
from functools import cache
from importlib.util import find_spec
from multiprocessing import current_process
from pathlib import Path
from signal import SIGKILL
from tempfile import gettempdir
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from ngrpo.rundir.interrupts import INTERRUPTS
from ngrpo.rundir.lock import RunLocked, acquire

PACKAGES = {"JoblibLauncher": ("joblib", "joblib"), "SlurmLauncher": ("submitit", "slurm"),
            "LocalLauncher": ("submitit", "slurm"), "RayLauncher": ("ray", "ray")}  # its library, our extra  # fmt: skip
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
ELSEWHERE = ("RayLauncher", "SlurmLauncher")  # whose runs see the GPUs of other machines


class NoGpu(RuntimeError):
    """There are more processes than GPUs."""


def register_resolvers() -> None:
    """Makes known to OmegaConf what the files of `conf/hydra/launcher` ask for."""
    OmegaConf.register_new_resolver("runs_at_once", _runs_at_once, replace=True)
    OmegaConf.register_new_resolver("gpu_of_worker", _gpu_of_worker, replace=True)
    OmegaConf.register_new_resolver("gpus_of_run", _gpus_of_run, replace=True)


def files_prevail(folder: Path) -> None:
    """The launchers in `folder` stand for themselves: Hydra would merge them with what their plugins store by that name.

    To be called once Hydra has its plugins.
    """
    stored = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
    for file in folder.glob("*.yaml"):
        stored.pop(file.name, None)


def problems(config: DictConfig, several: bool) -> Iterator[str]:
    """Why the launcher that was chosen cannot place runs. several: whether it is asked to."""
    typed, name = f"hydra/launcher={config.hydra.runtime.choices.get('hydra/launcher')}", _name(config)
    library, extra = PACKAGES.get(name, (None, None))
    for part, usual in (("sweeper", "ngrpo"), ("launcher", "basic")):
        if OmegaConf.select(config, f"hydra.{part}._target_") is None:
            yield f"hydra.{part}: has no _target_, and Hydra needs one; hydra/{part}={usual}"
    if library and not (find_spec(f"hydra_plugins.hydra_{library}_launcher") and find_spec(library)):
        yield f"{typed}: needs hydra-{library}-launcher, which is not installed; pip install 'ngrpo[{extra}]'"
    elif library and not several:
        yield f"{typed}: places the runs of a sweep, and one run stays here; -m {typed}"
    elif name == "SlurmLauncher" and not shutil.which("sbatch"):
        yield f"{typed}: there is no sbatch on this machine, which is no login node of SLURM; hydra/launcher=joblib"
    elif library in ("joblib", "ray") and (OmegaConf.select(config, "trainer.devices") or 1) > 1:
        rule = f"a run of {typed} has one process; trainer.devices=1, or torchrun and one run at a time"
        yield f"trainer.devices={config.trainer.devices}: {rule}"


def elsewhere(config: Any) -> bool:
    """Whether the runs see other GPUs than this machine has; not so where the configuration has no node `hydra`."""
    return _name(config) in ELSEWHERE


def _name(config: Any) -> str:
    return str(config and OmegaConf.select(config, "hydra.launcher._target_")).rpartition(".")[2]


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu not in ("", "-1")]
    return sorted((path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")), key=int)


def _runs_at_once(*, _root_: DictConfig) -> int:
    """As many as there are GPUs, or -1, joblib's word for the number of cores."""
    return (_takes_gpu(_root_) and len(visible_gpus())) or -1


def _gpu_of_worker(*, _root_: DictConfig) -> str:
    """CUDA_VISIBLE_DEVICES of a process of joblib; it stays what it is for runs without a GPU, and where none is known."""
    _begin_worker()
    return (_takes_gpu(_root_) and own_gpu()) or os.environ.get("CUDA_VISIBLE_DEVICES", "0")


def _takes_gpu(config: DictConfig) -> bool:
    return OmegaConf.select(config, "trainer.accelerator") != "cpu"  # what does not train takes one where it is


@cache
def _begin_worker() -> None:
    if current_process().name.startswith("LokyProcess"):  # not where the configuration is only shown
        INTERRUPTS.defer()  # joblib kills all of its processes where one ends, be it between two runs
        with suppress(AttributeError, OSError):  # Linux alone has it
            CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)  # a run without its sweep would hold its GPU and its directory


@cache
def own_gpu() -> str | None:
    """A GPU that no other process has of this function, for as long as this one lives; None where none is known.

    By locks and not by the number of the process, which grows where joblib replaces one. Raises NoGpu.
    """
    gpus = visible_gpus()
    for gpu in gpus:
        with suppress(RunLocked):
            acquire(Path(gettempdir(), f"ngrpo-{os.getuid()}", f"gpu-{gpu}"))
            return gpu
    if gpus:
        fix = f"hydra.launcher.n_jobs={len(gpus)}, and one sweep at a time"
        raise NoGpu(f"none of the GPUs {', '.join(gpus)} is free; {fix}")
    return None


def _gpus_of_run(*, _root_: DictConfig) -> int:
    return int(OmegaConf.select(_root_, "trainer.devices") or 1) if _takes_gpu(_root_) else 0

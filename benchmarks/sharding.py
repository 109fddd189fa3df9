"""Memory of each process of a run: what it keeps between RL steps, and its peak, beside the plan's.

python -m benchmarks.sharding 50m max_new_tokens=256
torchrun --nproc-per-node 2 -m benchmarks.sharding 50m trainer=fsdp max_new_tokens=2048
torchrun --nproc-per-node 2 -m benchmarks.sharding 50m trainer.strategy=ddp
"""

import ctypes
import gc
import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from tempfile import gettempdir

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.distributed.tensor import DTensor

from benchmarks import models
from benchmarks.measuring import resident
from ngrpo import build, cli, composed, launched, loop, plans
from ngrpo.training.policy import Policy

WORDS = [
    "prompts_per_step=4", "group_size=2", "steps=2", "max_new_tokens=32", "trainer.micro_batch_rows=1",
    "evaluation.before=false", "benchmark=story_math", "n=1", "problems=1", "checkpoint_every=1000", "trainer.threads=1",
    "logger=null", "trainer.accelerator=cpu", "trainer.precision=float32",
]  # fmt: skip


NAMES = ("accelerator", "devices", "strategy", "cpu_offload")


def held(tensors: list[Tensor]) -> float:
    """MiB of these tensors that this process holds."""
    own = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    storages = [tensor.untyped_storage() for tensor in own]  # gradients of a layer share one
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) / 2**20


def shared_path(name: str) -> Path:
    """A path that all processes share, named after their common parent, the launcher."""
    return Path(gettempdir(), f"ngrpo-sharding-{name}-{os.getppid()}")


def trim() -> None:
    """Returns freed memory to the system, which otherwise counts as used."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@dataclass
class Measured:
    """Replaces two methods of a policy, one of which runs before and after every update, to measure its memory."""

    policy: Policy
    planned: float
    before: float
    last_optimizer: torch.optim.Optimizer | None = None
    looks: int = 0

    def optimizer(self) -> tuple:
        """The policy's own, which is also kept."""
        optimizers = type(self.policy).optimizer(self.policy)
        self.last_optimizer = optimizers[0]
        return optimizers

    def glimpse(self) -> Tensor:
        """The policy's own; after an update, before anything is freed, it also prints one line of JSON in MiB."""
        self.looks += 1
        if self.looks % 2 == 0 and self.last_optimizer is not None:
            self.report(self.last_optimizer)
        return type(self.policy).glimpse(self.policy)

    def report(self, optimizer: torch.optim.Optimizer) -> None:
        """Prints MiB of trained weights, gradients and moments, and of this process's memory now and at its peak."""
        trim()
        learners = [p for group in optimizer.param_groups for p in group["params"]]
        moments = [value for entry in optimizer.state.values() for value in entry.values()]
        counted = {"weights": learners, "gradients": [p.grad for p in learners], "moments": moments}
        sizes = {name: held([t for t in tensors if t is not None]) for name, tensors in counted.items()}
        now, peak = resident()
        found = {
            "update": self.looks // 2,
            **sizes,
            "state": sum(sizes.values()),
            "resident": now,
            "peak": peak - self.before,
            "planned": self.planned,
        }
        line = json.dumps({name: round(value) for name, value in found.items()})
        print(f"{line}\n", end="", flush=True)  # at once, or another process's stands between


def train(config: DictConfig) -> None:
    """What train.py does, measured. A short run first loads what the libraries need once."""
    request, how = cli.training_request(config), {name: config.trainer[name] for name in NAMES}
    with models.directory("nano") as place:
        model = {**composed.plain(config.model), "path": place}
        warm = OmegaConf.create({**composed.plain(config), "model": model, "steps": 1, "max_new_tokens": 4})
        loop.run(replace(build.training(cli.Request(warm, "run"), None), directory=shared_path("warm")), **how)
    trim()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident()[0]

    def run(opened) -> None:
        parts = build.training(request, opened)
        tokenizer = parts.sampler.prompts.tokenizer
        longest = max(len(tokenizer.encode(problem.prompt)) for problem in parts.task.problems)
        planned = OmegaConf.create({**composed.plain(config), "plan": {"prompt_tokens": longest, "device": None}})
        measured = Measured(parts.policy, plans.needs(planned).peak / 2**20, before)
        parts.policy.optimizer, parts.policy.glimpse = measured.optimizer, measured.glimpse
        loop.run(parts, **how)

    if request.follows:
        return run(None)
    with request.open() as opened:
        run(opened)


def main() -> None:
    """One process of several, all with the same words after the name of the model."""
    name, *words = sys.argv[1:]
    given = {word.partition("=")[0] for word in words}
    usual = [word for word in WORDS if word.partition("=")[0] not in given]
    try:
        with models.directory(name) as place:
            sys.argv = ["train.py", f"model={place}", *usual, *words, f"hydra.run.dir={shared_path('run')}"]
            cli.prepare("config")
            cli.run(train)
    finally:
        if not launched.follows():
            for name in ("run", "warm"):
                rmtree(shared_path(name), ignore_errors=True)


if __name__ == "__main__":
    main()

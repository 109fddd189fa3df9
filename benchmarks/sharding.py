"""Memory of each process of a run of several: what it keeps between RL steps, and its peak, beside the plan's.

torchrun --nproc-per-node 2 -m benchmarks.sharding 50m trainer=fsdp max_new_tokens=2048
torchrun --nproc-per-node 2 -m benchmarks.sharding 50m trainer.strategy=ddp
"""

import ctypes
import gc
import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from tempfile import gettempdir

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.distributed.tensor import DTensor

from benchmarks import models
from benchmarks.measuring import resident
from ngrpo import build, cli, launched, loop, plans
from ngrpo.training.policy import Policy

WORDS = [
    "prompts_per_step=4", "group_size=2", "steps=2", "max_new_tokens=32", "trainer.micro_batch_rows=1",
    "evaluation.before=false", "benchmark=story_math", "n=1", "problems=1", "checkpoint_every=1000", "trainer.threads=1",
    "logger=null", "trainer.accelerator=cpu", "trainer.precision=float32",
]  # fmt: skip


def held(tensors: list[Tensor]) -> float:
    """MiB that this process keeps of them."""
    own = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    storages = [tensor.untyped_storage() for tensor in own]  # gradients of a layer share one
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) / 2**20


@dataclass
class Measured:
    """What stands in for two methods of a policy: it looks at its weights before and after every update."""

    policy: Policy
    planned: float
    made: torch.optim.Optimizer | None = None
    looks: int = 0

    def optimizer(self) -> tuple:
        """As the policy makes it, and kept."""
        made = type(self.policy).optimizer(self.policy)
        self.made = made[0]
        return made

    def glimpse(self) -> Tensor:
        """As the policy's; after an update, when nothing is freed yet, it also prints one line of JSON, MiB."""
        self.looks += 1
        if self.looks % 2 == 0 and self.made is not None:
            self.tell(self.made)
        return type(self.policy).glimpse(self.policy)

    def tell(self, optimizer: torch.optim.Optimizer) -> None:
        """Of weights that learn, gradients and moments, what is in this process's memory now, and most."""
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # else freed memory counts as kept
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
            "peak": peak,
            "planned": self.planned,
        }
        print(json.dumps({name: round(value) for name, value in found.items()}), flush=True)


def train(config: DictConfig) -> None:
    """What train.py does, measured."""
    request = cli.training_request(config)
    asked = OmegaConf.create({**build.plain(config), "plan": {"prompt_tokens": 64}})
    planned = plans.needs(asked).peak / 2**20  # beside what was there before, the libraries
    names = ("accelerator", "devices", "strategy", "cpu_offload")
    before = resident()[0]

    def run(opened) -> None:
        parts = build.training(request, opened)
        measured = Measured(parts.policy, planned + before)
        parts.policy.optimizer, parts.policy.glimpse = measured.optimizer, measured.glimpse
        loop.run(parts, **{name: config.trainer[name] for name in names})

    if request.follows:
        return run(None)
    with request.open() as opened:
        run(opened)


def main() -> None:
    """One process of several, all with the same words after the name of the model."""
    name, *words = sys.argv[1:]
    given = {word.partition("=")[0] for word in words}
    usual = [word for word in WORDS if word.partition("=")[0] not in given]
    run = Path(gettempdir(), f"ngrpo-sharding-{os.getppid()}")  # of all, whose parent is the launcher
    try:
        with models.directory(name) as place:
            sys.argv = ["train.py", f"model={place}", *usual, *words, f"hydra.run.dir={run}"]
            cli.prepare("config")
            cli.run(train)
    finally:
        if not launched.follows():
            rmtree(run, ignore_errors=True)


if __name__ == "__main__":
    main()

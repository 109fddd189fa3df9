"""Memory of each process of a run of several: what it keeps between RL steps, and its peak, beside the plan's.

torchrun --nproc-per-node 2 -m benchmarks.sharding 50m trainer=fsdp max_new_tokens=2048
torchrun --nproc-per-node 2 -m benchmarks.sharding 50m trainer.strategy=ddp
"""

import ctypes
import gc
import json
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.distributed.tensor import DTensor

from benchmarks import models
from benchmarks.measuring import resident
from ngrpo import build, cli, launched, loop
from ngrpo.rundir.recorder import Progress
from ngrpo.training.policy import Policy

WORDS = [
    "prompts_per_step=4", "group_size=2", "steps=2", "max_new_tokens=32", "trainer.micro_batch_rows=1",
    "evaluation.before=false", "benchmark=story_math", "n=1", "problems=1", "checkpoint_every=1000", "trainer.threads=1",
    "logger=null", "trainer.accelerator=cpu", "trainer.precision=float32",
]  # fmt: skip


def held(tensors: list[Tensor]) -> float:
    """MiB that this process keeps of them."""
    own = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(tensor.untyped_storage().nbytes() for tensor in {id(t): t for t in own}.values()) / 2**20


@dataclass
class Measured:
    """A policy's optimizer, and its `step` in place of a progress bar's, which every rank calls after each RL step."""

    policy: Policy
    planned: float
    made: torch.optim.Optimizer | None = None

    def optimizer(self) -> tuple:
        """As the policy makes it, and kept."""
        made = type(self.policy).optimizer(self.policy)
        self.made = made[0]
        return made

    def step(self, step: int, reward: float, rate: float) -> None:
        """Prints one line of JSON, MiB."""
        assert self.made is not None
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # else freed memory counts as kept
        learners = [p for group in self.made.param_groups for p in group["params"]]
        moments = [value for entry in self.made.state.values() for value in entry.values()]
        counted = {"weights": learners, "gradients": [p.grad for p in learners], "moments": moments}
        sizes = {name: held([t for t in tensors if t is not None]) for name, tensors in counted.items()}
        now, peak = resident()
        found = {
            "step": step,
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
    planned = build.needs(asked).peak / 2**20  # beside what was there before, the libraries
    names = ("accelerator", "devices", "strategy", "cpu_offload")
    before = resident()[0]

    def run(opened) -> None:
        parts = build.training(request, opened)
        measured, progress = Measured(parts.policy, planned + before), Progress(2, quiet=True)
        parts.policy.optimizer = measured.optimizer
        progress.step = measured.step
        loop.run(replace(parts, progress=progress), **{name: config.trainer[name] for name in names})

    if request.follows:
        return run(None)
    with request.open() as opened:
        run(opened)


def main() -> None:
    """One process of several, all with the same words after the name of the model."""
    name, *words = sys.argv[1:]
    given = {word.partition("=")[0] for word in words}
    usual = [word for word in WORDS if word.partition("=")[0] not in given]
    with TemporaryDirectory() as folder, models.directory(name) as place:
        sys.argv = ["train.py", f"model={place}", *usual, *words, f"hydra.run.dir={folder}/{launched.follows()}"]
        cli.prepare("config")
        cli.run(train)


if __name__ == "__main__":
    main()

"""Runs of several ranks on this machine, each in a forked process that has imported everything, and what they leave."""

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import warm
from updates import Made, Still, Watched, fit

Build = Callable[[type[Watched]], Made]


class Figures:
    """A recorder that leaves the figures of every step and the weights of the last in a file."""

    def __init__(self, target: Path):
        self.target, self.metrics = target, []

    def kept(self, step):
        return {}

    def restore(self, kept, step):
        """Nothing is on the disk."""

    def step(self, step, rows, metrics, seconds, explored):
        self.metrics.append(dict(metrics))

    def result(self, *given):
        """Nothing is kept of evaluations."""

    def model(self, model, tokenizer, learned):
        weights = {name: value.clone() for name, value in [*model.weights(), *learned.items()]}
        torch.save({"weights": weights, "metrics": self.metrics}, self.target)

    close = result


def gradients_in(target: Path) -> type[Still]:
    """A policy whose first rank leaves its gradients, whole, in a file."""

    class Written(Still):
        def clip(self, optimizer):
            norm = super().clip(optimizer)
            if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
                torch.save(self.gradients, target)
            return norm

    return Written


def train(build: Build, folder: Path, target: Path, kind: type[Watched] | None, options: Mapping[str, Any]) -> None:
    """In a process of its own: all steps of a run; `target` gets the gradients where no kind of policy is given."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    parts = build(kind or gradients_in(target))
    first = kind and os.environ.get("LOCAL_RANK", "0") == "0"
    fit(replace(parts, recorder=Figures(target) if first else None), folder, **options)  # pyright: ignore


def rank(number: int, port: int, *arguments: Any) -> None:
    """What Fabric looks for where it has not started the processes itself."""
    os.environ |= {"LOCAL_RANK": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    train(*arguments)


def codes(
    build: Build,
    folder: Path,
    world: int,
    strategy: str,
    kind: type[Watched] | None,
    within: float = 240,
    after: float = 30,
) -> list[int | None]:
    """How the ranks ended, None for one that has not in so many seconds, or so many after one that failed; it is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = (build, folder, folder.with_suffix(".pt"), kind, {"devices": world, "strategy": strategy})
    processes = [warm.server.Process(target=rank, args=(number, port, *shared)) for number in range(world)]
    for process in processes:
        process.start()
    until = time.monotonic() + within
    while there := [process.sentinel for process in processes if process.is_alive()]:
        if not wait(there, max(0.0, until - time.monotonic())):
            break
        until = min(until, time.monotonic() + after) if any(process.exitcode for process in processes) else until
    found = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return found


def outcome(build: Build, folder: Path, world: int, strategy: str, kind: type[Watched] | None = None) -> Any:
    """What the first of `world` ranks leaves: gradients, or with a kind of policy the figures of its steps and its weights.
    Checkpoints go to `folder`, and are gone on from."""
    assert codes(build, folder, world, strategy, kind) == [0] * world
    return torch.load(folder.with_suffix(".pt"), weights_only=True)

"""Fully sharded training (FSDP2, arXiv 2304.11277): of every weight, gradient and moment each rank keeps a part.

Layers are put together as they are run. All that is read outside of the root's forward is read inside of
`CausalModel.gathered`, which puts everything together at once.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ngrpo.models.causal import CausalModel
from ngrpo.ranks import Ranks
from ngrpo.rundir.schema import file_digest
from ngrpo.training.policy import Batch, Policy
from ngrpo.training.reference import Reference

PARTS = ("model", "strategy", "critic")  # of a policy, and of its state


def strategy(world: int, cuda: bool, offload: bool) -> ModelParallelStrategy:
    """Fabric's strategy for a policy whose parts are on `world` ranks; offload: they stay in the CPU's memory."""
    return ModelParallelStrategy(
        partial(_shard, offload=offload),
        data_parallel_size=world,  # by default it is the number of nodes, and the rest tensor parallel
        tensor_parallel_size=1,
        # Norms of gradients that stay in the CPU's memory are summed there.
        process_group_backend="cpu:gloo,cuda:nccl" if cuda else "gloo",
    )


def _shard(root: nn.Module, mesh: DeviceMesh, offload: bool) -> nn.Module:
    """The root with each layer of its models cut over the mesh, and all else together: tied weights must be in one group.

    Adapters are in the models by now: what is put in later would not be cut. Where matmuls are in bfloat16, layers are put
    together in it; their parts, gradients and moments stay as they are.
    """
    options = {"mesh": mesh["data_parallel"], "offload_policy": CPUOffloadPolicy() if offload else OffloadPolicy()}
    models = [module for module in root.modules() if isinstance(module, CausalModel)]
    for model in models:
        compute = torch.bfloat16 if model.precision == "bfloat16" else None
        # What enters a layer stays as it is, as under autocast: float32 is the residual stream's.
        policy = MixedPrecisionPolicy(compute, torch.float32 if compute else None, cast_forward_inputs=False)
        for layer in model.layers:
            fully_shard(layer, mp_policy=policy, reshard_after_forward=True, **options)
    fully_shard(root, reshard_after_forward=False, **options)
    gathering = Gathering(root)
    for model in models:
        model.gathered = gathering
    return root


def place(fabric: Fabric, reference: Reference) -> None:
    """A frozen model where the policy is: on the same device, or cut over the same ranks."""
    if isinstance(fabric.strategy, ModelParallelStrategy):
        fabric.setup_module(reference)
    else:
        fabric.to_device(reference)


def sharded(module: nn.Module) -> bool:
    """Whether ranks keep parts of this module."""
    return isinstance(module, FSDPModule)


class Gathering:
    """Within it every weight below `root` is whole on every rank, and calls of its modules ask nothing of other ranks.

    All ranks enter and leave it together; inside they may do different things. What is written to weights is lost.
    """

    def __init__(self, root: nn.Module):
        self.root, self.depth = root, 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        parts = [module for module in self.root.modules() if isinstance(module, FSDPModule)] if not self.depth else []
        self.depth += 1
        try:
            if parts:
                # Else a layer that is called before the root's first forward would take itself for a root.
                self.root._get_fsdp_state()._lazy_init()  # pyright: ignore
            for part in parts:
                part.unshard()
                part.set_reshard_after_forward(False, recurse=False)
            yield
        finally:
            self.depth -= 1
            for part in parts:
                part.set_reshard_after_forward(part is not self.root, recurse=False)
                # The root's too, which a forward would keep: after an update it would be the old one.
                part.reshard()


def passes(
    fabric: Fabric, learner: Any, policy: Policy, mini_batch: Batch, ranks: Ranks
) -> Iterator[tuple[Batch, AbstractContextManager[Any]]]:
    """The micro-batches of an update, each with the context of its forward and backward pass.

    Replicas sum their gradients in the last pass. Parts are put together in every pass, so all ranks make as many, and
    their gradients are summed in each: what waits for a last one would be whole. A pass too many has no token that counts.
    """
    micro_batches, passed = mini_batch.micro_batches(policy.config.micro_batch_rows), 0
    for micro_batch, closes in micro_batches:
        # A context with enabled=False would leave the summing of parts off for good.
        yield micro_batch, nullcontext() if sharded(policy) else fabric.no_backward_sync(learner, enabled=not closes)
        passed += 1
    for _ in range(max(ranks.gather(passed)) - passed if sharded(policy) else 0):
        idle = mini_batch.rows(torch.zeros(1, dtype=torch.int64, device=mini_batch.mask.device))
        yield replace(idle, mask=torch.zeros_like(idle.mask)), nullcontext()


def split(
    state: Mapping[str, Any], policy: Policy, ranks: Ranks
) -> tuple[dict[str, Any], Callable[[Path], dict[str, Any]] | None]:
    """(what the first rank writes, the function with which all of them write the rest to a folder) of a checkpoint's state.

    Of what is written in parts the state keeps the shape. None: nothing is in parts.
    """
    if not sharded(policy):
        return dict(state), None
    names, tensors = {name for name, _ in policy.named_parameters()}, {}
    kept = {part: _emptied(part, state.get(part, {}), tensors) for part in PARTS if part in state}
    tensors = {name: value for name, value in tensors.items() if name in names}  # of tied weights one
    moments = {at: _emptied(f"optimizer.{at}", one, tensors) for at, one in state["optimizer"]["state"].items()}
    return {**state, **kept, "optimizer": {**state["optimizer"], "state": moments}}, partial(_write, tensors, ranks)


def _emptied(where: str, values: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The same with the shapes of what is in parts, which goes to `tensors`."""
    cut = {name: value for name, value in values.items() if isinstance(value, DTensor)}
    tensors.update({f"{where}.{name}": value for name, value in cut.items()})
    return {name: value.shape if name in cut else value for name, value in values.items()}


def _write(tensors: dict[str, Tensor], ranks: Ranks, folder: Path) -> dict[str, Any]:
    """All ranks write their parts, on the disk when it returns; sha256 and bytes of every file. Raises OSError."""
    ranks.barrier()  # the first one has made the folder
    try:
        save(tensors, storage_writer=FileSystemWriter(folder))
    except CheckpointException as failed:
        error = next(iter(failed.failures.values()))[0]
        raise error if isinstance(error, OSError) else RuntimeError(f"{folder}: {error}") from None
    files = [*folder.glob(f"__{ranks.rank}_*"), *([folder / ".metadata"] if ranks.rank == 0 else [])]
    found = {path.name: {"sha256": file_digest(path), "bytes": path.stat().st_size} for path in files}
    return {name: entry for entries in ranks.gather(found) for name, entry in entries.items()}


def restore(state: Mapping[str, Any], policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """Puts back weights, moments and the strategy's state of a checkpoint, which was written whole or in parts, by any number
    of ranks, where they are now kept whole or in parts by any number of ranks."""
    wanted: dict[str, Tensor] = {}
    now, learners = policy.state(), [p for group in optimizer.param_groups for p in group["params"]]
    filled = {part: _filled(part, state[part], now[part], wanted) for part in PARTS if part in state}
    moments = {
        at: _filled(f"optimizer.{at}", one, {name: torch.zeros_like(learners[at]) for name in one}, wanted)
        for at, one in state["optimizer"]["state"].items()
    }
    if wanted:
        reader = FileSystemReader(state["folder"])
        written = reader.read_metadata().state_dict_metadata
        load(
            {name: value for name, value in wanted.items() if name in written},  # of tied weights one
            storage_reader=reader,
            no_dist=not distributed.is_initialized(),
        )
    policy.restore(filled)
    optimizer.load_state_dict({**state["optimizer"], "state": moments})


def _filled(
    where: str, kept: Mapping[str, Any], now: Mapping[str, Tensor], wanted: dict[str, Tensor]
) -> dict[str, Any]:
    """What a checkpoint keeps, in the form of what is there now; what is to be read into that goes to `wanted`."""
    found = dict(kept)
    for name, value in kept.items():
        here = now.get(name)
        if isinstance(value, torch.Size) and here is not None and here.shape == value:
            found[name] = wanted[f"{where}.{name}"] = here.detach()
        elif isinstance(here, DTensor) and isinstance(value, Tensor) and value.dim():
            whole = value.to(here.device)  # on every rank, so none has to send it
            found[name] = distribute_tensor(whole, here.device_mesh, here.placements, src_data_rank=None)
    return found

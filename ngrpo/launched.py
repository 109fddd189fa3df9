"""How many processes train together and which of them this is, by what started them: torchrun, srun, or Fabric."""

import os
from collections.abc import Mapping
from typing import NamedTuple


class Launched(NamedTuple):
    """Process `rank` of `world`, which are spread evenly over `nodes` nodes."""

    world: int
    nodes: int
    rank: int


def launched(environment: Mapping[str, str] = os.environ) -> Launched | None:
    """What torchrun or srun says of this process; None where neither has started it. Fabric checks in the same order.

    A job named `bash` or `interactive` is a shell in which srun itself was not used.
    """
    named = {name: int(value) for name, value in environment.items() if value.isdecimal()}
    if "TORCHELASTIC_RUN_ID" in environment:
        return Launched(named["WORLD_SIZE"], named["WORLD_SIZE"] // named["LOCAL_WORLD_SIZE"], named["RANK"])
    if "SLURM_NTASKS" in named and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        return Launched(named["SLURM_NTASKS"], named.get("SLURM_NNODES", 1), named.get("SLURM_PROCID", 0))
    return None


def follows(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether another process of the same run is the first; LOCAL_RANK and NODE_RANK say it of those that Fabric starts."""
    launch = launched(environment)
    return bool(
        launch.rank if launch else int(environment.get("LOCAL_RANK", 0)) or int(environment.get("NODE_RANK", 0))
    )

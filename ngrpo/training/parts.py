"""All that a training run is made of, put together by build.py and walked through by loop.py."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngrpo.evaluation.benchmarks import Evaluation
from ngrpo.evaluation.pruning import PruningReporter
from ngrpo.rollout.sampling import Sampler
from ngrpo.rundir.interrupts import INTERRUPTS, Interrupts
from ngrpo.rundir.progress import Progress
from ngrpo.rundir.recorder import Recorder
from ngrpo.tasks.base import Task
from ngrpo.training.matching import Matching
from ngrpo.training.policy import Policy
from ngrpo.training.reference import Reference


@dataclass(frozen=True)
class Parts:
    """On every rank but the first there is no recorder, and progress is silent. `labels` stand in every sample row; so many
    checkpoints are kept (`keep`). There is a `matching` where the strategy's temperature is found before the run."""

    policy: Policy
    reference: Reference | None
    sampler: Sampler
    task: Task
    evaluation: Evaluation
    directory: Path
    labels: Mapping[str, Any]
    progress: Progress
    interrupts: Interrupts = INTERRUPTS
    recorder: Recorder | None = None
    reporter: PruningReporter | None = None
    matching: Matching | None = None
    keep: int = 2

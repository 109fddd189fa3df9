"""What this process has been asked for: a composed configuration, the versions of its data and model, its directory."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ngrpo import build
from ngrpo.rundir.directory import RunDirectory
from ngrpo.rundir.schema import config_hash


@dataclass(frozen=True)
class Request:
    """A job of an entry point. kind: one of rundir.schema.KINDS."""

    config: DictConfig
    kind: str

    @property
    def directory(self) -> Path:
        """Where the run is kept."""
        return Path(HydraConfig.get().runtime.output_dir)

    @property
    def follows(self) -> bool:
        """Whether another process of the same run keeps the directory."""
        return bool(int(os.environ.get("LOCAL_RANK", 0)) or int(os.environ.get("NODE_RANK", 0)))

    @cached_property
    def versions(self) -> dict[str, str]:
        """Of the data and the model."""
        return build.versions(self.config)

    def labels(self, *groups: str) -> dict[str, Any]:
        """What stands in every sample row of the run: its name, the seed, and its choices in these groups."""
        chosen = HydraConfig.get().runtime.choices
        return {"run": self.directory.name, "seed": self.config.seed, **{group: chosen.get(group) for group in groups}}

    def open(self) -> RunDirectory:
        """The run directory, locked."""
        config = build.plain(self.config)
        trainer, batching = config.get("trainer", {}), config.get("evaluation", config)
        facts = {"threads": trainer.get("threads") or os.cpu_count(), "devices": trainer.get("devices", 1)}
        facts["batching"] = {key: batching[key] for key in build.BATCHING if key in batching}
        digest, shared = config_hash(config, self.versions), build.overlap(self.config)
        return RunDirectory.open(
            self.directory, config, hash=digest, kind=self.kind, fresh=config["fresh"], info=facts | shared,
            versions=self.versions,
        )  # fmt: skip


def training_request(config: DictConfig) -> Request:
    """What train.py has been asked for."""
    kind = "smoke" if HydraConfig.get().runtime.choices.get("trainer") == "smoke" else "run"
    return Request(config, "trial" if config.get("sweep") else kind)  # the node is there in searches only

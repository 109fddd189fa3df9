"""Which run a composed configuration is: the name of its directory, and what this process has been asked for."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ngrpo import composed
from ngrpo.cli import conf, launchers, matched
from ngrpo.cli.fit import gpu_refusal
from ngrpo.launched import follows, launched
from ngrpo.rundir.directory import RunDirectory
from ngrpo.rundir.provenance import threads
from ngrpo.rundir.schema import Changed, Unreadable, config_hash, read_run, run_directory


def register_resolvers(overrides: Iterable[str] = ()) -> None:
    """Makes known to OmegaConf `${run_directory:}` and `${run_directory:<study>}` of `hydra.run.dir`, `${launched:<n>}`, the
    processes that a launcher has started or else n, `${gpu:<a>,<b>}`, a where this machine, or the device of a plan, has a
    GPU or runs are sent to others, and else b, and `${matched_strategy:}`, whose file may also lie where `hydra.searchpath`
    among the overrides points to."""
    conf.search(overrides)
    OmegaConf.register_new_resolver("run_directory", _run_directory, replace=True)
    OmegaConf.register_new_resolver("matched_strategy", matched.strategy, replace=True)
    OmegaConf.register_new_resolver(
        "launched", lambda usual: processes.world if (processes := launched()) else usual, replace=True
    )
    OmegaConf.register_new_resolver("gpu", _with_gpu, replace=True)
    launchers.register_resolvers()


def _with_gpu(usual: Any, otherwise: Any, *, _root_: DictConfig) -> Any:
    known = OmegaConf.select(_root_, "plan.device") or launchers.elsewhere(_root_)
    return usual if known or not gpu_refusal(1) else otherwise


def _run_directory(study: str = "", *, _root_: DictConfig) -> str:
    """The resolver `${run_directory:}`. The hydra node stays unresolved: it is the one that asks.

    study: where nothing is trained and several strategies are compared; the directory is named after task and model.
    """
    choices = {group: choice for group, choice in _root_.hydra.runtime.choices.items() if "/" not in str(group)}
    own = {str(name): node for name, node in _root_.items_ex(resolve=False) if name != "hydra"}
    config = composed.plain(OmegaConf.create(own))
    if study:
        choices |= {"experiment": study, "exploration": choices["task"], "algorithm": choices["model"]}
    elif "algorithm" not in choices:  # nothing is trained: the directory is named after the model
        choices |= {"experiment": "evaluate", "algorithm": Path(config.get("run") or choices["model"]).name}
    return run_directory(config, choices, composed.versions(config))


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
        return follows()

    @property
    def is_over(self) -> bool:
        """Whether the run is there and finished, which a process that follows asks: nobody will wait for it then."""
        with suppress(Unreadable, Changed, OSError):
            return not self.config.fresh and read_run(self.directory, trust_changed=True).status == "finished"
        return False

    @cached_property
    def versions(self) -> dict[str, str]:
        """Of the data and the model."""
        return composed.versions(self.config)

    def labels(self, *groups: str) -> dict[str, Any]:
        """What stands in every sample row of the run: its name, the seed, and its choices in these groups."""
        chosen = HydraConfig.get().runtime.choices
        return {"run": self.directory.name, "seed": self.config.seed, **{group: chosen.get(group) for group in groups}}

    def open(self) -> RunDirectory:
        """The run directory, locked."""
        config = composed.plain(self.config)
        trainer = config.get("trainer", {})
        facts = {"threads": threads(trainer.get("threads")), "devices": trainer.get("devices", 1)}
        facts["batching"] = composed.batching(config)
        digest, shared = config_hash(config, self.versions), composed.overlap(self.config)
        return RunDirectory.open(
            self.directory, config, hash=digest, kind=self.kind, fresh=config["fresh"],
            trust_changed=config["trust_changed"], info=facts | shared, versions=self.versions,
        )  # fmt: skip


def training_request(config: DictConfig) -> Request:
    """What train.py has been asked for."""
    kind = "smoke" if HydraConfig.get().runtime.choices.get("trainer") == "smoke" else "run"
    return Request(config, "trial" if config.get("sweep") else kind)  # the node is there in searches only

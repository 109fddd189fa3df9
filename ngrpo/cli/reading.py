"""The names of run directories, told from a composed configuration: the resolvers of Hydra's `hydra.run.dir`."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ngrpo import build
from ngrpo.rundir.schema import run_directory


def register_resolvers() -> None:
    """Makes `${run_directory:}` and `${run_directory:<study>}` known to OmegaConf."""
    OmegaConf.register_new_resolver("run_directory", _run_directory, replace=True)


def _run_directory(study: str = "", *, _root_: DictConfig) -> str:
    """The resolver `${run_directory:}`. The hydra node stays unresolved: it is the one that asks.

    study: where nothing is trained and several strategies are compared; the directory is named after task and model.
    """
    choices = {group: choice for group, choice in _root_.hydra.runtime.choices.items() if "/" not in str(group)}
    own = {str(name): node for name, node in _root_.items_ex(resolve=False) if name != "hydra"}
    config = build.plain(OmegaConf.create(own))
    if study:
        choices |= {"experiment": study, "exploration": choices["task"], "algorithm": choices["model"]}
    elif "algorithm" not in choices:  # nothing is trained: the directory is named after the model
        choices |= {"experiment": "evaluate", "algorithm": Path(config.get("run") or choices["model"]).name}
    return run_directory(config, choices, build.versions(config))

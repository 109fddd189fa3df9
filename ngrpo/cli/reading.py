"""What a job reads off its composed configuration: objects, plain values, its directory and the versions of its data.

It does not know how the configuration came about.
"""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from ngrpo.cli.settings import SettingsError, targets
from ngrpo.models import files
from ngrpo.rundir import records


def build(node: DictConfig | Mapping[str, Any], *, partial: bool = False, **kwargs: Any) -> Any:
    """The object that a node with a `_target_` describes; `kwargs` go to it as they are.

    partial: not the object, but what makes it, also where the node does not say `_partial_`.

    Raises:
        SettingsError: a target, here or further inside, that is not on the list of what may be built.
    """
    content = plain(node) if isinstance(node, DictConfig) else dict(node)
    found = [(path, inner["_target_"], targets.refusal(inner["_target_"])) for path, inner in targets.nodes(content)]
    lines = [f"{f'{path}.' if path else ''}_target_={target}: {refusal}" for path, target, refusal in found if refusal]
    if lines or "_target_" not in content:
        raise SettingsError(lines or ["_target_: is missing, so there is nothing to build"])
    try:
        make = hydra.utils.instantiate({**content, "_partial_": True}, _convert_="all")
    except InstantiationException as error:
        raise error.__cause__ or error from None
    return functools.partial(make, **kwargs) if partial or content.get("_partial_") else make(**kwargs)


def run_path() -> Path:
    """The directory of the job that is running."""
    return Path(HydraConfig.get().runtime.output_dir)


def choices(*groups: str) -> dict[str, str | None]:
    """What the job that is running has chosen in these groups."""
    return {group: HydraConfig.get().runtime.choices.get(group) for group in groups}


def plain(node: DictConfig) -> dict[str, Any]:
    """A node, or all of a configuration, as resolved mappings and lists."""
    content = OmegaConf.to_container(node, resolve=True)
    assert isinstance(content, dict)
    return {str(name): child for name, child in content.items()}


def data_versions(config: DictConfig | Mapping[str, Any]) -> dict[str, str]:
    """Name -> version of the task, the benchmarks, the model and reward functions of the user's: a part of what a run is."""
    tasks = [config["task"]] if "task" in config else []
    built = [build(node) for node in (*tasks, *(config.get("benchmark") or {}).values())]
    trained = config.get("run")  # of evaluate.py
    weights = files.fingerprint(str(Path(trained, "hf")) if trained else str(config["model"]["path"]))
    versions: dict[str, str] = {}
    for task in built:  # two files of one name are two data sets
        known = versions.get(task.name, task.version)
        versions[task.name] = task.version if known == task.version else f"{known}+{task.version}"
    for node in (config.get("reward") or {}).values():  # code of the user's own, which has no version
        if targets.is_users(node["_target_"]) and (source := targets.source_file(node["_target_"])):
            versions[str(node["_target_"])] = hashlib.sha256(source.read_bytes()).hexdigest()
    return versions | ({"model": weights} if weights else {})


def register_resolvers() -> None:
    """Makes `${run_directory:}` and `${run_directory:<study>}` known to OmegaConf."""
    OmegaConf.register_new_resolver("run_directory", _run_directory, replace=True)


def _run_directory(study: str = "", *, _root_: DictConfig) -> str:
    """The resolver `${run_directory:}`. The hydra node stays unresolved: it is the one that asks.

    study: where nothing is trained and several strategies are compared; the directory is named after task and model.
    """
    choices = {group: choice for group, choice in _root_.hydra.runtime.choices.items() if "/" not in str(group)}
    own = {str(name): node for name, node in _root_.items_ex(resolve=False) if name != "hydra"}
    config = plain(OmegaConf.create(own))
    if study:
        choices |= {"experiment": study, "exploration": choices["task"], "algorithm": choices["model"]}
    elif "algorithm" not in choices:  # nothing is trained: the directory is named after the model
        choices |= {"experiment": "evaluate", "algorithm": Path(config.get("run") or choices["model"]).name}
    return records.run_directory(config, choices, data_versions(config))

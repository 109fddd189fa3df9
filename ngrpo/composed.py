"""From a node of a configuration to the object that it describes, the same node to the same task.

Nothing heavy is imported, so that the check of a command line may build the tasks that the run then trains on.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from ngrpo import targets
from ngrpo.models import files
from ngrpo.targets import SettingsError
from ngrpo.tasks.base import Task

Node = DictConfig | Mapping[str, Any]


def plain(node: Node) -> dict[str, Any]:
    """A node, or all of a configuration, as resolved mappings and lists."""
    content: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    return {str(name): child for name, child in content.items()}


def instantiate(node: Node, *, partial: bool = False, **kwargs: Any) -> Any:
    """The object that a node with a `_target_` describes; `kwargs` go to it as they are. partial: not the object, but what
    makes it, also where the node does not say `_partial_`. Raises SettingsError for a target, here or further inside, that
    may not be built or not with these arguments."""
    content = plain(node)
    lines = [] if "_target_" in content else ["_target_: is missing, so there is nothing to build"]
    for path, inner in targets.nodes(content):
        more = bool(inner.get("_partial_")) or (partial and not path)
        wrong = targets.refusal(inner["_target_"]) or targets.unfit(inner, () if path else kwargs, more)
        lines += [f"{f'{path}.' if path else ''}_target_={inner['_target_']}: {wrong}"] if wrong else []
    if lines:
        raise SettingsError(lines)
    try:
        make = hydra.utils.instantiate({**content, "_partial_": True}, _convert_="all")
    except InstantiationException as error:
        raise error.__cause__ or error from None
    return functools.partial(make, **kwargs) if partial or content.get("_partial_") else make(**kwargs)


def task(node: Node) -> Task:
    """The task or benchmark of a node; the same node gives the same object for as long as the process lives."""
    return _task(json.dumps(plain(node), sort_keys=True))


@functools.lru_cache(maxsize=64)  # the jobs of a sweep mostly share their tasks
def _task(node: str) -> Task:
    return instantiate(json.loads(node))


def tasks(config: Node) -> dict[str, Task]:
    """The benchmarks of a configuration by name."""
    return {str(name): task(node) for name, node in (config.get("benchmark") or {}).items()}


def versions(config: Node) -> dict[str, str]:
    """Name -> version of the task, the benchmarks, the model and code of the user's own: a part of what a run is."""
    found: dict[str, str] = {}
    trained = [task(config["task"])] if config.get("task") else []
    for one in (*trained, *tasks(config).values()):  # two files of one name are two data sets
        known = found.get(one.name, one.version)
        found[one.name] = one.version if known == one.version else f"{known}+{one.version}"
    for target in {str(node["_target_"]) for _, node in targets.nodes(plain(config))}:
        if targets.is_users(target) and (source := targets.source_file(target)):  # code that has no version
            found[target] = hashlib.sha256(source.read_bytes()).hexdigest()
    return found | {"model": files.fingerprint(model_path(config))}


def batching(config: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation or a diagnosis samples of each benchmark, and how rows are cut into passes."""
    settings = {**config, **config.get("evaluation", {})}
    return {key: settings[key] for key in ("n", "rows_per_batch", "problems") if key in settings}


def overlap(config: DictConfig) -> dict[str, Any]:
    """For run.json: how many problems of each benchmark stand in the training set, told where there are any."""
    from ngrpo.tasks.overlap import overlap

    found = overlap(task(config.task), tasks(config)) if config.get("algorithm") else {}
    for name, counts in found.items():
        if any(counts.values()):
            print(f"note: of {name}, {counts['exact']} problems are in the training set and {counts['near']} nearly so")
    return {"overlap": found} if found else {}


def model_path(config: Node) -> str:
    """The directory or hub id that a configuration loads its model from."""
    return str(Path(config["run"], "hf")) if config.get("run") else config["model"]["path"]

"""What Hydra itself would build and where it would write, according to the `hydra` node of a composed configuration.

It does not know the rest of the configuration.
"""

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ngrpo.cli.settings import machine

# Hydra builds its launcher, sweeper and callbacks from the configuration too, and logging any `()` or `class`.
OF_HYDRA = re.compile(
    r"hydra\._internal\.core_plugins\.basic_(launcher\.BasicLauncher|sweeper\.BasicSweeper)"
    r"|hydra\.experimental\.callbacks\.[A-Z]\w+Callback"
    r"|hydra_plugins(\.[a-z]\w*)+\.[A-Z]\w+(Launcher|Sweeper)"
    r"|(optuna\.samplers|colorlog|logging(\.handlers)?)\.[A-Z]\w+"
)


def callables(config: DictConfig) -> Iterator[str]:
    """Callables that Hydra itself would build, and that are none of its own."""
    tree = OmegaConf.to_container(config.hydra, resolve=False)
    for path, name, value in _names_of_callables(tree, "hydra"):
        if not isinstance(value, str) or not OF_HYDRA.fullmatch(value):
            yield f"{path}.{name}={value}: only launchers, sweepers, callbacks and loggers belong here; leave it out"


def _names_of_callables(node: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    for name, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if name in ("_target_", "()", "class"):
            yield path, str(name), child
        yield from _names_of_callables(child, f"{path}.{name}")


def directory(config: DictConfig, several: bool) -> list[str]:
    """Whether the directory that the job would make can be made."""
    key = "hydra.sweep.dir" if several else "hydra.run.dir"
    try:
        path = OmegaConf.select(config, key)
    except (OmegaConfBaseException, ValueError) as error:
        return [f"{key}: {' '.join(str(error).split())}; {key}=outputs/<name>"]
    refusal = machine.directory_refusal(str(path or ""))
    return [f"{key}={path or ''}: {refusal}; {key}=outputs/<name>"] if refusal else []

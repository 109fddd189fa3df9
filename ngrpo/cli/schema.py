"""What the YAML files define: groups, their choices, the keys of each; and which one a misspelt name was meant for.

It does not know what was typed.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hydra import compose
from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError
from omegaconf import DictConfig, OmegaConf

from ngrpo.cli.keys import stands_for
from ngrpo.cli.settings.composed import flat

# What other trainers call it.
FOREIGN_NAMES = {
    "lr": "learning_rate",
    "max_steps": "steps",
    "total_training_steps": "steps",
    "batch_size": "prompts_per_step",
    "train_batch_size": "prompts_per_step",
    "num_generations": "group_size",
    "max_completion_length": "max_new_tokens",
    "rho": "mix_rate",
    "beta": "algorithm.kl.coefficient",
    "kl_coef": "algorithm.kl.coefficient",
}
# What keys, with all below them, were called in older versions.
RENAMED: dict[str, str] = {
    "algorithm.reward": "algorithm.reward_shaping",
    "exploration.realisation": "exploration.text_token",
}


@dataclass
class Schema:
    """The configuration below `conf/`, with the user's own files where `search_path` (an override) names some."""

    loader: ConfigLoader
    config_name: str
    search_path: list[str]
    composed: dict[tuple[str, ...], DictConfig] = field(default_factory=dict)
    listed: dict[tuple[str, ObjectType], list[str]] = field(default_factory=dict)

    def reference(self, overrides: Iterable[str]) -> DictConfig:
        """What group choices (and settings of Hydra itself) compose to; Hydra's errors pass."""
        key = tuple(overrides)
        if key not in self.composed:
            self.composed[key] = compose(self.config_name, list(key), return_hydra_config=True)
        return self.composed[key]

    @cached_property
    def primary(self) -> dict[str, Any]:
        """The file of the primary configuration itself, as it stands there."""
        return self._file(self.config_name)

    def _file(self, name: str) -> dict[str, Any]:
        source = next(source for source in self.loader.get_sources() if source.is_config(name))
        config = source.load_config(name).config
        content = OmegaConf.to_container(config) if OmegaConf.is_config(config) else config
        assert isinstance(content, dict)
        return {str(key): child for key, child in content.items()}

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Group -> the choice that stands when nothing is typed; a list where it takes several."""
        files = [name for name in self.primary["defaults"] if isinstance(name, str) and name != "_self_"]
        entries = [entry for file in (self.primary, *map(self._file, files)) for entry in file["defaults"]]
        named = [(str(name), value) for entry in entries if isinstance(entry, dict) for name, value in entry.items()]
        return {name: value for name, value in named if not name.startswith("override ")}

    def takes_several(self, group: str) -> bool:
        """Whether a list of options is fine for the group, as for the benchmarks."""
        return isinstance(self.defaults.get(group), list)

    def groups(self) -> list[str]:
        """Names of the top-level groups that this primary configuration uses."""
        return [name for name in self._options("", ObjectType.GROUP) if name in self.defaults]

    def is_group(self, name: str) -> bool:
        """Whether `name`, with slashes for sub-groups, is a group at all."""
        parent, _, last = name.rpartition("/")
        return bool(last) and last in self._options(parent, ObjectType.GROUP)

    def choices(self, group: str) -> list[str]:
        """The options of a group, those of its sub-groups as `sub/option`."""
        subs = self._options(group, ObjectType.GROUP)
        inner = [f"{sub}/{option}" for sub in subs for option in self.choices(f"{group}/{sub}")]
        return self._options(group, ObjectType.CONFIG) + inner

    @cached_property
    def owners(self) -> dict[str, list[str]]:
        """Dotted key -> the choices, as `group=option`, whose file defines it; experiments only use what others define."""
        owners: dict[str, list[str]] = {}
        for group in (group for group in self.groups() if group != "experiment"):
            for option in self.choices(group):
                for key in self._keys(group, option):
                    owners.setdefault(key, []).append(f"{group}={option}")
        return owners

    def owners_of(self, key: str) -> list[str]:
        """Those of a key, or of the keys that it is short for."""
        short = (owner for other, found in self.owners.items() if stands_for(key, other) for owner in found)
        return self.owners.get(key) or list(dict.fromkeys(short))

    def nearest(self, key: str, known: Mapping[str, Any]) -> str | None:
        """The key or group that `key` was probably meant to be."""
        parent, _, name = key.rpartition(".")
        members = [child for child in known if child.startswith(f"{parent}.")]
        siblings = {child.rpartition(".")[2]: child for child in sorted(members, key=lambda child: -child.count("."))}
        if parent and siblings:
            return siblings.get(alike(name, siblings) or "")
        leaves = {child.rpartition(".")[2]: child for child in reversed(list(known))}
        if key in leaves:
            return leaves[key]
        nodes = (child[: dot.start()] for child in known for dot in re.finditer(r"\.", child))
        names = dict.fromkeys([*self.groups(), *known, *nodes, *self.owners])
        if FOREIGN_NAMES.get(key) in names:
            return FOREIGN_NAMES[key]
        return alike(key, names) or leaves.get(alike(name, leaves, cutoff=0.75) or "")

    def _options(self, group: str, kind: ObjectType) -> list[str]:
        if (group, kind) not in self.listed:
            self.listed[group, kind] = self.loader.get_group_options(group, kind, overrides=self.search_path)
        return self.listed[group, kind]

    def _keys(self, group: str, option: str) -> Iterator[str]:
        for source in self.loader.get_sources():
            try:
                found = source.load_config(f"{group}/{option}")
            except ConfigLoadError:
                continue
            package = found.header["package"] or f"{group}/{option}".rpartition("/")[0].replace("/", ".")
            keys = flat(found.config) if isinstance(found.config, DictConfig) else {}
            yield from (key if package == "_global_" else f"{package}.{key}" for key in keys)


def closest(name: str, names: Iterable[str]) -> list[str]:
    """Up to eight names, those most like `name` first."""
    return difflib.get_close_matches(name, list(names), n=8, cutoff=0.0)


def alike(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name most like `name`; None if none is like it."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return found[0] if found else None

"""What the YAML files define, and what the overrides of one job compose to."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import yaml
from hydra import compose
from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigLoadError
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ngrpo.cli.overrides import full_key, stands_for, values_of
from ngrpo.cli.rules import leaves

COMPOSING = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError)
OF_NO_JOB = ("schema", "hydra", "defaults")  # nodes that no job reads
PARTS = "part"  # of a group: files that others are put together from, no choices of their own


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
        return next(self._files(self.config_name))[0]

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Group -> the choice that stands when nothing is typed; a list where it takes several."""
        names = [name for name in self.primary["defaults"] if isinstance(name, str) and name != "_self_"]
        files = [self.primary, *(content for name in names for content, _ in self._files(name))]
        named = [
            pair for file in files for entry in file["defaults"] if isinstance(entry, dict) for pair in entry.items()
        ]
        return {str(name): value for name, value in named if not str(name).startswith("override ")}

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
        subs = [sub for sub in self._options(group, ObjectType.GROUP) if sub != PARTS]
        inner = [f"{sub}/{option}" for sub in subs for option in self.choices(f"{group}/{sub}")]
        return self._options(group, ObjectType.CONFIG) + inner

    @cached_property
    def owners(self) -> dict[str, list[str]]:
        """Dotted key -> the choices, as `group=option`, whose files define it; experiments only use what others define."""
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

    def _options(self, group: str, kind: ObjectType) -> list[str]:
        if (group, kind) not in self.listed:
            self.listed[group, kind] = self.loader.get_group_options(group, kind, overrides=self.search_path)
        return self.listed[group, kind]

    def _files(self, name: str) -> Iterator[tuple[dict[str, Any], str | None]]:
        """(content, its package) of every file of this name."""
        for source in self.loader.get_sources():
            try:
                found = source.load_config(name)
            except ConfigLoadError:
                continue
            content = OmegaConf.to_container(found.config) if OmegaConf.is_config(found.config) else found.config
            if isinstance(content, dict):
                yield {str(key): child for key, child in content.items()}, found.header["package"]

    def _keys(self, group: str, option: str) -> Iterator[str]:
        for content, header in self._files(f"{group}/{option}"):
            package = header or f"{group}/{option}".rpartition("/")[0].replace("/", ".")
            yield from (key if package == "_global_" else f"{package}.{key}" for key in flat(content))
            for part in content.get("defaults", ()):
                yield from self._keys(group, part) if isinstance(part, str) and part != "_self_" else ()


@dataclass
class Job:
    """A list of overrides without sweeps, some of which choose files for Hydra to compose, and the others set values.

    choices: what Hydra composes with, where that is not what was typed; composes: whether it can.
    full: the keys that were typed short, with the keys that they stand for under these choices.
    """

    schema: Schema
    overrides: list[Override]
    choices: list[str] | None = None
    problems: list[str] = field(default_factory=list)
    composes: bool = True
    full: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if self.choices is None:
            self.choices = [str(o.input_line) for o in self.overrides if is_choice(o, self.schema)]

    @cached_property
    def reference(self) -> DictConfig:
        """What the YAML files say under these choices; COMPOSING errors pass."""
        return self.schema.reference(self.choices or [])

    @cached_property
    def known(self) -> dict[str, Any]:
        """Its leaves by dotted key."""
        return flat(self.reference)

    @cached_property
    def values(self) -> list[Override]:
        """The overrides of keys, each with its key in full; their text stays as it was typed."""
        found = []
        for override in (o for o in self.overrides if not is_choice(o, self.schema)):
            key = override.key_or_group
            full = key if isinstance(override.value(), dict) else full_key(key, self.known)
            if full != key and any(other.key_or_group == full for other in self.overrides):
                self.problems.append(f"{override.input_line}: {full} is given as well; keep one of the two")
            self.full |= {key: full} if full != key else {}
            found.append(replace(override, key_or_group=full))
        return found

    def unknown(self) -> list[Override]:
        """Overrides with a key that these choices do not have."""
        values = self.values if self.composes else []
        return [override for override in values if not all(has(self.known, key) for key in values_of(override))]


def is_choice(override: Override, schema: Schema) -> bool:
    """Whether an override chooses from a group, or is for Hydra itself, and not the value of a key."""
    by_name = not isinstance(override.value(), dict) and schema.is_group(override.key_or_group)
    return override.is_hydra_override() or by_name


def has(known: Mapping[str, Any], key: str) -> bool:
    """Whether `key` is a leaf, a node, or a place in a list."""
    node, _, place = key.rpartition(".")
    members = known.get(node)
    inside = isinstance(members, list) and place.isdecimal() and int(place) < len(members)
    return key in known or inside or any(name.startswith(f"{key}.") for name in known)


def flat(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> leaf, interpolations as they stand, without what no job reads; lists and empty mappings are leaves."""
    nodes = config.items_ex(resolve=False) if isinstance(config, DictConfig) else config.items()
    own = {str(name): node for name, node in nodes if name not in OF_NO_JOB}
    return dict(
        leaves(
            {name: OmegaConf.to_container(node) if OmegaConf.is_config(node) else node for name, node in own.items()}
        )
    )

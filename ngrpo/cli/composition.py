"""What the YAML files define, what was typed, and what the overrides of one job compose to."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from ngrpo.cli import conf, matched
from ngrpo.cli.conf import OF_NO_JOB
from ngrpo.cli.matched import MATCHED
from ngrpo.rundir.schema import leaves

SEVERAL = ("benchmark", "logger")  # groups of which a list is chosen
TRIED = 24  # values of one sweep that are looked at before its jobs start


@dataclass
class Schema:
    """The configuration of an entry point, below `conf/` and where the user's own files are."""

    config_name: str
    composed: dict[tuple[str, ...], DictConfig] = field(default_factory=dict)

    def reference(self, overrides: Iterable[str] = ()) -> DictConfig:
        """What group choices (and settings of Hydra itself) compose to; Hydra's errors pass."""
        key = tuple(overrides)
        if key not in self.composed:
            self.composed[key] = compose(self.config_name, list(key), return_hydra_config=True)
        return self.composed[key]

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Group of this entry point -> the choice that stands when nothing is typed."""
        config = self.reference()
        single = {str(group): choice for group, choice in config.hydra.runtime.choices.items() if "/" not in str(group)}
        return single | {group: next(iter(config[group]), None) for group in SEVERAL if group in config}

    @cached_property
    def owners(self) -> dict[str, list[str]]:
        """Dotted key -> the choices, as `group=option`, whose files define it; experiments only use what others define."""
        owners: dict[str, list[str]] = {}
        for group in (group for group in self.defaults if group != "experiment"):
            for option in conf.choices(group):
                for key in conf.keys(group, option):
                    owners.setdefault(key, []).append(f"{group}={option}")
        return owners


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

    @cached_property
    def reference(self) -> DictConfig:
        """What the YAML files say under these choices; Hydra's errors pass."""
        typed = [str(o.input_line) for o in self.overrides if is_choice(o)]
        return self.schema.reference(typed if self.choices is None else self.choices)

    @cached_property
    def known(self) -> dict[str, Any]:
        """Its leaves by dotted key, and `matched.<key>` for what the strategy that it is matched to can be set to."""
        typed = next((o.value() for o in self.overrides if o.key_or_group == matched.KEY), None)
        more = matched.settings(self.reference, typed)
        return {key: value for key, value in flat(self.reference).items() if not (more and key == MATCHED)} | more

    @cached_property
    def values(self) -> list[Override]:
        """The overrides of keys, each with its key in full; their text stays as it was typed."""
        found = []
        for override in (o for o in self.overrides if not is_choice(o)):
            key = override.key_or_group
            full = key if isinstance(override.value(), dict) else full_key(key, self.known)
            if full != key and any(other.key_or_group == full for other in self.overrides):
                self.problems.append(f"{override.input_line}: {full} is given as well; keep one of the two")
            self.full |= {key: full} if full != key else {}
            found.append(replace(override, key_or_group=full))
        return found

    def presets(self) -> list[Override]:
        """The listed values that an experiment has for its sweep, of keys that are not given: knobs may be theirs alone."""
        hydra: Any = OmegaConf.to_container(self.reference.hydra, resolve=False)
        params = hydra["sweeper"].get("params") if isinstance(hydra["sweeper"], dict) else None
        params = params if isinstance(params, dict) else {}  # Hydra's own error tells what is no mapping
        given = [o.key_or_group for o in self.overrides]
        return [
            read_one(f"{key}={values}") for key, values in params.items() if not any(same_key(key, o) for o in given)
        ]

    def unknown(self) -> list[Override]:
        """Overrides with a key that these choices do not have, nor stands in a node with a `_target_` where none was yet."""
        values = self.values if self.composes else []
        built = {key.rpartition(".")[0] for o in values for key in values_of(o) if key.endswith("._target_")}
        opened = {
            node for node in built if self.known.get(node, 0) is None or self.known.get(node.rpartition(".")[0]) == {}
        }
        strange = [{key for key in values_of(o) if not has(self.known, key)} for o in values]
        return [o for o, keys in zip(values, strange, strict=True) if {key.rpartition(".")[0] for key in keys} - opened]

    def composed(self, overrides: Iterable[Override]) -> DictConfig:
        """The reference with some of the values set."""
        config = copy.deepcopy(self.reference)
        for override in overrides:
            if override.is_delete():
                parent, _, name = override.key_or_group.rpartition(".")
                with open_dict(config):
                    del (OmegaConf.select(config, parent) if parent else config)[name]
            else:
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True, force_add=True)
        return config


def read_one(text: str) -> Override:
    """One override; Hydra's exceptions pass."""
    override = OverridesParser.create().parse_override(text)
    override.value()
    return override


def listed(override: Override) -> list[Override]:
    """The values of a sweep, each as an override of its own (the ends of an interval); others as they are."""
    if not override.is_sweep_override():
        return [override]
    if override.is_interval_sweep():
        interval: Any = override.value()
        texts = [str(interval.start), str(interval.end)]
    else:
        texts = [text for _, text in zip(range(TRIED), override.sweep_string_iterator(), strict=False)]
    return [read_one(f"{override.get_key_element()}={text}") for text in texts or ["null"]]


def values_of(override: Override) -> dict[str, Any]:
    """Dotted key -> value for all that the override sets."""
    value = override.value()
    return (
        dict(leaves(value, override.key_or_group))
        if isinstance(value, dict) and value
        else {override.key_or_group: value}
    )


def is_choice(override: Override) -> bool:
    """Whether an override chooses from a group, or is for Hydra itself, and not the value of a key."""
    by_name = not isinstance(override.value(), dict) and conf.is_group(override.key_or_group)
    return override.is_hydra_override() or by_name


def has(known: Mapping[str, Any], key: str) -> bool:
    """Whether `key` is a leaf, a node, or a place in a list."""
    node, _, place = key.rpartition(".")
    inside = isinstance(known.get(node), list) and place.isdecimal() and int(place) < len(known[node])
    return key in known or inside or any(name.startswith(f"{key}.") for name in known)


def flat(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> leaf, interpolations as they stand, without what no job reads; lists and empty mappings are leaves."""
    nodes = config.items_ex(resolve=False) if isinstance(config, DictConfig) else config.items()
    own = {name: node for name, node in nodes if name not in OF_NO_JOB}
    return dict(leaves({k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in own.items()}))


def stands_for(key: str, other: str) -> bool:
    """Whether `other` is `key` with one part more before its last: exploration.metric is exploration.recipe.metric."""
    parent, dot, name = key.rpartition(".")
    longer, _, last = other.rpartition(".")
    return bool(dot) and last == name and longer.rpartition(".")[0] == parent


def same_key(key: str, other: str) -> bool:
    """Whether two names may be one key, in short or in full."""
    return key == other or stands_for(key, other) or stands_for(other, key)


def full_key(key: str, known: Iterable[str]) -> str:
    """The key that `key` stands for among the known ones; itself where it is one of them, or stands for none or several."""
    known, its = set(known), f"{MATCHED}.{key}"
    found = [other for other in known if stands_for(key, other)]
    found = found or [other for other in known if other == its or stands_for(its, other)]
    return found[0] if key not in known and len(found) == 1 else key


def in_full(text: str, key: str, full: str) -> str:
    """An override that was typed with `key`, as Hydra knows it; to the node of a matched strategy it adds."""
    text = text.replace(key, full, 1)
    return f"+{text}" if full.startswith(f"{MATCHED}.") and not text.startswith("+") else text

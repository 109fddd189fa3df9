"""A composed configuration as dotted keys with their values. It does not know which values are good."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ngrpo.cli.settings.limits import Rule, as_override

INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")
UNRESOLVED = object()


@dataclass
class Composed:
    """A configuration as the checks see it. `broken` collects keys whose values no later check should look at."""

    config: DictConfig
    reference: DictConfig | None
    given: Mapping[str, str]
    broken: set[str] = field(default_factory=set)

    @cached_property
    def raw(self) -> dict[str, Any]:
        """Leaves by dotted key, interpolations as they stand."""
        return flat(self.config)

    @cached_property
    def usual(self) -> dict[str, Any]:
        """The leaves of the YAML files alone, by dotted key."""
        return {} if self.reference is None else resolved(self.reference)

    @cached_property
    def values(self) -> dict[str, Any]:
        """The leaves by dotted key; UNRESOLVED where an interpolation leads nowhere."""
        return resolved(self.config)

    @cached_property
    def tree(self) -> dict[str, Any]:
        """The same as plain mappings and lists, without what does not resolve."""
        tree: dict[str, Any] = {}
        for key, value in self.values.items():
            *parents, name = key.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            if value is not UNRESOLVED:
                node[name] = value
        return tree

    @cached_property
    def rules(self) -> dict[str, Rule]:
        """The limits, also of keys that stand for another: what holds for `k` holds for `exploration.k: ${k}`."""
        limits = self.config.get("limits")
        plain = OmegaConf.to_container(limits) if isinstance(limits, DictConfig) else {}
        assert isinstance(plain, dict)
        rules: dict[str, Rule] = {str(key): rule or {} for key, rule in plain.items()}
        for key, value in (self.raw if self.reference is None else flat(self.reference)).items():
            source = INTERPOLATION.fullmatch(value) if isinstance(value, str) else None
            if source and source[1] in rules and key not in rules and self.raw.get(key) != value:
                rules[key] = rules[source[1]]
        return rules

    def shown(self, key: str) -> str:
        """`key=value`, as typed where it was typed."""
        value = self.given[key] if key in self.given else as_override(self.raw.get(key))
        return f"{key}={printable(value)}"

    def sound(self, *keys: str) -> bool:
        """Whether all of these keys have a value and none of them is broken."""
        return all(self.values.get(key) is not None and key not in self.broken for key in keys)


def flat(config: DictConfig) -> dict[str, Any]:
    """Dotted key -> leaf, without the limits and Hydra's node; lists and empty mappings are leaves."""
    own = {str(name): node for name, node in config.items_ex(resolve=False) if name not in ("limits", "hydra")}
    plain = {name: OmegaConf.to_container(node) if OmegaConf.is_config(node) else node for name, node in own.items()}
    return dict(_leaves(plain, ""))


def resolved(config: DictConfig) -> dict[str, Any]:
    """Dotted key -> value; UNRESOLVED where an interpolation leads nowhere."""
    return {key: _select(config, key) if _interpolates(leaf) else leaf for key, leaf in flat(config).items()}


def printable(text: str, most: int = 100) -> str:
    """Text as at most so many signs of one line, with control characters escaped."""
    text = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
    return text if len(text) <= most else text[: most - 3] + "..."


def _leaves(node: Mapping[Any, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, child in node.items():
        key = f"{path}.{name}" if path else str(name)
        if isinstance(child, Mapping) and child:
            yield from _leaves(child, key)
        else:
            yield key, child


def _interpolates(leaf: Any) -> bool:
    return "${" in leaf if isinstance(leaf, str) else isinstance(leaf, list) and any(map(_interpolates, leaf))


def _select(config: DictConfig, key: str) -> Any:
    try:
        value = OmegaConf.select(config, key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except (OmegaConfBaseException, RecursionError, ValueError):
        return UNRESOLVED

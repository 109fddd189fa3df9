"""What was typed, override by override: what cannot be read, which values a sweep lists, which keys are set, and to what."""

import copy
from collections.abc import Iterable
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ngrpo.cli.rules import leaves

TRIED = 24  # values of one sweep that are looked at before its jobs start


def parse(tokens: list[str], loader: ConfigLoader) -> tuple[list[Override], list[str]]:
    """The overrides that can be read, and a problem for each that cannot, or that gives a key a second time.

    `loader` knows the options that a `glob()` stands for.
    """
    read: list[Override] = []
    problems: list[str] = []
    first: dict[str, str] = {}
    for token in tokens:
        key, equals, value = token.partition("=")
        if not equals and not token.startswith("~"):
            problems.append(f"{token}: has no value; {token}=<value>")
            continue
        try:
            override = read_one(token)
        except (HydraException, ValueError, AttributeError, TypeError):
            fix = f"text with such characters in it needs quotes: \"{key}='...'\""
            problems.append(f"{token}: cannot be read as key=value; {fix}")
            continue
        name, override.config_loader = override.key_or_group, loader
        if not name:
            problems.append(f"{token}: names no key; <key>={value}")
        elif name in first and not override.is_hydra_override():
            problems.append(f"{token}: {name} is given before, as {first[name]}; keep one of the two")
        else:
            first[name] = token
            read.append(override)
    return read, problems


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
    if not isinstance(value, dict) or not value:
        return {override.key_or_group: value}
    content = OmegaConf.to_container(OmegaConf.create(value))
    assert isinstance(content, dict)
    return dict(leaves(content, override.key_or_group))


def typed(override: Override) -> str:
    """The value as it was typed, without quotes around it."""
    text = str(override.input_line).partition("=")[2]
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def apply(reference: DictConfig, overrides: list[Override]) -> tuple[DictConfig, list[str]]:
    """A copy of the reference with the overrides in it, and a problem for each that does not go in."""
    config, problems = copy.deepcopy(reference), []
    for override in overrides:
        try:
            if override.is_delete():
                parent, _, name = override.key_or_group.rpartition(".")
                with open_dict(config):
                    del (OmegaConf.select(config, parent) if parent else config)[name]
            else:
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True, force_add=True)
        except (OmegaConfBaseException, ValueError, TypeError, AttributeError, LookupError, AssertionError) as error:
            problems.append(f"{override.input_line}: {' '.join(str(error).split())}")
    return config, problems


def stands_for(key: str, other: str) -> bool:
    """Whether `other` is `key` with one part more before its last: exploration.metric is exploration.recipe.metric."""
    parent, dot, name = key.rpartition(".")
    longer, _, last = other.rpartition(".")
    return bool(dot) and last == name and longer.rpartition(".")[0] == parent


def full_key(key: str, known: Iterable[str]) -> str:
    """The key that `key` stands for among the known ones; itself where it is one of them, or stands for none or several."""
    known = set(known)
    found = [other for other in known if stands_for(key, other)]
    return found[0] if key not in known and len(found) == 1 else key


def same_key(key: str, other: str) -> bool:
    """Whether two names may be one key, in short or in full."""
    return key == other or stands_for(key, other) or stands_for(other, key)

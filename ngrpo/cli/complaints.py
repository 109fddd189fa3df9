"""What is wrong with one override as such, its choice or its key: a line that ends in the right override."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override

from ngrpo.cli import conf
from ngrpo.cli.composition import SEVERAL, Job, Schema, has, stands_for, values_of
from ngrpo.cli.rules import as_override
from ngrpo.rundir.schema import RENAMED

MOST_VALUES = 100_000  # that a file may stand for
MOST_CHOICES = 24  # of a group are listed; of larger ones those that are most like what was typed
# What other trainers call it.
FOREIGN_NAMES = {
    "lr": "learning_rate", "max_steps": "steps", "total_training_steps": "steps", "batch_size": "prompts_per_step",
    "train_batch_size": "prompts_per_step", "num_generations": "group_size", "max_completion_length": "max_new_tokens",
    "rho": "mix_rate", "beta": "algorithm.kl.coefficient", "kl_coef": "algorithm.kl.coefficient",
}  # fmt: skip


def of_renamed(override: Override) -> str | None:
    """An override whose key, or one below it, had its name in an older version, or stands below one that had."""
    text = str(override.input_line)
    for key in (override.key_or_group, *values_of(override)):
        if old := next((name for name in RENAMED if f"{key}.".startswith(f"{name}.")), None):
            inner = f"{key}={as_override(values_of(override)[key])}" if key != override.key_or_group else text
            return f"{text}: {old} is now called {RENAMED[old]}; {inner.replace(old, RENAMED[old], 1)}"
    return None


def of_aliases() -> list[str]:
    """Files of the user's own whose aliases stand for so much that composing them would never end."""
    return [
        f"--config-dir={place}: aliases in {file.relative_to(place)} stand for more than {MOST_VALUES:,} values; write them out"
        for place in conf.PLACES[1:]
        for file in sorted(place.rglob("*.yaml"))
        if _is_a_bomb(file)
    ]


def _is_a_bomb(file: Path) -> bool:
    try:
        text = file.read_text("utf-8")
        top = yaml.compose(text) if "*" in text and "&" in text else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):  # reported when it is composed
        return False
    sizes: dict[int, float] = {}

    def size(node: Any) -> float:
        if id(node) not in sizes:
            sizes[id(node)] = math.inf  # a node that stands within itself
            inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            sizes[id(node)] = 1 if isinstance(node, yaml.ScalarNode) else 1 + sum(size(part) for part in inner)
        return sizes[id(node)]

    return top is not None and size(top) > MOST_VALUES


def of_sweep(override: Override) -> str:
    """Several values where one job takes one."""
    key, text = override.key_or_group, str(override.input_line)
    fix = f"'{key}=[{text[len(key) + 1 :]}]'" if key in SEVERAL else f"-m {text}"
    return f"{text}: several values need -m, one job for each, or brackets for one list; {fix}"


def of_choice(override: Override, schema: Schema) -> tuple[str | None, str | None]:
    """(problem, override to compose with) of the choice of a group; a misspelt choice becomes its nearest."""
    group, text, value = override.key_or_group, str(override.input_line), override.value()
    if group not in schema.defaults:
        top, _, rest = group.partition("/")
        inside = f"the group is {top}; {top}={rest}/{as_override(value)}"
        return f"{text}: {inside if rest else f'there is no {top} here; leave it out'}", None
    names, choices, usual = value if isinstance(value, list) else [value], conf.choices(group), schema.defaults[group]
    usual = f"{group}={usual or (choices[0] if choices else '<name>')}"
    if override.is_delete():
        fine = group in schema.defaults and schema.defaults[group] is None
        return (None, text) if fine else (f"{text}: {group} cannot be left out; {usual}", None)
    plain = text.removeprefix("+" if group in SEVERAL else "") == f"{group}={text.partition('=')[2]}"
    fits = all(name in choices for name in names) and (names or schema.defaults[group] is None)
    if plain and fits and (group in SEVERAL or not isinstance(value, list)):
        return None, text
    near = [name if name in choices else alike(str(name), choices) for name in names]
    most = difflib.get_close_matches(str(value), choices, n=8, cutoff=0.0) if len(choices) > MOST_CHOICES else choices
    one_of = f"is one of {', '.join(most)}" if choices else "has no choices yet"
    chosen = near if group in SEVERAL and isinstance(value, list) else next(iter(near), None)
    right = f"{group}={as_override(chosen)}" if near and all(near) else None
    return f"{text}: {group} {one_of}; {right or usual}", right


def of_packages(job: Job) -> list[str]:
    """Chosen files without the first line that says where their keys belong: these would stand elsewhere, unread."""
    config, found = job.reference, []
    for group in job.schema.defaults:
        node = config.get(group)
        if not isinstance(node, Mapping) or not node:
            continue
        header = f"# @package {group}.<name>" if group in SEVERAL else "# @package _global_"
        if (group in SEVERAL and "_target_" in node) or group == "experiment" or group in node:
            chosen = next((str(o.input_line) for o in job.overrides if o.key_or_group == group), group)
            found.append(
                f"{chosen}: its keys stand below {group}, where nobody reads them; begin its file with '{header}'"
            )
    return found


def of_unknown(override: Override, job: Job) -> list[str]:
    """An override with keys that are not there: whose they are, or which name is nearest."""
    key, text = override.key_or_group, str(override.input_line)
    if override.is_delete():
        return [f"{text}: there is no {key} to leave out; leave that out"]
    strange = {name: as_override(leaf) for name, leaf in values_of(override).items() if not has(job.known, name)}
    strange |= {key: typed(override)} if key in strange else {}
    return [f"{name}={value}: {_meant(name, value, job)}" for name, value in strange.items()]


def of_shape(override: Override, known: Mapping[str, Any]) -> str | None:
    """An override that adds what is there, removes what has to stay, or takes a node for a leaf."""
    key, text, value = override.key_or_group, str(override.input_line), override.value()
    parts = [name for name in known if name.startswith(f"{key}.")]
    if override.is_delete():
        return f"{text}: {key} cannot be left out; {key}={as_override(known.get(key, '{...}'))}"
    if override.is_add() and has(known, key) and not isinstance(value, (dict, list)):
        return f"{text}: {key} is there already; {text.lstrip('+')}"
    if parts and not isinstance(value, dict):
        return f"{text}: {key} has parts; {parts[0]}={as_override(known[parts[0]])} sets one"
    return None


def of_composition(error: BaseException, overrides: list[Override], otherwise: str = "conf") -> str:
    """An error of Hydra's composition, led by the override that it names."""
    words = " ".join(f"{error} {error.__cause__ or ''}".split())
    text = re.split(r" See https| Config search path| To append to| full_key", words)[0]
    named = [override for override in overrides if override.key_or_group in text]
    named = named or [override for override in overrides if override.is_hydra_override()]  # which Hydra says nothing of
    return f"{named[0].input_line if named else otherwise}: {text}"


def typed(override: Override) -> str:
    """The value as it was typed, without quotes around it."""
    text = str(override.input_line).partition("=")[2]
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def alike(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name most like `name`; None if none is like it."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)), None)


def _nearest(key: str, known: Mapping[str, Any], schema: Schema) -> str | None:
    """The key or group that `key` was probably meant to be."""
    parent, _, name = key.rpartition(".")
    members = [child for child in known if child.startswith(f"{parent}.")]
    siblings = {child.rpartition(".")[2]: child for child in sorted(members, key=lambda child: -child.count("."))}
    if parent and siblings:
        return siblings.get(alike(name, siblings) or "")
    last = {child.rpartition(".")[2]: child for child in reversed(list(known))}
    nodes = (child[: dot.start()] for child in known for dot in re.finditer(r"\.", child))
    names = dict.fromkeys([*schema.defaults, *known, *nodes, *schema.owners])
    foreign = FOREIGN_NAMES.get(key) if FOREIGN_NAMES.get(key) in names else None
    return last.get(key) or foreign or alike(key, names) or last.get(alike(name, last, cutoff=0.75) or "")


def _meant(key: str, value: str, job: Job) -> str:
    known, schema, chosen = job.known, job.schema, dict(job.reference.hydra.runtime.choices)
    short = (owner for other, found in schema.owners.items() if stands_for(key, other) for owner in found)
    owners = schema.owners.get(key) or list(dict.fromkeys(short))
    owners = [owner for owner in owners if owner.split("=") not in map(list, chosen.items())]
    near, parent = _nearest(key, known, schema), key.rpartition(".")[0]
    siblings = [child.rpartition(".")[2] for child in known if parent and child.rpartition(".")[0] == parent]
    if owners:
        group = owners[0].partition("=")[0]
        lacks = f"{group}={chosen[group]} has no {key}" if chosen.get(group) else f"nothing chosen here has {key}"
        return f"{lacks}, it belongs to {' and '.join(owners)}; add {owners[0]}"
    if known.get(parent) == {}:
        return f"{parent} takes functions by name, each with its _target_; '+{key}={{_target_: package.function}}'"
    if near is not None:
        owner = "" if has(known, near) else "".join(f" {owner}" for owner in schema.owners.get(near, [])[:1])
        return f"there is no {key}, the nearest name is {near}; {near}={value}{owner}"
    return f"there is no {key}" + (f", {parent} has {', '.join(siblings)}" if siblings else "") + "; leave it out"

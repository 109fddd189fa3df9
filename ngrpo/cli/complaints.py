"""What is wrong with one override as such, its choice or its key: a line that ends in the right override."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from hydra.core.override_parser.types import Override

from ngrpo.cli.composition import Job, Schema, has
from ngrpo.cli.overrides import typed, values_of
from ngrpo.cli.rules import as_override

MOST_CHOICES = 24  # of a group are listed; of larger ones those that are most like what was typed
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
RENAMED = {
    "algorithm.reward": "algorithm.reward_shaping",
    "exploration.realisation": "exploration.text_token",
    "grading.max_errors": "grading.max_ungraded_share",
    "reward": "extra_rewards",
    "trains": "trainable",
    "evaluation.n": "n",
    "evaluation.problems": "problems",
}


def of_renamed(override: Override) -> str | None:
    """An override whose key had this name in an older version, or stands below one that had."""
    text = str(override.input_line)
    for key in (override.key_or_group, *values_of(override)):
        old = next((name for name in RENAMED if f"{key}.".startswith(f"{name}.")), None)
        if old and key == override.key_or_group:
            return f"{text}: {old} is now called {RENAMED[old]}; {text.replace(old, RENAMED[old], 1)}"
        if old:
            value = as_override(values_of(override)[key])
            return f"{text}: {old} is now called {RENAMED[old]}; {key.replace(old, RENAMED[old], 1)}={value}"
    return None


def of_sweep(override: Override, schema: Schema) -> str:
    """Several values where one job takes one."""
    key, text = override.key_or_group, str(override.input_line)
    fix = f"'{key}=[{text[len(key) + 1 :]}]'" if schema.takes_several(key) else f"-m {text}"
    return f"{text}: several values need -m, one job for each, or brackets for one list; {fix}"


def of_choice(override: Override, schema: Schema) -> tuple[str | None, str | None]:
    """(problem, override to compose with) of the choice of a group; a misspelt choice becomes its nearest."""
    group, text, value = override.key_or_group, str(override.input_line), override.value()
    names = value if isinstance(value, list) else [value]
    top, _, rest = group.partition("/")
    if top not in schema.groups():
        return f"{text}: there is no {top} here; leave it out", None
    if group not in schema.defaults and rest:
        return f"{text}: the group is {top}; {top}={rest}/{as_override(value)}", None
    if override.is_delete():
        needed = schema.defaults.get(group) is not None
        return (f"{text}: {group} cannot be left out; {_usual(group, schema)}", None) if needed else (None, text)
    if not names or any(name not in schema.choices(group) for name in names):
        return _misspelt(override, schema, names)
    if isinstance(value, list) and not schema.takes_several(group):
        return f"{text}: {group} is one choice, without brackets; {group}={names[0]}", None
    adds = override.is_add() and not schema.takes_several(group)
    if override.package is not None or override.is_force_add() or adds:
        return f"{text}: {group} is there already; {group}={as_override(value)}", None
    return None, text


def of_unknown(override: Override, job: Job) -> list[str]:
    """An override with keys that are not there: whose they are, or which name is nearest."""
    key = override.key_or_group
    if override.is_delete():
        return [f"{override.input_line}: there is no {key} to leave out; leave that out"]
    strange = {name: as_override(leaf) for name, leaf in values_of(override).items() if not has(job.known, name)}
    strange |= {key: typed(override)} if key in strange else {}
    return [f"{name}={value}: {_meant(name, value, job)}" for name, value in strange.items()]


def of_shape(override: Override, known: Mapping[str, Any]) -> str | None:
    """An override that adds what is there, removes what has to stay, or takes a node for a leaf."""
    key, text, value = override.key_or_group, str(override.input_line), override.value()
    parts = [name for name in known if name.startswith(f"{key}.")]
    if override.is_delete():
        fix = f"{key}={as_override(known[key])}" if key in known else "leave it as it is"
        return f"{text}: {key} cannot be left out; {fix}"
    if override.is_add() and has(known, key) and not isinstance(value, (dict, list)):
        return f"{text}: {key} is there already; {text.lstrip('+')}"
    if parts and not isinstance(value, dict):
        return f"{text}: {key} has parts; {parts[0]}={as_override(known[parts[0]])} sets one"
    return None


def of_composition(error: BaseException, overrides: list[Override]) -> str:
    """An error of Hydra's composition, led by the override that it names."""
    words = " ".join(f"{error} {error.__cause__ or ''}".split())
    text = re.split(r" See https| Config search path| To append to| full_key", words)[0]
    named = [str(override.input_line) for override in overrides if override.key_or_group in text]
    return f"{named[0] if named else 'conf'}: {text}"


def nearest(key: str, known: Mapping[str, Any], schema: Schema) -> str | None:
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
    names = dict.fromkeys([*schema.groups(), *known, *nodes, *schema.owners])
    if FOREIGN_NAMES.get(key) in names:
        return FOREIGN_NAMES[key]
    return alike(key, names) or leaves.get(alike(name, leaves, cutoff=0.75) or "")


def alike(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name most like `name`; None if none is like it."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return found[0] if found else None


def _misspelt(override: Override, schema: Schema, names: list[Any]) -> tuple[str, str | None]:
    group, choices = override.key_or_group, schema.choices(override.key_or_group)
    near = [name if name in choices else alike(str(name), choices) for name in names]
    closest = difflib.get_close_matches(str(names[0]), choices, n=8, cutoff=0.0) if names else []
    shown = choices if len(choices) <= MOST_CHOICES else [*closest, "..."]
    one_of = f"{group} is one of {', '.join(shown)}" if choices else f"{group} has no choices yet"
    right = None
    if near and all(near):
        right = f"{group}={as_override(near if isinstance(override.value(), list) else near[0])}"
    return f"{override.input_line}: {one_of}; {right or _usual(group, schema)}", right


def _usual(group: str, schema: Schema) -> str:
    now, choices = schema.defaults.get(group), schema.choices(group)
    first = now[0] if isinstance(now, list) and now else now
    return f"{group}={first or (choices[0] if choices else '<name>')}"


def _meant(key: str, value: str, job: Job) -> str:
    known, schema, chosen = job.known, job.schema, dict(job.reference.hydra.runtime.choices)
    owners = [owner for owner in schema.owners_of(key) if owner.split("=") not in map(list, chosen.items())]
    if owners:
        group = owners[0].partition("=")[0]
        lacks = f"{group}={chosen[group]} has no {key}" if chosen.get(group) else f"nothing chosen here has {key}"
        return f"{lacks}, it belongs to {' and '.join(owners)}; add {owners[0]}"
    near, parent = nearest(key, known, schema), key.rpartition(".")[0]
    if known.get(parent) == {}:
        return f"{parent} takes functions by name, each with its _target_; '+{key}={{_target_: package.function}}'"
    if near is not None:
        owner = "" if has(known, near) else "".join(f" {owner}" for owner in schema.owners.get(near, [])[:1])
        return f"there is no {key}, the nearest name is {near}; {near}={value}{owner}"
    siblings = [child.rpartition(".")[2] for child in known if parent and child.rpartition(".")[0] == parent]
    if siblings:
        return f"there is no {key}, {parent} has {', '.join(siblings)}; leave it out"
    return f"there is no {key}; --cfg job lists what there is"

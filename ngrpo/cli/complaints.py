"""What is wrong with one override as such, its choice, its key or its sign: a line that ends in the right override.

It does not know the other overrides, nor what a value means.
"""

import re
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.types import Override

from ngrpo.cli.overrides import leaves, typed
from ngrpo.cli.schema import RENAMED, Schema, alike, closest
from ngrpo.cli.settings.limits import as_override

MOST_CHOICES = 24  # of a group are listed; of larger ones those that are most like what was typed
Known = Mapping[str, Any]  # the leaves of a composition, by dotted key


def of_choice(override: Override, schema: Schema) -> tuple[str | None, str | None]:
    """(problem, override to compose with) of the choice of a group; a misspelt choice becomes its nearest."""
    group, text, value = override.key_or_group, str(override.input_line), override.value()
    names = value if isinstance(value, list) else [value]
    top, _, rest = group.partition("/")
    if top not in schema.groups() and top != "hydra":
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


def of_renamed(override: Override) -> str | None:
    """An override whose key had this name in an older version, or stands below one that had."""
    key, text = override.key_or_group, str(override.input_line)
    old = next((name for name in RENAMED if f"{key}.".startswith(f"{name}.")), None)
    return old and f"{text}: {old} is now called {RENAMED[old]}; {text.replace(old, RENAMED[old], 1)}"


def of_unknown(override: Override, known: Known, schema: Schema, chosen: Known) -> list[str]:
    """An override with keys that are not there: whose they are, or which name is nearest."""
    key, text = override.key_or_group, str(override.input_line)
    if override.is_delete():
        return [f"{text}: there is no {key} to leave out; leave that out"]
    strange = {name: as_override(leaf) for name, leaf in leaves(override).items() if not has(known, name)}
    strange |= {key: typed(override)} if key in strange else {}
    return [f"{name}={value}: {_meant(name, value, known, schema, chosen)}" for name, value in strange.items()]


def of_shape(override: Override, known: Known, free: bool) -> str | None:
    """An override that adds what is there, removes what has to stay, or takes a node for a leaf.

    In a `free` node, which was given another `_target_`, keys may come and go.
    """
    key, text, value = override.key_or_group, str(override.input_line), override.value()
    parts = [name for name in known if name.startswith(f"{key}.")]
    if is_limit(override):
        return f"{text}: the limits are not for the command line; leave it out"
    if override.is_delete():
        fix = f"{key}={as_override(known[key])}" if key in known else "leave it as it is"
        return None if free else f"{text}: {key} cannot be left out; {fix}"
    if override.is_add() and has(known, key) and not isinstance(value, (dict, list)):
        return f"{text}: {key} is there already; {text.lstrip('+')}"
    if free and not has(known, key) and not override.is_add() and not override.is_force_add():
        return f"{text}: the key is new here; +{text}"
    if parts and not isinstance(value, dict):
        return f"{text}: {key} has parts; {parts[0]}={as_override(known[parts[0]])} sets one"
    return None


def has(known: Known, key: str) -> bool:
    """Whether `key` is a leaf, a node, or a place in a list."""
    if key in known or key.partition(".")[0] == "limits":
        return True
    node, _, place = key.rpartition(".")
    members = known.get(node)
    inside = isinstance(members, list) and place.isdecimal() and int(place) < len(members)
    return inside or any(name.startswith(f"{key}.") for name in known)


def is_limit(override: Override) -> bool:
    """Whether the override would change what is allowed."""
    return override.key_or_group.partition(".")[0] == "limits"


def of_composition(error: BaseException, overrides: list[Override]) -> str:
    """An error of Hydra's composition, led by the override that it names."""
    words = " ".join(f"{error} {error.__cause__ or ''}".split())
    text = re.split(r" See https| Config search path| To append to| full_key", words)[0]
    named = [str(override.input_line) for override in overrides if override.key_or_group in text]
    return f"{named[0] if named else 'conf'}: {text}"


def _misspelt(override: Override, schema: Schema, names: list[Any]) -> tuple[str, str | None]:
    group, choices = override.key_or_group, schema.choices(override.key_or_group)
    near = [name if name in choices else alike(str(name), choices) for name in names]
    shown = choices if len(choices) <= MOST_CHOICES else [*closest(str(names[0]), choices), "..."]
    one_of = f"{group} is one of {', '.join(shown)}" if choices else f"{group} has no choices yet"
    right = None
    if near and all(near):
        right = f"{group}={as_override(near if isinstance(override.value(), list) else near[0])}"
    return f"{override.input_line}: {one_of}; {right or _usual(group, schema)}", right


def _usual(group: str, schema: Schema) -> str:
    now, choices = schema.defaults.get(group), schema.choices(group)
    first = now[0] if isinstance(now, list) and now else now
    return f"{group}={first or (choices[0] if choices else '<name>')}"


def _meant(key: str, value: str, known: Known, schema: Schema, chosen: Known) -> str:
    owners = [owner for owner in schema.owners_of(key) if owner.split("=") not in map(list, chosen.items())]
    if owners:
        group = owners[0].partition("=")[0]
        lacks = f"{group}={chosen[group]} has no {key}" if chosen.get(group) else f"nothing chosen here has {key}"
        return f"{lacks}, it belongs to {' and '.join(owners)}; add {owners[0]}"
    nearest, parent = schema.nearest(key, known), key.rpartition(".")[0]
    if known.get(parent) == {}:
        return f"{parent} takes functions by name, each with its _target_; '+{key}={{_target_: package.function}}'"
    if nearest is not None:
        owner = "" if has(known, nearest) else "".join(f" {owner}" for owner in schema.owners.get(nearest, [])[:1])
        return f"there is no {key}, the nearest name is {nearest}; {nearest}={value}{owner}"
    siblings = [child.rpartition(".")[2] for child in known if parent and child.rpartition(".")[0] == parent]
    if siblings:
        return f"there is no {key}, {parent} has {', '.join(siblings)}; leave it out"
    return f"there is no {key}; --cfg job lists what there is"

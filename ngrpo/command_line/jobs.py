"""One job of a command line: what its overrides compose to, and every problem with them, one line each.

It does not know how the job will be run.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ngrpo import settings
from ngrpo.command_line.overrides import apply, leaves, listed, typed
from ngrpo.command_line.schema import Schema, alike
from ngrpo.settings import machine
from ngrpo.settings.composed import flat
from ngrpo.settings.limits import as_override

# Hydra builds its launcher, sweeper and callbacks from the configuration too, and logging any `()` or `class`.
OF_HYDRA = re.compile(
    r"hydra\._internal\.core_plugins\.basic_(launcher\.BasicLauncher|sweeper\.BasicSweeper)"
    r"|hydra\.experimental\.callbacks\.[A-Z]\w+Callback"
    r"|hydra_plugins(\.[a-z]\w*)+\.[A-Z]\w+(Launcher|Sweeper)"
    r"|(optuna\.samplers|colorlog|logging(\.handlers)?)\.[A-Z]\w+"
)
COMPOSING = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError)


@dataclass
class Job:
    """A list of overrides without sweeps, told apart: choices of groups, values of keys, settings of Hydra."""

    schema: Schema
    overrides: list[Override]
    several: bool = False
    problems: list[str] = field(default_factory=list)

    def __post_init__(self):
        of_hydra = [str(o.input_line) for o in self.overrides if o.is_hydra_override()]
        own = [o for o in self.overrides if not o.is_hydra_override()]
        choices = [o for o in own if self.schema.is_group(o.key_or_group) and not isinstance(o.value(), dict)]
        self.values = [o for o in own if o not in choices]
        self.composed = [*of_hydra, *(text for choice in choices for text in self._choice(choice))]

    @cached_property
    def reference(self) -> DictConfig | None:
        """What the YAML files say under these choices; None, and a problem, where they do not compose."""
        try:
            return self.schema.reference(self.composed)
        except COMPOSING as error:
            self.problems.append(self.explain(error))
            return None

    def explain(self, error: BaseException) -> str:
        """An error of composition in one line, led by the override that it names."""
        words = " ".join(f"{error} {error.__cause__ or ''}".split())
        text = re.split(r" See https| Config search path| To append to| full_key", words)[0]
        named = [str(o.input_line) for o in self.overrides if o.key_or_group in text]
        return f"{named[0] if named else 'conf'}: {text}"

    def unknown(self) -> list[Override]:
        """Value overrides with a key that these choices do not have."""
        return [o for o in self.values if not all(_has(self._known, key) for key in leaves(o)) and not self._is_free(o)]

    def unknown_problem(self, override: Override) -> list[str]:
        """The lines for an override of `unknown`: whose key it is, or the nearest name."""
        if override.is_delete():
            return [f"{override.input_line}: there is no {override.key_or_group} to leave out; leave that out"]
        keys = [(key, as_override(leaf)) for key, leaf in leaves(override).items() if not _has(self._known, key)]
        if keys and keys[0][0] == override.key_or_group:
            keys = [(override.key_or_group, typed(override))]
        return [self._unknown_key(key, value) for key, value in keys]

    def check(self) -> tuple[list[str], list[str]]:
        """(problems, notes) of the values, after those of the shapes."""
        if self.reference is None:
            return [], []
        unknown = self.unknown()
        known = [o for o in self.values if o not in unknown]
        shapes = {id(o): self._shape(o) for o in known}
        # The value of one that merely has a wrong sign in front is looked at too.
        fitting = [o for o in known if not shapes[id(o)] or self._is_free(o) or o.is_add() and not _is_limit(o)]
        config, unfit = apply(self.reference, fitting)
        given = {o.key_or_group: typed(o) for o in self.overrides}
        given |= {key: as_override(leaf) for o in fitting for key, leaf in leaves(o).items() if key not in given}
        found = [line for lines in shapes.values() for line in lines] + unfit
        found += settings.problems(config, self.reference, given) + list(_of_hydra(config))
        found = found or _directory(config, self.several)
        return found, [] if found else settings.notes(config, given)

    @cached_property
    def _known(self) -> dict[str, Any]:
        return {} if self.reference is None else flat(self.reference)

    def _is_free(self, override: Override) -> bool:
        """Whether the node has been given another `_target_`, whose own signature then says what it takes."""
        node = override.key_or_group.rpartition(".")[0]
        targets = {key: leaf for o in self.values for key, leaf in leaves(o).items() if key.endswith("._target_")}
        within = [key.rpartition(".")[0] for key, leaf in targets.items() if leaf != self._known.get(key)]
        return node in within or override.key_or_group in within

    def _choice(self, override: Override) -> Iterator[str]:
        """The override to compose with, if any, after a problem has been noted; a misspelt choice becomes its nearest."""
        group, text, value = override.key_or_group, str(override.input_line), override.value()
        choices, now = self.schema.choices(group), self.schema.defaults.get(group)
        several = self.schema.takes_several(group)
        usual = now[0] if several and now else now
        default = f"{group}={usual or (choices[0] if choices else '<name>')}"
        names = value if isinstance(value, list) else [value]
        misspelt = [name for name in names if name not in choices]
        top, _, rest = group.partition("/")
        if top not in self.schema.groups() and top != "hydra":
            self.problems.append(f"{text}: there is no {top} here; leave it out")
        elif group not in self.schema.defaults and rest:
            self.problems.append(f"{text}: the group is {top}; {top}={rest}/{as_override(value)}")
        elif override.is_delete():
            self.problems.append(f"{text}: {group} cannot be left out; {default}")
        elif misspelt or not names:
            near = [name if name in choices else alike(str(name), choices) for name in names]
            one_of = f"{group} is one of {', '.join(choices)}" if choices else f"{group} has no choices yet"
            fix = (
                f"{group}={as_override(near if isinstance(value, list) else near[0])}"
                if names and all(near)
                else default
            )
            self.problems.append(f"{text}: {one_of}; {fix}")
            if fix != default:
                yield fix
        elif isinstance(value, list) and not several:
            self.problems.append(f"{text}: {group} is one choice, without brackets; {group}={names[0]}")
        elif override.package is not None or override.is_force_add() or override.is_add() and not several:
            self.problems.append(f"{text}: {group} is there already; {group}={as_override(value)}")
        else:
            yield text

    def _unknown_key(self, key: str, value: str) -> str:
        owners = [owner for owner in self.schema.owners.get(key, []) if owner not in self.composed]
        if owners:
            group = owners[0].partition("=")[0]
            now = None if self.reference is None else self.reference.hydra.runtime.choices.get(group)
            lacks = f"{group}={now} has no {key}" if now else f"nothing chosen here has {key}"
            return f"{key}={value}: {lacks}, it belongs to {' and '.join(owners)}; add {owners[0]}"
        nearest = self.schema.nearest(key, self._known)
        parent = key.rpartition(".")[0]
        siblings = [child for child in self._known if child.rpartition(".")[0] == parent]
        if nearest is None and parent and siblings:
            return f"{key}={value}: there is no {key}, {parent} has {', '.join(child.rpartition('.')[2] for child in siblings)}; leave it out"
        if nearest is None:
            return f"{key}={value}: there is no {key}; --cfg job lists what there is"
        owner = (
            ""
            if _has(self._known, nearest)
            else "".join(f" {owner}" for owner in self.schema.owners.get(nearest, [])[:1])
        )
        return f"{key}={value}: there is no {key}, the nearest name is {nearest}; {nearest}={value}{owner}"

    def _shape(self, override: Override) -> list[str]:
        """An override that adds what is there, removes what must stay, or takes a node for a leaf or a leaf for a node."""
        key, text, value = override.key_or_group, str(override.input_line), override.value()
        if _is_limit(override):
            return [f"{text}: the limits are not for the command line; leave it out"]
        parts = [name for name in self._known if name.startswith(f"{key}.")]
        free = self._is_free(override)
        if override.is_delete() and not free:
            fix = f"{key}={as_override(self._known[key])}" if key in self._known else "leave it as it is"
            return [f"{text}: {key} cannot be left out; {fix}"]
        if override.is_add() and _has(self._known, key) and not isinstance(value, (dict, list)):
            return [f"{text}: {key} is there already; {text.lstrip('+')}"]
        if free and not _has(self._known, key) and not (override.is_add() or override.is_force_add()):
            return [f"{text}: the key is new here; +{text}"]
        if parts and not isinstance(value, dict) and not override.is_delete():
            return [f"{text}: {key} has parts; {parts[0]}={as_override(self._known[parts[0]])} sets one"]
        if not parts and isinstance(value, dict) and isinstance(self._known.get(key), (str, int, float, list)):
            return [f"{text}: {key} is a single value; {key}={as_override(self._known[key])}"]
        return []


def jobs_of(schema: Schema, overrides: list[Override], several: bool) -> list[Job]:
    """Jobs that between them show every listed value: one changes at a time, where its key is known; the rest stay first."""
    values = [listed(override) for override in overrides]
    jobs = [Job(schema, [members[0] for members in values], several)]
    groups = [place for place, override in enumerate(overrides) if schema.is_group(override.key_or_group)]
    others = [place for place in range(len(overrides)) if place not in groups]
    for place in [*groups, *others]:
        homes = [job for job in jobs if job.overrides[place] not in job.unknown()]
        home = (homes or jobs)[0].overrides
        for value in values[place][1:]:
            jobs.append(Job(schema, [*home[:place], value, *home[place + 1 :]], several))
    return jobs


def _has(known: dict[str, Any], key: str) -> bool:
    """Whether `key` is a leaf, a node, or a place in a list."""
    if key in known or key.partition(".")[0] == "limits":
        return True
    node, _, place = key.rpartition(".")
    members = known.get(node)
    inside = isinstance(members, list) and place.isdecimal() and int(place) < len(members)
    return inside or any(name.startswith(f"{key}.") for name in known)


def _is_limit(override: Override) -> bool:
    return override.key_or_group.partition(".")[0] == "limits"


def _of_hydra(config: DictConfig) -> Iterator[str]:
    """Callables that Hydra itself would build, and that are none of its own."""
    tree = OmegaConf.to_container(config.hydra, resolve=False)
    for path, name, value in _names_of_callables(tree, "hydra"):
        if not isinstance(value, str) or not OF_HYDRA.fullmatch(value):
            yield f"{path}.{name}={value}: only launchers, sweepers, callbacks and loggers may be built here; leave it out"


def _names_of_callables(node: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    for name, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if name in ("_target_", "()", "class"):
            yield path, str(name), child
        yield from _names_of_callables(child, f"{path}.{name}")


def _directory(config: DictConfig, several: bool) -> list[str]:
    """Whether the directory that the job would make can be made."""
    key = "hydra.sweep.dir" if several else "hydra.run.dir"
    try:
        path = OmegaConf.select(config, key)
    except (OmegaConfBaseException, ValueError) as error:
        return [f"{key}: {' '.join(str(error).split())}; {key}=outputs/<name>"]
    refusal = machine.directory_refusal(str(path or ""))
    return [f"{key}={path or ''}: {refusal}; {key}=outputs/<name>"] if refusal else []

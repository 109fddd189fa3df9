"""One job of a command line: what its overrides compose to, and every problem with them.

It does not know how the job will be run.
"""

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ngrpo.cli import complaints, hydra_node, settings
from ngrpo.cli.keys import full_key
from ngrpo.cli.overrides import apply, leaves, listed, typed
from ngrpo.cli.schema import Schema
from ngrpo.cli.settings.composed import flat
from ngrpo.cli.settings.limits import as_override

COMPOSING = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError)


@dataclass
class Job:
    """A list of overrides without sweeps. `problems` has those of the choices, and of composing with them; `full` has the
    keys that were typed short, with the keys that they stand for under these choices."""

    schema: Schema
    overrides: list[Override]
    several: bool = False
    problems: list[str] = field(default_factory=list)
    full: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.composed = [str(o.input_line) for o in self.overrides if o.is_hydra_override()]
        self.values: list[Override] = []
        for override in (o for o in self.overrides if not o.is_hydra_override()):
            if isinstance(override.value(), dict) or not self.schema.is_group(override.key_or_group):
                self.values.append(override)
                continue
            problem, right = complaints.of_choice(override, self.schema)
            self.problems += [problem] if problem else []
            self.composed += [right] if right else []
        self.values = [self._in_full(override) for override in self.values]

    @cached_property
    def reference(self) -> DictConfig | None:
        """What the YAML files say under these choices; None, and a problem, where they do not compose."""
        try:
            return self.schema.reference(self.composed)
        except COMPOSING as error:
            self.problems.append(complaints.of_composition(error, self.overrides))
            return None

    def unknown(self) -> list[Override]:
        """Overrides with a key that these choices do not have."""
        strange = [o for o in self.values if not all(complaints.has(self._known, key) for key in leaves(o))]
        return [override for override in strange if not self._is_free(override)]

    def unknown_problem(self, override: Override) -> list[str]:
        """The lines for an override of `unknown`."""
        chosen = {} if self.reference is None else dict(self.reference.hydra.runtime.choices)
        return complaints.of_unknown(override, self._known, self.schema, chosen)

    def check(self) -> tuple[list[str], list[str]]:
        """(problems, notes) of the shapes and values of the known keys."""
        if self.reference is None:
            return [], []
        found: list[str] = []
        fitting: list[Override] = []
        unknown = self.unknown()
        for override in (o for o in self.values if o not in unknown):
            free = self._is_free(override)
            problem = complaints.of_shape(override, self._known, free)
            found += [problem] if problem else []
            # The value of one that merely has a wrong sign in front is looked at too.
            if not problem or free or (override.is_add() and not complaints.is_limit(override)):
                fitting.append(override)
        config, unfit = apply(self.reference, fitting)
        given = {self.full.get(o.key_or_group, o.key_or_group): typed(o) for o in self.overrides}
        given |= {key: as_override(leaf) for o in fitting for key, leaf in leaves(o).items() if key not in given}
        found += [*unfit, *settings.problems(config, self.reference, given), *hydra_node.callables(config)]
        found = found or hydra_node.directory(config, self.several)
        return self._as_typed(found), [] if found else self._as_typed(settings.notes(config, given))

    @cached_property
    def _known(self) -> dict[str, Any]:
        return {} if self.reference is None else flat(self.reference)

    def _in_full(self, override: Override) -> Override:
        """The override with the key that its own stands for; its text stays as it was typed."""
        key = override.key_or_group
        full = key if isinstance(override.value(), dict) else full_key(key, self._known)
        if full == key:
            return override
        if any(other.key_or_group == full for other in self.overrides):
            self.problems.append(f"{override.input_line}: {full} is given as well; keep one of the two")
        self.full[key] = full
        return replace(override, key_or_group=full)

    def _as_typed(self, lines: list[str]) -> list[str]:
        for key, full in self.full.items():
            lines = [re.sub(rf"(?<![\w.]){re.escape(full)}(?![\w.])", key, line) for line in lines]
        return lines

    def _is_free(self, override: Override) -> bool:
        """Whether the node has been given another `_target_`, whose own signature then says what it takes."""
        targets = {key: leaf for o in self.values for key, leaf in leaves(o).items() if key.endswith("._target_")}
        nodes = [key.rpartition(".")[0] for key, leaf in targets.items() if leaf != self._known.get(key)]
        return override.key_or_group in nodes or override.key_or_group.rpartition(".")[0] in nodes


def jobs_of(schema: Schema, overrides: list[Override], several: bool) -> list[Job]:
    """Jobs that between them show every listed value: one changes at a time, where its key is known."""
    values = [listed(override) for override in overrides]
    jobs = [Job(schema, [members[0] for members in values], several)]
    groups = [place for place, override in enumerate(overrides) if schema.is_group(override.key_or_group)]
    others = [place for place in range(len(overrides)) if place not in groups]
    for place in (place for place in [*groups, *others] if len(values[place]) > 1):
        homes = [job for job in jobs if job.overrides[place] not in job.unknown()]
        home = (homes or jobs)[0].overrides
        jobs += [Job(schema, [*home[:place], value, *home[place + 1 :]], several) for value in values[place][1:]]
    return jobs

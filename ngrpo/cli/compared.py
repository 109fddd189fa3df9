"""Several strategies in one job: `strategies=[a,b]` of diagnose.py, checked as a sweep over them would be.

A knob goes to every strategy that has it, as in a multirun.
"""

from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from ngrpo.cli.composition import Job, Schema, read_one
from ngrpo.cli.rules import as_override

KEY, GROUP, BASELINE = "strategies", "exploration", "token_sampling"
RULE = f"{KEY} is a list of different ones with {BASELINE} among them, because the others are paired with it"


def as_sweep(schema: Schema, overrides: list[Override]) -> tuple[list[Override], list[str]]:
    """(overrides with `exploration=a,b` in the place of `strategies=[a,b]`, problems); as they were where there are none."""
    names: Any = schema.reference().get(KEY)
    if names is None:
        return overrides, []
    asking = [o for o in overrides if o.key_or_group == GROUP or o.key_or_group.partition(".")[0] == KEY]
    rest, problems = [override for override in overrides if override not in asking], []
    for override in asking:
        value = override.value()
        asked = list(dict.fromkeys((BASELINE, *map(str, value if isinstance(value, list) else [value]))))
        if override.key_or_group == KEY and isinstance(value, list) and BASELINE in value and len(asked) == len(value):
            names = value
        else:
            problems.append(f"{override.input_line}: {RULE}; '{KEY}={as_override(asked)}'")
    return [read_one(f"{GROUP}={','.join(map(str, names))}"), *rest], problems


def compositions(names: list[str]) -> dict[str, DictConfig]:
    """Strategy -> what the job that is running composes to with it; the arguments have been checked by `as_sweep`."""
    job = HydraConfig.get()
    places = [token for token in job.overrides.hydra if token.startswith("hydra.searchpath=")]
    overrides = [o for o in map(read_one, [*places, *job.overrides.task]) if o.key_or_group != KEY]
    schema = Schema(str(job.job.config_name))
    return {name: composed(schema, name, overrides) for name in names}


def composed(schema: Schema, name: str, overrides: list[Override]) -> DictConfig:
    """What overrides that were checked compose to with a strategy, without those whose key it lacks."""
    job = Job(schema, [read_one(f"{GROUP}={name}"), *overrides])
    unknown = job.unknown()
    return job.composed(override for override in job.values if override not in unknown)

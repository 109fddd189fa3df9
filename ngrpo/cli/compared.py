"""Strategies that one job compares: `strategies=[a,b]` of diagnose.py, checked as a sweep over them would be.

A knob goes to every strategy of the list that has it, as in a multirun.
"""

from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from ngrpo.cli.composition import Job, Schema
from ngrpo.cli.overrides import apply, parse, read_one, typed
from ngrpo.cli.rules import as_override

KEY, GROUP, BASELINE = "strategies", "exploration", "token_sampling"


def as_sweep(schema: Schema, overrides: list[Override]) -> tuple[list[Override], list[str]]:
    """(overrides with `exploration=a,b` in the place of `strategies=[a,b]`, problems); as they were where there are none."""
    usual = schema.primary.get(KEY)
    if usual is None:
        return overrides, []
    given = next((override for override in overrides if override.key_or_group == KEY), None)
    names: Any = list(usual) if given is None else given.value()
    problems = []
    if given and not (isinstance(names, list) and BASELINE in names and len({*map(str, names)}) == len(names)):
        others = dict.fromkeys(map(str, names if isinstance(names, list) else [names]))
        rule = (
            f"must be a list of different strategies with {BASELINE} among them, because the others are paired with it"
        )
        problems.append(f"{KEY}={typed(given)}: {rule}; '{KEY}={as_override(list({BASELINE: None, **others}))}'")
    for override in overrides:
        if override.key_or_group == GROUP:
            fix = f"'{KEY}={as_override(list(dict.fromkeys((BASELINE, str(override.value())))))}'"
            problems.append(f"{override.input_line}: several strategies are compared here; {fix}")
    rest = [override for override in overrides if override.key_or_group not in (KEY, GROUP)]
    sweep = list(usual) if problems else names
    return [read_one(f"{GROUP}={','.join(map(str, sweep))}"), *rest], problems


def added(schema: Schema, overrides: list[Override], tokens: list[str]) -> list[str]:
    """The arguments with a `+` before those that only some of the strategies know, so that Hydra takes them."""
    if schema.primary.get(KEY) is None:
        return tokens
    lines = {str(override.input_line) for override in Job(schema, overrides).unknown()}
    return [f"+{token}" if token in lines and not token.startswith("+") else token for token in tokens]


def compositions(names: list[str]) -> dict[str, DictConfig]:
    """Strategy -> what the job that is running composes to with it; the arguments have been checked by `as_sweep`."""
    job = HydraConfig.get()
    places = [token for token in job.overrides.hydra if token.startswith("hydra.searchpath=")]
    schema = Schema(GlobalHydra.instance().config_loader(), str(job.job.config_name), places)
    overrides = [o for o in parse([*places, *job.overrides.task], schema.loader)[0] if o.key_or_group != KEY]
    return {name: composed(schema, name, overrides) for name in names}


def composed(schema: Schema, name: str, overrides: list[Override]) -> DictConfig:
    """What overrides that were checked compose to with a strategy, without those whose key it lacks."""
    job = Job(schema, [read_one(f"{GROUP}={name}"), *overrides])
    unknown = job.unknown()
    return apply(job.reference, [override for override in job.values if override not in unknown])[0]

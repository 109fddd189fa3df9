"""Strategies that one job compares: `strategies=[a,b]` of diagnose.py, checked as a sweep over them would be.

A knob goes to every strategy of the list that has it, as in a multirun. It does not know what the strategies do.
"""

from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from ngrpo.cli.jobs import Job
from ngrpo.cli.overrides import apply, parse, read_one, typed
from ngrpo.cli.schema import Schema
from ngrpo.cli.settings.limits import as_override

KEY, GROUP, BASELINE = "strategies", "exploration", "token_sampling"


def as_sweep(schema: Schema, overrides: list[Override]) -> tuple[list[Override], list[str]]:
    """(overrides with `exploration=a,b` in the place of `strategies=[a,b]`, problems); as they were where there are none."""
    usual = schema.primary.get(KEY)
    if usual is None:
        return overrides, []
    given = next((override for override in overrides if override.key_or_group == KEY), None)
    names: Any = list(usual) if given is None else given.value()
    refusal = _refusal(names)
    problems = [f"{KEY}={typed(given)}: {refusal}"] if given and refusal else []
    for override in overrides:
        if override.key_or_group == GROUP:
            fix = f"'{KEY}=[{','.join(dict.fromkeys((BASELINE, str(override.value()))))}]'"
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
    loader = GlobalHydra.instance().config_loader()
    schema, found = Schema(loader, str(job.job.config_name), places), {}
    overrides = [o for o in parse([*places, *job.overrides.task], loader)[0] if o.key_or_group != KEY]
    for name in names:
        found[name] = composed(Job(schema, [read_one(f"{GROUP}={name}"), *overrides]))
    return found


def composed(job: Job) -> DictConfig:
    """What a job composes to without the overrides that its strategy lacks."""
    assert job.reference is not None, job.problems
    unknown = job.unknown()
    return apply(job.reference, [override for override in job.values if override not in unknown])[0]


def _refusal(names: Any) -> str | None:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        first = str(names) if isinstance(names, str) else "neighbor_mix"
        return f"must be a list of strategies; '{KEY}=[{','.join(dict.fromkeys((BASELINE, first)))}]'"
    if BASELINE not in names:
        fix = as_override([BASELINE, *names])
        return f"must have {BASELINE} among them, because the others are paired with it; '{KEY}={fix}'"
    if len(set(names)) < len(names):
        return f"names a strategy twice; '{KEY}={as_override(list(dict.fromkeys(names)))}'"
    return None

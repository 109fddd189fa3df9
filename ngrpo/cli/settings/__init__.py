"""Whether a composed configuration can be run at all, told from YAML, json and tokenizer files in under a second.

Every problem is one line: `key=value: what is allowed, because ...; the override that fixes it`. It does not know how
the configuration came about: the command line is another room.
"""

import math
from collections.abc import Mapping

from omegaconf import DictConfig

from ngrpo import targets
from ngrpo.cli.settings import fit, values
from ngrpo.cli.settings.composed import Composed
from ngrpo.targets import SettingsError

__all__ = ["SettingsError", "check", "notes", "problems", "targets"]

ONE_BY_ONE = (values.unresolved, values.limits, values.kinds, values.targets_allowed, fit.model, fit.run, fit.packages)
TOGETHER = (fit.parallel, fit.sizes, fit.neighbors, fit.tasks)  # these compare values that are fine one by one


def check(config: DictConfig) -> None:
    """For the jobs of a multirun, which compose their own configuration.

    Raises:
        SettingsError: with all problems, one line each.
    """
    found = problems(config)
    if found:
        raise SettingsError(found)


def problems(
    config: DictConfig, reference: DictConfig | None = None, given: Mapping[str, str] | None = None
) -> list[str]:
    """All problems of `config`, one line each and without a leading `error:`; an empty list if it can be run.

    Args:
        config: composed, with its `limits` node.
        reference: what the YAML files alone compose to under the same choices; lines offer its values.
        given: dotted key -> value as typed, so that a line repeats what its reader wrote.
    """
    seen = Composed(config, reference, given or {})
    return list(dict.fromkeys(line for examine in (*ONE_BY_ONE, *TOGETHER) for line in examine(seen)))


def notes(config: DictConfig, given: Mapping[str, str] | None = None) -> list[str]:
    """What can be run but hardly means what it says, one line each. The configuration must have no problems."""
    seen, found = Composed(config, None, given or {}), []
    updates = [seen.values.get(f"algorithm.{name}") for name in ("inner_epochs", "mini_batches")]
    clips = [key for key in seen.given if key.startswith("algorithm.loss.") and "clip" in key]
    if clips and updates == [1, 1]:
        found.append(f"{seen.shown(clips[0])} acts only after a first update; algorithm.mini_batches=2 makes a second")
    warmup, schedule = seen.values.get("optimizer.warmup_steps"), seen.values.get("optimizer.schedule")
    if warmup and schedule == "constant":
        found.append(f"{seen.shown('optimizer.warmup_steps')} has no effect under optimizer.schedule=constant")
    elif warmup and warmup >= seen.values.get("steps", math.inf):
        found.append(f"{seen.shown('optimizer.warmup_steps')}: {seen.shown('steps')} end before the warm-up does")
    return found

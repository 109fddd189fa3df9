"""The configurations below conf/ in tests: read once per process, with nothing of Hydra's global state left behind."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from places import CONF

from ngrpo import composed
from ngrpo.cli import command, conf, fit, launchers
from ngrpo.cli.command import VERSION_BASE
from ngrpo.cli.composition import Schema
from ngrpo.cli.identity import register_resolvers

SCHEMAS: dict[tuple[str, ...], Schema] = {}


def schema(name: str) -> Schema:
    """Stands in for `Schema`: the YAML files stay the same, so that all examinations of a process share what they read."""
    return SCHEMAS.setdefault((name, *map(str, conf.PLACES)), Schema(name))


@contextmanager
def command_line() -> Iterator[None]:
    """Before and after it Hydra is not initialized, which is what `examine` finds in a process of its own."""
    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "Schema", schema)
        yield
    GlobalHydra.instance().clear()


@contextmanager
def composing() -> Iterator[None]:
    """Hydra initialized with conf/, as within one examination."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base=VERSION_BASE):
        launchers.files_prevail(CONF / "hydra" / "launcher")
        yield


def forget_tasks() -> None:
    """Tasks that were built from stand-ins for public data sets are no tasks for another test."""
    composed._task.cache_clear()
    fit._prompts.cache_clear()

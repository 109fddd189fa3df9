"""The command line of the entry points: mistakes are reported before anything heavy is imported, then Hydra runs the job."""

import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ngrpo import __version__
from ngrpo.cli import checks, launchers
from ngrpo.cli.command import VERSION_BASE, each_strategy, examine, is_multirun
from ngrpo.cli.compared import compositions
from ngrpo.cli.conf import CONF
from ngrpo.cli.identity import Request, register_resolvers, training_request
from ngrpo.rundir.files import no_room
from ngrpo.rundir.interrupts import INTERRUPTS
from ngrpo.targets import SettingsError

__all__ = ["Request", "compositions", "each_strategy", "prepare", "run", "training_request"]


def prepare(config_name: str) -> None:
    """Checks `sys.argv` and rewrites it for Hydra, before `run`.

    Problems go to stderr, one line each, and end the process with status 2. `--version` ends it with status 0;
    `--help`, `--cfg` and `--info` are left to Hydra.
    """
    if "--version" in sys.argv[1:]:
        print(f"ngrpo {__version__}")
        sys.exit(0)
    examined = examine(config_name, sys.argv[1:])
    if examined.problems:
        _end(examined.problems, 2)
    for note in examined.notes:
        print(f"note: {note}", file=sys.stderr)
    if is_multirun(sys.argv):  # a search imports Optuna, which nothing else has to wait for
        from hydra_plugins.ngrpo_sweeper._search import SearchSweeper

        Plugins.instance().register(SearchSweeper)
    sys.argv[1:] = examined.argv


def run(main: Callable[[DictConfig], Any], config_name: str = "config") -> None:
    """Lets Hydra run `main`, decorated by `hydra.main` or not, once or for each job of a multirun.

    Mistakes in the settings end the process with status 2 and a line each; another error of ours with status 1 and one
    line, or with its `exit_code`; an interrupt with 130. Anything else is a bug and keeps its traceback, status 1. The
    other jobs of a multirun go on.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints part of a traceback and exits by itself
    job, failures = inspect.unwrap(main), []

    @functools.wraps(job)
    def guarded(config: DictConfig) -> Any:
        several = HydraConfig.get().mode == RunMode.MULTIRUN
        register_resolvers(HydraConfig.get().overrides.hydra)  # a launcher's own process has had no `prepare`
        INTERRUPTS.check()  # a process of a launcher gets its next job even so
        try:
            if launchers.elsewhere(HydraConfig.instance().cfg):
                os.chdir(HydraConfig.get().runtime.cwd)  # a path means what it meant where it was typed
            if several:  # a single job has been checked by `prepare`
                checks.check(config)
            return job(config)
        except Exception as error:
            if not (several and isinstance(error, SettingsError)):  # a cell of a grid without a meaning is no failure
                failures.append(error)
            _tell(error, f"{HydraConfig.get().job.override_dirname}: " if several else "")
            if several:  # its sweeper has to know; alone, Hydra would only repeat the overrides
                raise
            return None

    try:
        hydra.main(config_path=str(CONF), config_name=config_name, version_base=VERSION_BASE)(guarded)()
    except KeyboardInterrupt:
        _end(["interrupted"], 130)
    except Exception as error:  # noqa: BLE001 - a sweep that does not compose, or a failure reported above
        if error not in failures:
            failures.append(_as_settings(error))
            _tell(failures[-1])
    if failures:
        wrong = all(isinstance(error, SettingsError) for error in failures)
        sys.exit(getattr(failures[-1], "exit_code", 2 if wrong else 1))


def _as_settings(error: Exception) -> Exception:
    """What Hydra cannot compose is a mistake in the settings."""
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return error
    words = " ".join(f"{error} {error.__cause__ or ''}".split())
    return SettingsError([words.partition(" full_key")[0].partition(" To append to")[0]])


def _tell(error: Exception, where: str = "") -> None:
    error = no_room(error) or error  # which any library may have met, and reports in its own words
    if isinstance(error, SettingsError):
        lines = error.lines
    elif type(error).__module__.partition(".")[0] == "ngrpo" or getattr(error, "one_line", False):
        lines = [" ".join(str(error).split())]
    elif isinstance(error, OSError) and error.filename is not None and error.strerror:  # of the machine, and no bug
        lines = [f"{error.filename}: {error.strerror}"]
    else:
        traceback.print_exception(error)
        return
    print("\n".join(f"error: {where}{line}" for line in lines), file=sys.stderr)


def _end(lines: list[str], status: int) -> NoReturn:
    print("\n".join(f"error: {line}" for line in lines), file=sys.stderr)
    sys.exit(status)

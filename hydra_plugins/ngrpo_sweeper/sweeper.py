"""The sweeper of this project: a grid of jobs that the same command repeats, resumes and extends.

It knows Hydra and the status in a run directory's run.json.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from multiprocessing import active_children
from pathlib import Path
from types import MappingProxyType

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from ngrpo.cli import matched
from ngrpo.cli.composition import flat, full_key, has, in_full, same_key
from ngrpo.cli.launchers import elsewhere
from ngrpo.rundir.files import write_json
from ngrpo.rundir.interrupts import INTERRUPTS
from ngrpo.rundir.progress import left
from ngrpo.rundir.schema import Unreadable, check_files, read_run

NONE: Mapping[str, str] = MappingProxyType({})
WAIT, LONGEST_WAIT = 5.0, 60.0  # seconds between two looks at a run that another process holds
STATUSES = ("finished", "finished before", "refused", "failed")  # what can become of a job


@dataclass
class SweeperConf:
    """What Hydra knows of a sweeper of this project."""

    _target_: str = "hydra_plugins.ngrpo_sweeper.sweeper.GridSweeper"
    params: dict[str, str] = field(default_factory=dict)  # key -> listed values, for presets; what is typed prevails
    besides: list[dict[str, str]] = field(
        default_factory=list
    )  # grids that run as well: what they have other than `params`


SEARCH = SweeperConf("hydra_plugins.ngrpo_sweeper._search.SearchSweeper")
ConfigStore.instance().store(group="hydra/sweeper", name="ngrpo", node=SweeperConf, provider="ngrpo")
ConfigStore.instance().store(group="hydra/sweeper", name="ngrpo_search", node=SEARCH, provider="ngrpo")


@dataclass
class Job:
    """One cell of the grid: its overrides, its directory, and what became of it."""

    overrides: list[str]
    directory: Path
    status: str = "waiting"  # or one of STATUSES
    error: str | None = None


class SweepFailed(RuntimeError):
    """Some runs of a sweep failed; each has told its reason."""

    one_line = True  # told without a traceback


class GridSweeper(Sweeper):
    """Every combination of the listed values, once for each run directory.

    A knob that the choices of a job lack is left out of it, jobs that come to the same directory are one job, finished
    runs are skipped and unfinished ones resume by themselves. A failing run is recorded and does not stop the others.
    """

    config: DictConfig
    launcher: Launcher
    hydra_context: HydraContext

    def __init__(self, params: Mapping[str, str] | None = None, besides: Sequence[Mapping[str, str]] | None = None):
        self.params, self.besides = dict(params or {}), list(besides or ())
        # What choices compose to stays the same, and takes a tenth of a second to find out.
        self._keys: dict[tuple[str, ...], dict[str, object]] = {}
        self._groups: dict[str, bool] = {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        if elsewhere(config):  # in processes that begin in another directory
            place = os.path.abspath(str(config.hydra.sweep.dir)).replace("'", r"\'")
            with read_write(config), open_dict(config):
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{place}'")
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Runs what is missing of the grid; raises SweepFailed at its end if a run failed or all were refused."""
        grids = [self.with_presets(arguments, other) for other in ({}, *self.besides)]
        arguments, jobs = grids[0], self.jobs(*grids)
        folders = dict.fromkeys(job.directory.parent for job in jobs)
        records = [folder / "sweeps" / f"{digest(arguments)}.json" for folder in folders]
        waiting = [job for job in jobs if job.status == "waiting"]
        returns: list[JobReturn] = []
        print(f"{len(jobs)} runs, {len(jobs) - len(waiting)} of them finished before")
        _write(records, arguments, jobs)
        began = time.monotonic()
        for batch in self._batches(waiting):
            rest = left(time.monotonic() - began, waiting.index(batch[0]), len(waiting))
            for job in batch:
                print(f"[{jobs.index(job) + 1}/{len(jobs)}] {job.directory}{f'  {rest}' * bool(rest)}", flush=True)
            found = self.launch([job.overrides for job in batch], jobs.index(batch[0]))
            for job, result in zip(batch, found, strict=True):
                error = error_of(result)
                refused = type(error).__name__ == "SettingsError"
                job.status = "finished" if error is None else "refused" if refused else "failed"
                job.error = one_line(error) if error else None
            returns += found
            _write(records, arguments, jobs)
        counts = Counter(job.status for job in jobs)
        failed, refused = counts["failed"], counts["refused"]
        print(", ".join(f"{counts[status]} {status}" for status in STATUSES))
        if failed or refused == len(jobs):
            raise SweepFailed(f"{failed} of {len(jobs)} runs failed, {refused} were refused: {records[0]}")
        return returns

    def with_presets(self, arguments: Sequence[str], other: Mapping[str, str] = NONE) -> list[str]:
        """What was typed, after the listed values of `params` and of what another grid has, that it leaves as they are."""
        typed = {argument.partition("=")[0] for argument in arguments}
        presets = {**self.params, **other}
        left = {key: values for key, values in presets.items() if not any(same_key(key, given) for given in typed)}
        return [*(f"{key}={values}" for key, values in left.items()), *arguments]

    def jobs(self, *grids: list[str]) -> list[Job]:
        """The cells of the grids, each in the order of its values, without duplicates."""
        read = [self.parsed(arguments) for arguments in grids]
        for override in (override for overrides in read for override in overrides):
            if override.is_interval_sweep():
                raise HydraException(
                    f"{override.input_line}: a grid needs listed values, as in {override.key_or_group}=0.1,0.2"
                )
        cells = [self.parsed(cell) for overrides in read for cell in _cells(overrides)]
        fits = [self.fits(cell) for cell in cells]
        known_somewhere = {o.key_or_group for cell, fit in zip(cells, fits, strict=True) for o in cell if fit(o)}
        found: dict[Path, Job] = {}
        for cell, fit in zip(cells, fits, strict=True):
            texts = [fit(o) or (str(o.input_line) if o.key_or_group not in known_somewhere else None) for o in cell]
            kept = [text for text in texts if text]
            directory = self.directory(kept)
            status = "finished before" if _status(directory) == "finished" else "waiting"
            found.setdefault(directory, Job(kept, directory, status))
        return list(found.values())

    def launch(self, jobs: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        """What became of jobs, numbered from `first`; a run that another process is at work on is waited for.

        Raises Interrupted instead where a signal has come.
        """
        results, pause = self._launched(jobs, first), WAIT
        while held := [at for at, result in enumerate(results) if type(result._return_value).__name__ == "RunLocked"]:
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_WAIT)  # each look may be a job of SLURM
            for at, result in zip(held, self._launched([jobs[at] for at in held], first), strict=True):
                results[at] = result
        return results

    def _launched(self, jobs: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        INTERRUPTS.check()
        # In this process the job itself looks for signals; others here are told of them, and save, and are waited for. Ray
        # ends its own when this one does, and the jobs of SLURM are left to it.
        with nullcontext() if self.alone or elsewhere(self.config) else INTERRUPTS.polled(_stop_workers):
            try:
                results = [*self.launcher.launch(list(map(list, jobs)), initial_job_idx=first)]
            except Exception as error:
                INTERRUPTS.check()  # after a signal the launcher has lost its processes
                if self.alone or isinstance(error, (HydraException, OmegaConfBaseException)):
                    raise
                name = type(self.launcher).__name__  # of its own making: errors of jobs are among the results
                raise SweepFailed(f"{name}: {one_line(error)}; the same command continues") from error
        if not self.alone:
            INTERRUPTS.check()  # this process heard which signal it was
        return results

    @property
    def alone(self) -> bool:
        """Whether jobs run in this process."""
        return type(self.launcher).__name__ == "BasicLauncher"

    def _batches(self, jobs: Sequence[Job]) -> list[Sequence[Job]]:
        """One job at a time where they run in this process anyway; else all of them, for the launcher to place."""
        if self.alone:
            return [[job] for job in jobs]
        return [jobs] if jobs else []

    def is_group(self, key: str) -> bool:
        """Whether `key` is a group of the configuration, or Hydra's own, and not a value of ours."""
        if key not in self._groups:
            options = self.hydra_context.config_loader.get_group_options(key, results_filter=None)
            self._groups[key] = key.startswith(("hydra.", "hydra/")) or bool(options)
        return self._groups[key]

    def parsed(self, texts: Sequence[str]) -> list[Override]:
        """Texts as Hydra reads them, in order."""
        return OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(list(texts))

    def applicable(self, texts: Sequence[str]) -> list[str]:
        """The overrides without those whose key the choices among them lack."""
        overrides = self.parsed(texts)
        return [text for text in map(self.fits(overrides), overrides) if text]

    def fits(self, choices: Sequence[Override]) -> Callable[[Override], str | None]:
        """What says of an override how it reads under these choices, its key in full; None where they lack it."""
        chosen = [o for o in choices if self.is_group(o.key_or_group) or o.key_or_group == matched.KEY]
        lines = tuple(str(o.input_line) for o in chosen)
        if lines not in self._keys:
            composed = self.compose([str(o.input_line) for o in chosen if o.key_or_group != matched.KEY])
            match = next((o.value() for o in chosen if o.key_or_group == matched.KEY), None)
            self._keys[lines] = flat(composed) | matched.settings(composed, match)
        keys = self._keys[lines]

        def text(override: Override) -> str | None:
            key, typed = override.key_or_group, str(override.input_line)
            is_new = override.is_delete() or override.is_add() or override.is_force_add()
            if is_new or self.is_group(key) or has(keys, key):
                return typed
            full = full_key(key, keys)
            return in_full(typed, key, full) if full in keys else None

        return text

    def compose(self, overrides: list[str]) -> DictConfig:
        """The configuration of one job."""
        return self.hydra_context.config_loader.load_sweep_config(self.config, overrides)

    def directory(self, overrides: list[str]) -> Path:
        """The run directory of one job."""
        composed = self.compose(overrides)
        return Path(str(composed.hydra.sweep.dir), str(composed.hydra.sweep.subdir))


def _stop_workers() -> None:
    for process in active_children():
        process.terminate()  # to one that has heard a signal it says nothing new


def _cells(overrides: list[Override]) -> list[list[str]]:
    deleted = [str(override.input_line) for override in overrides if override.is_delete()]
    rest = [override for override in overrides if not override.is_delete()]
    return [[*cell, *deleted] for cell in BasicSweeper.split_arguments(rest, None)[0]]


def _status(directory: Path) -> str | None:
    try:
        record = read_run(directory)
        if record.status == "finished":
            check_files(record, "metrics.csv", "results.json")  # the job itself says what was changed
        return record.status
    except Unreadable:
        return None


def error_of(result: JobReturn) -> BaseException | None:
    """What a job failed of, None where it did not. Raises an interrupt, which ends the sweep and not the run alone."""
    if result.status == JobStatus.COMPLETED:
        return None
    error = result._return_value
    if getattr(error, "exit_code", 0) > 128:  # a signal, for which the shell has such codes
        raise error
    return error


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def digest(arguments: Sequence[str]) -> str:
    """Eight hex digits, the same whatever the order."""
    return blake2b("\x1f".join(sorted(arguments)).encode(), digest_size=4).hexdigest()


def _write(paths: Sequence[Path], arguments: Sequence[str], jobs: Sequence[Job]) -> None:
    """The same record in every directory that has runs of the sweep, so that none of its jobs is missing there."""
    for path in paths:
        write_json({"arguments": arguments, "runs": [asdict(job) for job in jobs]}, path)

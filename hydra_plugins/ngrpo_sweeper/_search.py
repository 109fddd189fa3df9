"""A search with Optuna: trials are asked for, run through Hydra's launcher, and told what they reached.

It reads the files of a run directory. Hydra imports every module of a plug-in when a program starts, but for those whose
names begin with an underscore: Optuna is imported for searches alone.
"""

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import Trial, TrialState

from hydra_plugins.ngrpo_sweeper import _study as studies
from hydra_plugins.ngrpo_sweeper._study import StudyError, Worker
from hydra_plugins.ngrpo_sweeper._trials import LiveTrials, summarize
from hydra_plugins.ngrpo_sweeper.sweeper import GridSweeper, SweepFailed, digest, error_of, one_line
from ngrpo.evaluation.passk import k_grid
from ngrpo.rundir.files import no_room, read_csv
from ngrpo.rundir.schema import read_results

TABLES = ("metrics", "timings")
FURTHEST = 100_000  # RL steps of one seed on the axis of a trial's reports, on which seeds follow one another


class SearchSweeper(GridSweeper):
    """Searches the swept overrides; `sweep.n_trials` is the number of trials to reach, by however many calls or workers.

    A knob is suggested only in trials whose choices have it. Every trial runs once for each of `sweep.seeds`; its value is
    their mean, their spread is kept with it.
    """

    settings: dict[str, Any]
    fixed: list[str]
    spaces: dict[str, BaseDistribution]
    place: str  # of the study's storage
    shown: LiveTrials

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Works until the study has its trials; raises SweepFailed where every trial failed."""
        self._read(self.with_presets(arguments))
        settings = self.settings
        identity = {key: settings[key] for key in ("objectives", "directions", "seeds")}
        identity |= {"fixed": sorted(self.fixed), "space": {key: repr(space) for key, space in self.spaces.items()}}
        name = digest([json.dumps(identity, sort_keys=True)])
        some = self.applicable([*self.fixed, *(f"{key}={_first(space)}" for key, space in self.spaces.items())])
        self._check_objectives(some)
        folder = self.directory(some).parent / "sweeps" / name
        drawing = (settings["sampler"], settings["sampler_seed"], self.spaces)
        studies.sampler(*drawing)  # a wrong one is told before anything is written
        storage = studies.open_storage(settings["storage"], folder, settings["directions"])
        self.place = settings["storage"] or str((folder / studies.JOURNAL).absolute())
        study = studies.open_study(storage, name, identity, settings["directions"])
        worker = Worker(study, settings["n_trials"], settings["grace_seconds"])
        study.sampler = studies.sampler(*drawing, worker.place)
        print(f"study {name}: {len(study.trials)} trials so far, {settings['n_trials']} to reach; {folder}", flush=True)
        try:
            with LiveTrials(study, settings["objectives"], settings["n_trials"]) as self.shown:
                self._work(worker)
        except StorageInternalError as error:
            words = f"{studies.shown(self.place)}: {one_line(error)[:200]}"
            raise SweepFailed(f"sweep.storage={words}; the same command continues") from error
        finally:
            worker.close()
        summarize(study, folder, settings["objectives"])
        return _conclude(study, folder)

    def _read(self, arguments: Sequence[str]) -> None:
        """Settings, fixed overrides and search spaces. Raises StudyError where there is nothing to search."""
        settings = OmegaConf.to_container(self.config.sweep, resolve=True)
        assert isinstance(settings, dict)
        self.settings = {str(key): value for key, value in settings.items()}
        self.settings["storage"] = studies.database(self.settings["storage"])
        overrides = [o for o in self.parsed(arguments) if not o.key_or_group.startswith("sweep.")]
        self.fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
        self.spaces = {o.key_or_group: studies.distribution(o) for o in overrides if o.is_sweep_override()}
        if not self.spaces:
            raise StudyError("sweep=optuna: nothing to search is listed; 'mix_rate=interval(0.02,0.4)'")
        if "seed" in self.spaces:
            raise StudyError("seed: is not searched but averaged over; sweep.seeds=[0,1,2]")

    def _work(self, worker: Worker) -> None:
        while True:
            worker.reclaim()
            claimed = (worker.claim() for _ in range(self.settings["trials_at_once"]))
            batch = [trial for trial in claimed if trial is not None]
            if batch:
                self._run(worker, batch)
            elif worker.nameless():
                time.sleep(1)
            else:
                return

    def _run(self, worker: Worker, batch: Sequence[Trial]) -> None:
        """One launch: every trial of the batch under every seed."""
        seeds = self.settings["seeds"]
        chosen = [self._suggested(trial) for trial in batch]
        jobs = [
            [*overrides, f"seed={seed}", *self._as_trial(trial, place)]
            for trial, overrides in zip(batch, chosen, strict=True)
            for place, seed in enumerate(seeds)
        ]
        results = self.launch(jobs, batch[0].number)
        for place, trial in enumerate(batch):
            part = slice(place * len(seeds), (place + 1) * len(seeds))
            if any(_is_pruned(result) for result in results[part]):
                worker.finish(trial, TrialState.PRUNED)  # its last report counts for the sampler
                words = "pruned"
            elif isinstance(values := self._values(trial, results[part]), str):
                trial.set_user_attr("reason", values)  # a failure with a reason counts as one of the trials to reach
                worker.finish(trial, TrialState.FAIL)
                words = f"failed: {values}"
            else:
                worker.finish(trial, TrialState.COMPLETE, values)
                pairs = zip(self.settings["objectives"], values, strict=True)
                words = ", ".join(f"{name} {value:.4g}" for name, value in pairs)
            self.shown.report(trial, words)

    def _as_trial(self, trial: Trial, place: int) -> list[str]:
        """The override that lets the run of the seed at `place` report to its trial, where a pruner may stop it."""
        objectives = self.settings["objectives"]
        if self.settings["pruner"] == "none" or len(objectives) > 1 or objectives[0].partition("/")[0] in TABLES:
            return []
        origin = {"storage": self.place, "study": trial.study.study_name, "trial": trial._trial_id}
        origin |= {"objective": objectives[0], "pruner": self.settings["pruner"], "first": place * FURTHEST}
        return [f"sweep.trial='{json.dumps(origin)}'"]

    def _values(self, trial: Trial, results: Sequence[JobReturn]) -> list[float] | str:
        """The means over seeds, or the reason why there are none."""
        reached: list[list[float]] = []
        for result in results:
            if error := error_of(result):
                if no_room(error):  # not the trial's fault: it is queued again once there is room
                    raise error
                return one_line(error)
            try:
                directory = Path(OmegaConf.select(result.hydra_cfg, "hydra.runtime.output_dir"))  # pyright: ignore
                reached.append([objective(directory, name) for name in self.settings["objectives"]])
            except (ValueError, LookupError, OSError) as error:
                return one_line(error)
        columns = list(zip(*reached, strict=True))
        trial.set_user_attr("seeds", reached)
        if len(reached) > 1:
            trial.set_user_attr("spread", [statistics.pstdev(column) for column in columns])
        return [statistics.fmean(column) for column in columns]

    def _suggested(self, trial: Trial) -> list[str]:
        """Overrides of a trial: its choices first, then the knobs that these choices have."""

        def suggested(keys: Sequence[str]) -> list[str]:
            return [f"{key}={studies.suggest(trial, key, self.spaces[key])}" for key in keys]

        groups = [key for key in self.spaces if self.is_group(key)]
        chosen = [*self.fixed, *suggested(groups)]
        fit = self.fits(self.parsed(chosen))
        knobs = [key for key in self.spaces if key not in groups and fit(self.parsed([f"{key}=0"])[0])]
        return self.applicable([*chosen, *suggested(knobs)])

    def _check_objectives(self, overrides: list[str]) -> None:
        """Objectives name a benchmark that the runs have, or a table. Raises StudyError with those that there are."""
        composed = self.compose(overrides)
        n = composed.n
        estimates = [f"mean@{n}", *(f"pass@{k}" for k in k_grid(n))]
        known = [f"{benchmark}/{estimate}" for benchmark in composed.benchmark for estimate in estimates]
        for name in self.settings["objectives"]:
            if name not in known and name.partition("/")[0] not in TABLES:
                there = ", ".join([*known, "metrics/<column>", "timings/<column>"])
                raise StudyError(f"sweep.objectives=[{name}]: the runs log {there}; sweep.objectives=[{known[0]}]")


def _conclude(study: optuna.Study, folder: Path) -> list[Any]:
    trials = study.get_trials(deepcopy=False)
    states, failed = [trial.state for trial in trials], sum("reason" in trial.user_attrs for trial in trials)
    done, pruned = states.count(TrialState.COMPLETE), states.count(TrialState.PRUNED)
    elsewhere = f"{states.count(TrialState.RUNNING)} running elsewhere"
    print(f"{done} trials complete, {pruned} pruned, {failed} failed, {elsewhere}: {folder}")
    if not done and failed:
        raise SweepFailed(f"all {failed} trials failed: {folder}")
    return []


def objective(directory: Path, name: str) -> float:
    """One figure of a finished run: `<benchmark>/mean@n`, `<benchmark>/pass@k` after the last RL step, or the mean of a
    column of metrics.csv or timings.csv over the RL steps. Raises ValueError where it is not there or not finite."""
    group, _, rest = name.partition("/")
    if group in TABLES:
        rows = read_csv(directory / f"{group}.csv")
        if not rows or rest not in rows[0]:
            raise ValueError(f"{name} is not logged; {group}.csv has {', '.join(rows[0] if rows else ())}")
        value = statistics.fmean(float(row[rest]) for row in rows if row[rest])
    else:
        results = read_results(directory)
        if not results.get(group):
            raise ValueError(f"{name} is not there; results.json has {', '.join(results) or 'nothing'}")
        entry = results[group][max(results[group], key=int)]
        kind, _, k = rest.partition("@")
        value = float((entry["mean@n"] if kind == "mean" else entry["pass@k"][k])["value"])
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}")
    return value


def _is_pruned(result: JobReturn) -> bool:
    reached = result._return_value
    return result.status == JobStatus.COMPLETED and isinstance(reached, Mapping) and "pruned" in reached


def _first(space: Any) -> Any:
    return space.choices[0] if hasattr(space, "choices") else space.low

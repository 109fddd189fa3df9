"""The trials of a search as people see them: a table while they run; then sweep_summary.md, trials.csv and pictures.

It reads the study, so it shows what other workers do as well.
"""

import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from rich import box, get_console
from rich.live import Live
from rich.table import Table
from tabulate import tabulate

from ngrpo.rundir.files import write_atomically, write_csv
from ngrpo.rundir.progress import left

SHOWN = 12  # in the table: the newest trials, and the best one
BEST = 10  # trials in the summary
SECONDS = 2.0  # between two looks at the storage


class LiveTrials:
    """A context in which the table of trials stays at the bottom of the terminal; plain lines where there is none."""

    def __init__(self, study: optuna.Study, names: Sequence[str], total: int):
        self.study, self.names, self.total = study, names, total
        self.console = get_console()
        self._seen, self._looked = Table(), -SECONDS
        self._before, self._began = ended(study), time.monotonic()
        self.live = Live(get_renderable=self._table, console=self.console, refresh_per_second=1)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._looked = -SECONDS
        self.live.stop()

    def report(self, trial: Trial, words: str) -> None:
        """One trial has ended."""
        if not self.console.is_terminal:
            print(f"trial {trial.number}: {_params(trial.params)}: {words}; {self._rest()}", flush=True)
        self._looked = -SECONDS

    def _rest(self) -> str:
        """How many trials have ended, of all workers, and how long the others will take."""
        done = ended(self.study)
        rest = left(time.monotonic() - self._began, done - self._before, self.total - self._before)
        return f"{done} of {self.total} to reach{f', {rest}' * bool(rest)}"

    def _table(self) -> Table:
        if time.monotonic() > self._looked + SECONDS:  # the bars of runs within ask far more often
            self._seen, self._looked = table(self.study, self.names, self._rest()), time.monotonic()
        return self._seen


def ended(study: optuna.Study) -> int:
    """Trials that count towards those to reach."""
    known = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    return sum(trial.state != TrialState.FAIL or "reason" in trial.user_attrs for trial in known)


def table(study: optuna.Study, names: Sequence[str], reached: str) -> Table:
    """The newest trials with their parameters, state and objectives; the best of a single objective is marked.

    reached: how many of those to reach have ended, in words.
    """
    trials = study.get_trials(deepcopy=False)
    best = next((trial.number for trial in ranked(study)), None) if len(names) == 1 else None
    shown = [*(trial for trial in trials[: 1 - SHOWN] if trial.number == best), *trials[1 - SHOWN :]]
    counts = ", ".join(f"{sum(t.state == state for t in trials)} {state.name.lower()}" for state in TrialState)
    grid = Table(title=f"{counts}; {reached}", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("trial", "parameters", "state", *names, "spread", "seconds"):
        grid.add_column(heading, justify="left" if heading in ("parameters", "state") else "right")
    for trial in shown:
        values = [f"{value:.4g}" for value in trial.values or ()] or [_latest(trial), *("" for _ in names[1:])]
        cells = [str(trial.number), _params(trial.params), _state(trial), *values, _spread(trial), _seconds(trial)]
        grid.add_row(*cells, style="bold" if trial.number == best else None)
    return grid


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """The complete trials, best first; of several objectives those that no other beats in all."""
    if len(study.directions) > 1:
        return study.best_trials
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(complete, key=lambda trial: trial.values[0], reverse=study.direction == StudyDirection.MAXIMIZE)


def summarize(study: optuna.Study, folder: Path, names: Sequence[str]) -> None:
    """The files of the summary; only trials.csv where no trial is complete, pictures for a single objective only."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    keys = sorted({key for trial in trials for key in trial.params})
    rows = [
        {"number": trial.number, "state": trial.state.name, **{key: trial.params.get(key) for key in keys}}
        | dict(zip(names, trial.values or [None] * len(names), strict=True))
        | {"spread": " ".join(f"{value:.4g}" for value in trial.user_attrs.get("spread", []))}
        | {"seconds": trial.duration.total_seconds() if trial.duration else None}
        | {"reason": trial.user_attrs.get("reason")}
        for trial in trials
    ]
    write_csv(rows, folder / "trials.csv")
    complete = [trial.params for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        return
    alike = len({tuple(trial.values) for trial in trials if trial.state == TrialState.COMPLETE}) == 1
    values = {key: {params.get(key) for params in complete} for key in keys}
    # Of values that are all alike a surface shows rounding errors, and each knob would matter as much as any.
    varied = [] if alike else [key for key in keys if len(values[key]) > 1 and None not in values[key]]
    with warnings.catch_warnings(action="ignore"):  # all that is wanted of Optuna here is experimental, it says
        importances = _importances(study) if len(names) == 1 and len(complete) >= 4 and len(varied) > 1 else {}
        if len(names) == 1:
            _pictures(study, folder, names[0], list(importances or varied)[:2], importances)
    best = [
        [trial.number, *map(trial.params.get, keys), *(f"{value:.4g}" for value in trial.values), _spread(trial)]
        for trial in ranked(study)[:BEST]
    ]
    pruned = sum(trial.state == TrialState.PRUNED for trial in trials)
    parts = [f"# {len(complete)} trials complete, {pruned} pruned", f"Objectives: {', '.join(names)}."]
    parts += [tabulate(best, ["trial", *keys, *names, "spread over seeds"], "pipe", disable_numparse=True)]
    shares = ", ".join(f"{key} {value:.2f}" for key, value in importances.items())
    parts += [f"Importances (PED-ANOVA): {shares}."] if importances else []
    parts += ["The best of many noisy values is too good: confirm it on fresh seeds before believing it.\n"]
    write_atomically(folder / "sweep_summary.md", "\n\n".join(parts).encode())


def _importances(study: optuna.Study) -> dict[str, float]:
    try:
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except (ValueError, RuntimeError):  # values that are all alike
        return {}


def _pictures(
    study: optuna.Study, folder: Path, name: str, keys: Sequence[str], importances: Mapping[str, float]
) -> None:
    """history.png, surface.png where there are two keys, and importances.png where there are such."""
    import matplotlib

    matplotlib.use("Agg")
    from optuna.visualization import matplotlib as pictures

    drawn: dict[str, Any] = {"history": pictures.plot_optimization_history(study, target_name=name)}
    if len(keys) == 2:
        drawn["surface"] = pictures.plot_contour(study, list(keys), target_name=name)
    if importances:
        drawn["importances"] = pictures.plot_param_importances(study, PedAnovaImportanceEvaluator(), target_name=name)
    for file, axis in drawn.items():
        axis.figure.savefig(folder / f"{file}.png", dpi=110, bbox_inches="tight")


def _params(params: Mapping[str, Any]) -> str:
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in params.items()}
    return ", ".join(f"{key}={value}" for key, value in shown.items())


def _spread(trial: FrozenTrial) -> str:
    """Standard deviations over the seeds of a trial, one for each objective; nothing where it has one seed."""
    return ", ".join(f"{value:.2g}" for value in trial.user_attrs.get("spread", []))


def _state(trial: FrozenTrial) -> str:
    if trial.state == TrialState.FAIL:
        return f"failed: {trial.user_attrs.get('reason', 'its worker died or had no room for it')}"
    where = f" ({trial.user_attrs['host']} {trial.user_attrs['pid']})" if "pid" in trial.user_attrs else ""
    return trial.state.name.lower() + (where if trial.state == TrialState.RUNNING else "")


def _latest(trial: FrozenTrial) -> str:
    """The last report of a trial that has not reached its end."""
    reports = trial.intermediate_values
    return f"({reports[max(reports)]:.4g})" if reports else ""


def _seconds(trial: FrozenTrial) -> str:
    """How long a trial took, or has taken so far."""
    end = trial.datetime_complete or datetime.now()
    return f"{(end - trial.datetime_start).total_seconds():.0f}" if trial.datetime_start else ""

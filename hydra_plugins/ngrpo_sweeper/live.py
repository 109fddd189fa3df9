"""The trials of a search on the terminal, while they run; plain lines where there is no terminal.

It reads the study, so it shows what other workers do as well; it does not know how trials are run.
"""

import time
from collections.abc import Sequence
from typing import Any, Self

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich import box, get_console
from rich.live import Live
from rich.table import Table

SHOWN = 12  # the newest trials, and the best one
SECONDS = 2.0  # between two looks at the storage


class Trials:
    """A context in which the table of trials stays at the bottom of the terminal."""

    def __init__(self, study: optuna.Study, names: Sequence[str], total: int):
        self.study, self.names, self.total = study, list(names), total
        self.console = get_console()
        self._seen, self._looked = Table(), -SECONDS
        self.live = Live(get_renderable=self._table, console=self.console, refresh_per_second=1)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._looked = -SECONDS
        self.live.stop()

    def tell(self, trial: Any, words: str) -> None:
        """One trial has ended."""
        if not self.console.is_terminal:
            print(f"trial {trial.number}: {_params(trial)}: {words}", flush=True)
        self._looked = -SECONDS

    def _table(self) -> Table:
        if time.monotonic() > self._looked + SECONDS:
            self._seen = table(self.study, self.names, self.total)
            self._looked = time.monotonic()
        return self._seen


def table(study: optuna.Study, names: Sequence[str], total: int) -> Table:
    """The newest trials with their parameters, state and objectives; the best of a single objective is marked."""
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    sign = 1 if len(names) > 1 or study.direction == optuna.study.StudyDirection.MAXIMIZE else -1
    best = max(complete, key=lambda trial: sign * trial.values[0]) if complete and len(names) == 1 else None
    shown = trials[-SHOWN:] if best is None or best in trials[-SHOWN:] else [best, *trials[1 - SHOWN :]]
    counts = ", ".join(f"{sum(t.state == state for t in trials)} {state.name.lower()}" for state in TrialState)
    grid = Table(title=f"{counts}; {total} to reach", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("trial", "parameters", "state", *names, "spread", "seconds"):
        grid.add_column(heading, justify="left" if heading in ("parameters", "state") else "right")
    for trial in shown:
        values = (
            [f"{value:.4g}" for value in trial.values] if trial.values else [_latest(trial)] + [""] * len(names[1:])
        )
        spread = ", ".join(f"{value:.2g}" for value in trial.user_attrs.get("spread", []))
        cells = [str(trial.number), _params(trial), _state(trial), *values, spread, _seconds(trial)]
        grid.add_row(*cells, style="bold" if trial is best else None)
    return grid


def _params(trial: Any) -> str:
    return ", ".join(f"{key}={_short(value)}" for key, value in trial.params.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
    if trial.duration:
        return f"{trial.duration.total_seconds():.0f}"
    return f"{time.time() - trial.datetime_start.timestamp():.0f}" if trial.datetime_start else ""

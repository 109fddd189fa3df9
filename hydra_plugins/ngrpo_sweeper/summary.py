"""What a search leaves for people: sweep_summary.md, trials.csv, and pictures of its course and its surface.

It does not know how trials were run.
"""

import csv
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

SHOWN = 10  # best trials in the summary


def write(study: optuna.Study, folder: Path, settings: Mapping[str, Any]) -> None:
    """All files of the summary; only trials.csv where no trial is complete, pictures for a single objective only."""
    names = list(settings["objectives"])
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    keys = sorted({key for trial in trials for key in trial.params})
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "trials.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "state", *keys, *names, "spread", "seconds", "reason"])
        writer.writerows(_row(trial, keys, names) for trial in trials)
    if not complete:
        return
    importances = _importances(study, complete) if len(names) == 1 else {}
    (folder / "sweep_summary.md").write_text(_markdown(study, complete, keys, names, importances), "utf-8")
    if len(names) == 1:
        _pictures(study, complete, folder, names[0], importances)


def _row(trial: FrozenTrial, keys: Sequence[str], names: Sequence[str]) -> list[Any]:
    values = trial.values or [""] * len(names)
    seconds = trial.duration.total_seconds() if trial.duration else ""
    spread = " ".join(f"{value:.4g}" for value in trial.user_attrs.get("spread", []))
    params = [trial.params.get(key, "") for key in keys]
    return [trial.number, trial.state.name, *params, *values, spread, seconds, trial.user_attrs.get("reason", "")]


def _importances(study: optuna.Study, complete: Sequence[FrozenTrial]) -> dict[str, float]:
    if len(complete) < 4 or len(complete[0].params) < 2:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optuna.importance.get_param_importances(
                study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
            )
    except (ValueError, RuntimeError):  # parameters that only some trials have, or values that are all alike
        return {}


def _markdown(
    study: optuna.Study,
    complete: Sequence[FrozenTrial],
    keys: Sequence[str],
    names: Sequence[str],
    importances: Mapping[str, float],
) -> str:
    best = study.best_trials if len(names) > 1 else _ordered(study, complete)
    pruned = sum(trial.state == TrialState.PRUNED for trial in study.get_trials(deepcopy=False))
    lines = [f"# {len(complete)} trials complete, {pruned} pruned", "", f"Objectives: {', '.join(names)}.", ""]
    lines += [
        "| trial | " + " | ".join([*keys, *names]) + " | spread over seeds |",
        "|" + "---|" * (len(keys) + len(names) + 2),
    ]
    for trial in best[:SHOWN]:
        values = [f"{value:.4g}" for value in trial.values or []]
        spread = ", ".join(f"{value:.2g}" for value in trial.user_attrs.get("spread", []))
        cells = [str(trial.number), *(str(trial.params.get(key, "")) for key in keys), *values, spread]
        lines.append("| " + " | ".join(cells) + " |")
    if importances:
        lines += [
            "",
            "Importances (PED-ANOVA): " + ", ".join(f"{key} {value:.2f}" for key, value in importances.items()) + ".",
        ]
    lines += ["", "The best of many noisy values is too good: confirm it on fresh seeds before believing it.", ""]
    return "\n".join(lines)


def _ordered(study: optuna.Study, complete: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    down = study.direction == optuna.study.StudyDirection.MAXIMIZE
    return sorted(complete, key=lambda trial: trial.values[0], reverse=down)


def _pictures(
    study: optuna.Study, complete: Sequence[FrozenTrial], folder: Path, name: str, importances: Mapping[str, float]
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawing, axis = plt.subplots(figsize=(6, 3.5))
    values = [trial.values[0] for trial in complete]
    better = max if study.direction == optuna.study.StudyDirection.MAXIMIZE else min
    axis.plot([trial.number for trial in complete], values, "o", color="#1f4e79", alpha=0.6, label="trial")
    so_far = [better(values[: i + 1]) for i in range(len(values))]
    axis.step([trial.number for trial in complete], so_far, where="post", color="#b03a2e", label="best so far")
    axis.set(xlabel="trial", ylabel=name)
    axis.legend()
    _save(plt, drawing, folder / "history.png")
    numeric = [
        key for key in complete[0].params if all(_number(trial.params.get(key)) is not None for trial in complete)
    ]
    if len(numeric) >= 2:
        drawing, axis = plt.subplots(figsize=(5.5, 4))
        x, y = ([float(trial.params[key]) for trial in complete] for key in numeric[:2])
        points = axis.scatter(x, y, c=values, cmap="viridis", s=60, edgecolor="white")
        axis.set(xlabel=numeric[0], ylabel=numeric[1])
        drawing.colorbar(points, label=name)
        _save(plt, drawing, folder / "surface.png")
    if importances:
        drawing, axis = plt.subplots(figsize=(5, 0.6 + 0.5 * len(importances)))
        axis.barh(list(importances)[::-1], list(importances.values())[::-1], color="#1f4e79")
        axis.set(xlabel="importance (PED-ANOVA)")
        _save(plt, drawing, folder / "importances.png")


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _save(plt: Any, drawing: Any, path: Path) -> None:
    drawing.tight_layout()
    drawing.savefig(path, dpi=110)
    plt.close(drawing)

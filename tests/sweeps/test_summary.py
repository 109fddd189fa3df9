"""What a search says of its trials: pictures and importances where they mean something."""

from collections.abc import Callable

import optuna
import pytest

from hydra_plugins.ngrpo_sweeper._trials import summarize


@pytest.mark.parametrize(("value", "differs"), [(lambda trial: trial.params["a"], True), (lambda trial: 0.375, False)])
def test_values_that_are_all_alike_have_no_surface_and_no_importances(
    tmp_path, value: Callable[[optuna.Trial], float], differs: bool
):
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("a", 0, 1)
        trial.suggest_int("b", 1, 3)
        return value(trial)

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), direction="maximize")
    study.optimize(objective, n_trials=8)
    summarize(study, tmp_path, ["bench/mean@4"])
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == ({"history.png", "surface.png", "importances.png"} if differs else {"history.png"})
    assert ("Importances" in (tmp_path / "sweep_summary.md").read_text("utf-8")) == differs

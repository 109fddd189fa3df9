"""A run that is a trial of a search: what it reports after each evaluation, and whether it should go on.

It does not know how trials are chosen.
"""

import json
from collections.abc import Mapping
from typing import Any


class Pruned(Exception):
    """The search has seen enough of this trial; what was computed stays, and the same command would go on."""


class Judge:
    """Reports the first objective after every evaluation but the last.

    `text` is what the sweeper puts into `sweep.trial`: JSON with storage (a journal file or a database URL), study, trial
    id, objective, pruner and `first`, the place of the run's RL step 0 on the trial's own axis.
    """

    def __init__(self, text: str):
        import optuna
        from optuna.storages import JournalStorage, RDBStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        given = json.loads(text)
        place = given["storage"]
        storage = RDBStorage(place) if "://" in place else JournalStorage(JournalFileBackend(place))
        pruners = {
            "median": lambda: optuna.pruners.MedianPruner(),
            "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(),
            "hyperband": lambda: optuna.pruners.HyperbandPruner(),
        }
        study = optuna.load_study(study_name=given["study"], storage=storage, pruner=pruners[given["pruner"]]())
        self.trial = optuna.trial.Trial(study, given["trial"])
        self.objective, self.first = given["objective"], given["first"]

    def __call__(self, step: int, results: Mapping[str, Mapping[str, Any]]) -> None:
        """Raises Pruned where the trial should stop; `results` maps benchmarks to entries of results.json."""
        benchmark, _, estimate = self.objective.partition("/")
        kind, _, k = estimate.partition("@")
        entry = results[benchmark]
        self.trial.report(
            float((entry["mean@n"] if kind == "mean" else entry["pass@k"][k])["value"]), self.first + step
        )
        if self.trial.should_prune():
            raise Pruned(f"pruned after RL step {step}")

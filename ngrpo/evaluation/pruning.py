"""A run that is a trial of a search: what it reports after each evaluation, and whether it should go on."""

import json
from pathlib import Path

from ngrpo.evaluation.passk import pass_at_k
from ngrpo.evaluation.table import solved
from ngrpo.rundir.schema import eval_samples

PRUNERS = {"median": "MedianPruner", "halving": "SuccessiveHalvingPruner", "hyperband": "HyperbandPruner",
           "wilcoxon": "WilcoxonPruner"}  # fmt: skip


class Pruned(Exception):
    """The search has seen enough of this trial; what was computed stays, and the same command would go on."""


class PruningReporter:
    """Reports the first objective after every evaluation but the last.

    `text` is what the sweeper puts into `sweep.trial`: JSON with storage (a journal file or a database URL), study, trial
    id, objective, pruner and `first`, the place of the run's RL step 0 on the trial's own axis.
    """

    def __init__(self, text: str):
        import optuna
        from optuna.storages import RDBStorage

        from ngrpo.evaluation.journal import open_journal

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        settings = json.loads(text)
        place = settings["storage"]
        storage = RDBStorage(place, engine_kwargs={"pool_pre_ping": True}) if "://" in place else open_journal(place)
        pruner = getattr(optuna.pruners, PRUNERS[settings["pruner"]])()
        study = optuna.load_study(study_name=settings["study"], storage=storage, pruner=pruner)
        self.trial = optuna.trial.Trial(study, settings["trial"])
        self.objective, self.first = settings["objective"], settings["first"]
        self.by_problem = settings["pruner"] == "wilcoxon"

    def __call__(self, step: int, directory: Path) -> None:
        """Reports the samples of RL step `step` in a run directory. Raises Pruned where the trial should stop after it."""
        benchmark, _, estimate = self.objective.partition("/")
        kind, _, k = estimate.partition("@")
        table = solved(eval_samples(directory, benchmark, step))
        n, correct = table.shape[1], table.sum(axis=1)
        values = correct / n if kind == "mean" else pass_at_k(n, correct, int(k))
        place, mean = self.first + step, float(values.mean())
        if not self.by_problem:
            self.trial.report(mean, place)
            poor = self.trial.should_prune()
        else:  # trials are compared problem by problem, each at a place of its own; samplers read the last one, the mean
            first = place * (len(values) + 1)
            for problem, value in enumerate(values):
                self.trial.report(float(value), first + problem)
            poor = self.trial.should_prune()
            self.trial.report(mean, first + len(values))
        if poor:
            raise Pruned(f"pruned after RL step {step}")

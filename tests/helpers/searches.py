"""Searches in processes of their own, over a job that takes no time and has an optimum; MACHINE names the host they are on."""

import warm

SEARCHED = """
import json, math, os, socket, sys, time
if os.environ.get("MACHINE"):
    socket.gethostname = lambda: os.environ["MACHINE"]
from pathlib import Path
from ngrpo.rundir import interrupts
interrupts.begin()
import numpy as np
from hydra.core.hydra_config import HydraConfig
from ngrpo import cli
class Broken(RuntimeError):
    one_line = True
class RunLocked(Broken): pass
def main(config):
    path = Path(HydraConfig.get().runtime.output_dir)
    rate, k = config.get("mix_rate") or 0.0, config.get("k") or 1
    with open("ran.txt", "a") as file:
        file.write(f"{path.name}\\n")
    if os.environ.get("LOCKS"):
        try:
            os.mkdir(path / "held")
        except FileExistsError:
            raise RunLocked("in use") from None
    time.sleep(float(os.environ.get("NAP", "0")))
    if rate > float(os.environ.get("BREAKS", "9")): raise Broken("the run broke")
    if os.environ.get("FULL"): raise OSError(28, "No space left on device", "a.csv")
    if os.environ.get("REPORTS"):
        from ngrpo.evaluation import pruning
        report, counts = pruning.PruningReporter(config.sweep.trial), np.round(32 * rate * np.arange(1, 9) / 4)
        pruning.solved = lambda samples: np.arange(32) < counts[:, None]
        try:
            for step in (10, 20):
                report(step, path)
        except pruning.Pruned as stop:
            return {"pruned": str(stop)}
    value = math.nan if os.environ.get("NAN") and k == 2 else 1 - (rate - 0.2) ** 2 - 0.01 * abs(k - 3) + 0.001 * config.seed
    estimates = {"mean@n": {"value": value}, "pass@k": {"8": {"value": value}}}
    (path / "results.json").write_text(json.dumps({"story_math_val": {str(config.steps): estimates}}))
    if os.environ.get("LOCKS"): os.rmdir(path / "held")
    (path / "timings.csv").write_text("step,tokens_per_second\\n1,10\\n2,30\\n")
cli.prepare("config")
cli.run(main)
"""
SPACE = ["sweep=optuna", "exploration=neighbor_mix", "mix_rate=interval(0.02,0.4)", "k=choice(1,2,3,4)"]


def start_search(folder, *arguments, **environment) -> warm.Started:
    return warm.Started(SEARCHED, ("-m", *arguments), folder, environment)


def search(folder, *arguments, **environment):
    process = start_search(folder, *arguments, **environment)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def study(folder):
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    (path,) = folder.glob("outputs/*/sweeps/*/journal.log")
    storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.load_study(study_name=path.parent.name, storage=storage), path


def states(folder) -> list[str]:
    return sorted(trial.state.name for trial in study(folder)[0].trials)

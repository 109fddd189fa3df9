"""Trains the bundled model by methods of conf/experiment/method and adds a row for each to methods/.

python -m experiments.learning_curves.run [<method> ...] [--runs <directory>]

Without names: all that have a preset and no row yet. A run that was stopped goes on where it was.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from ngrpo.evaluation import passk
from ngrpo.evaluation.table import solved
from ngrpo.rundir.files import read_csv, write_atomically, write_csv
from ngrpo.rundir.schema import eval_samples, read_run

ROOT, HERE = Path(__file__).resolve().parents[2], Path(__file__).parent / "methods"
PRESETS = ROOT / "conf" / "experiment" / "method"
METHODS = (
    *("max_rl", "f_grpo", "ucpo", "rl_zvp", "boundary_gate", "lope", "rep_exp"),
    *("rollout_dropout", "param_noise", "entropy_temperature"),
)
PLAIN, BENCHMARK, STEPS = "grpo", "story_math", 30
SETTINGS = (f"steps={STEPS}", "prompts_per_step=4", f"benchmark={BENCHMARK}", "evaluation.before=false",
            "trainer.threads=1")  # fmt: skip
ENDS = 5  # steps whose mean reward is shown, at either end


def main(argv: Sequence[str]) -> None:
    """Runs what is missing and writes every table anew."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help=f"of {', '.join(METHODS)}; {PLAIN} is what they are beside")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "learning_curves")
    given = parser.parse_args(argv)
    rows: dict[str, Mapping[str, Any]] = {row["method"]: row for row in read_csv(HERE / "results.csv")}
    there = [name for name in METHODS if (PRESETS / f"{name}.yaml").exists()]
    names = given.names or [name for name in (PLAIN, *there) if name not in rows]
    call("evaluate.py", "model=tiny", f"benchmark={BENCHMARK}", f"hydra.run.dir={given.runs.absolute() / 'untrained'}")
    for presets in ([], [f"method/{name}" for name in names if name != PLAIN]):  # one process for all methods
        if presets or PLAIN in names:
            chosen = [f"experiment={','.join(presets)}"] if presets else []
            call("train.py", "-m", *chosen, *SETTINGS, "seed=0", f"hydra.sweep.dir={given.runs.absolute()}")
    curves = {name: [row for row in read_csv(HERE / "curves.csv") if row["method"] == name] for name in rows}
    for name in names:
        (run,) = (given.runs / "outputs" / ("story_math" if name == PLAIN else f"method-{name}")).glob("*-s0-*")
        rows[name] = row_of(name, run, given.runs / "untrained")
        kept = ("step", "reward", "entropy", "grad_norm", "advantage_size")
        curves[name] = [{"method": name, **{key: row[key] for key in kept}} for row in read_csv(run / "metrics.csv")]
    ordered = [name for name in (PLAIN, *METHODS) if name in rows]
    write_csv([rows[name] for name in ordered], HERE / "results.csv")
    write_csv([row for name in ordered for row in curves[name]], HERE / "curves.csv")
    write_atomically(HERE / "table.md", table([rows[name] for name in ordered]).encode())
    picture(curves)


def call(script: str, *overrides: str) -> None:
    """The command, told and run to its end."""
    print(" ".join(["python", script, *overrides]), flush=True)
    subprocess.run([sys.executable, str(ROOT / script), *overrides], check=True, cwd=ROOT)


def row_of(name: str, run: Path, base: Path) -> dict[str, object]:
    """Figures of a run; the change is paired by problem, its interval holds for other problems and these checkpoints."""
    rewards = [float(row["reward"]) for row in read_csv(run / "metrics.csv")]
    seconds = sum(float(row["seconds"]) for row in read_csv(run / "timings.csv"))
    samples = [solved(eval_samples(*place)) for place in ((base, BENCHMARK, 0), (run, BENCHMARK, STEPS))]
    before, after = (100 * correct.mean(axis=1) for correct in samples)
    low, high = passk.paired_interval(before, after, top=100)
    figures = {"reward_first": sum(rewards[:ENDS]) / ENDS, "reward_last": sum(rewards[-ENDS:]) / ENDS}
    figures |= {"before": before.mean(), "after": after.mean(), "low": low, "high": high, "seconds": seconds}
    content = read_run(run).content
    rounded = {key: round(float(value), 2 if key.startswith("reward") else 1) for key, value in figures.items()}
    return {"method": name, "n": samples[1].shape[1], **rounded, "commit": str(content["git_commit"])[:7]}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    n = rows[0]["n"]
    lines = [
        f"| method | reward of the rollouts | mean@{n} before | after | change | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"`{row['method']}`", f"{float(row['reward_first']):.2f} → {float(row['reward_last']):.2f}"]
        change, bounds = float(row["after"]) - float(row["before"]), [float(row[name]) for name in ("low", "high")]
        cells += [row["before"], row["after"], f"{change:+.1f} [{bounds[0]:+.1f}, {bounds[1]:+.1f}]", row["seconds"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def picture(curves: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
    """Reward over RL steps."""
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, rows in curves.items():
        own = [(int(row["step"]), float(row["reward"])) for row in rows]
        axes.plot(*zip(*own, strict=True), label=name, linewidth=1)
    axes.set(xlabel="RL step", ylabel="reward of the rollouts")
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(HERE / "curves.png", dpi=80, bbox_inches="tight")


if __name__ == "__main__":
    main(sys.argv[1:])

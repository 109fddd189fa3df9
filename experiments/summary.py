"""The table and the figure of a study: runs in one directory, compared with an evaluation of the base model.

python experiments/summary.py outputs/learning_curves --base outputs/evaluate/<run> --out experiments/learning_curves
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from scipy import stats

from ngrpo.evaluation import passk
from ngrpo.rundir.schema import read_run

matplotlib.use("Agg")
import matplotlib.pyplot as plt

IDENTITY = ["name", "exploration", "algorithm", "seed"]
CURVES = ["step", "reward", "all_correct", "all_wrong", "entropy", "distinct", "length", "loss", "grad_norm"]
ENDS = 5  # RL steps that are averaged at the beginning and at the end of a curve


def load(root: Path) -> list[dict]:
    """Every finished run below `root`: its identity, curves and solve rates per benchmark and problem."""
    runs = []
    for place in sorted(root.glob("*/run.json")):
        record = read_run(place.parent)
        if record.status != "finished":
            print(f"left out: {place.parent} is {record.status}")
            continue
        exploration, algorithm, *_ = place.parent.name.rsplit("-", 3)
        solved = {path.stem.rpartition("-")[0]: rates(path) for path in place.parent.glob("samples/eval/*.parquet")}
        metrics = pd.read_csv(place.parent / "metrics.csv")
        runs.append(
            {"exploration": exploration, "algorithm": algorithm, "seed": record.seed, "metrics": metrics}
            | {"solved": solved}
        )
    return runs


def rates(path: Path) -> pd.DataFrame:
    """Per problem: correct answers and samples."""
    frame = pd.read_parquet(path, columns=["problem_id", "outcome"])
    return frame.assign(c=frame["outcome"] == "correct").groupby("problem_id")["c"].agg(["sum", "count"])


def mean_and_change(runs: list[dict], base: dict[int, dict], benchmark: str) -> str:
    """mean@n over problems and seeds, and its change from the base with a 95 % interval over problems."""
    after, before = [], []
    for run in runs:
        new = run["solved"][benchmark]
        old = base.get(run["seed"], next(iter(base.values())))[benchmark].loc[new.index]
        after.append(new["sum"] / new["count"])
        before.append(old["sum"] / old["count"])
    new, old = (pd.concat(part, axis=1).mean(axis=1).to_numpy() for part in (after, before))
    low, high = passk.paired_interval(old, new)
    return f"{100 * new.mean():.1f} | {100 * (new - old).mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def pass_at(runs: list[dict], benchmark: str, k: int) -> str:
    values = [
        passk.pass_at_k(int(r["count"].iloc[0]), r["sum"].to_numpy(), k).mean()
        for r in (run["solved"][benchmark] for run in runs)
    ]
    return f"{100 * np.mean(values):.1f}"


def ends(runs: list[dict], name: str) -> str:
    first = np.mean([run["metrics"][name].head(ENDS).mean() for run in runs])
    last = np.mean([run["metrics"][name].tail(ENDS).mean() for run in runs])
    return f"{first:.2f} → {last:.2f}"


def seed_means(runs: list[dict], benchmark: str) -> np.ndarray:
    return np.array(
        [100 * (run["solved"][benchmark]["sum"] / run["solved"][benchmark]["count"]).mean() for run in runs]
    )


def welch(runs: list[dict], other: list[dict], benchmark: str) -> str:
    """Difference of seed means with Welch's 95 % interval, degrees of freedom and p."""
    test = stats.ttest_ind(seed_means(runs, benchmark), seed_means(other, benchmark), equal_var=False)
    low, high = test.confidence_interval(0.95)
    gap = seed_means(runs, benchmark).mean() - seed_means(other, benchmark).mean()
    return f"{gap:+.1f} [{low:+.1f}, {high:+.1f}], df {test.df:.1f}, p {test.pvalue:.2g}"


def table(arms: dict[str, list[dict]], base: dict[int, dict], benchmarks: list[str]) -> str:
    heads = ["method", "reward", "all wrong", "entropy", "distinct"]
    heads += [part for name in benchmarks for part in (f"{name} mean@32", "change", "pass@8")]
    lines = [" | ".join(heads), "|".join(["---"] * len(heads))]
    for name, runs in arms.items():
        cells = [f"`{name}`", *(ends(runs, metric) for metric in ("reward", "all_wrong", "entropy", "distinct"))]
        for benchmark in benchmarks:
            cells += [mean_and_change(runs, base, benchmark), pass_at(runs, benchmark, 8)]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def figure(arms: dict[str, list[dict]], path: Path) -> None:
    """Reward per RL step, a mean over three steps; several seeds as a mean with its range."""
    columns = min(4, len(arms))
    lines = -(-len(arms) // columns)
    size = {"figsize": (3 * columns, 1.2 + 2 * lines), "sharex": True, "sharey": True, "squeeze": False}
    drawing, axes = plt.subplots(lines, columns, **size)
    for axis in axes.flat[len(arms) :]:
        axis.axis("off")
    for axis, (name, runs) in zip(axes.flat, arms.items(), strict=False):
        curves = pd.concat([run["metrics"].set_index("step")["reward"].rolling(3, 1).mean() for run in runs], axis=1)
        axis.plot(curves.index, curves.mean(axis=1), color="#1f4e79")
        axis.fill_between(curves.index, curves.min(axis=1), curves.max(axis=1), color="#1f4e79", alpha=0.2)
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
    drawing.supxlabel("RL step")
    drawing.supylabel("reward of the training rollouts")
    drawing.tight_layout()
    drawing.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="+", help="directories with runs; <name>=<directory> names what is in it")
    parser.add_argument(
        "--base", type=Path, nargs="+", required=True, help="evaluations of the base model, one per seed"
    )
    parser.add_argument("--baseline", help="the method that the others are compared with; the first one unless given")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    named = [root.rpartition("=")[::2] for root in options.roots]
    runs = [{**run, "name": name} for name, root in named for run in load(Path(root))]
    base = {}
    for place in options.base:
        seed = read_run(place).seed
        base[seed] = {path.stem.rpartition("-")[0]: rates(path) for path in place.glob("samples/eval/*.parquet")}
    varied = {name for name in ("exploration", "algorithm") if len({run[name] for run in runs}) > 1}
    arms: dict[str, list[dict]] = {}
    for run in runs:
        parts = [run[name] for name in ("exploration", "algorithm") if name in varied]
        arms.setdefault(run["name"] or " + ".join(parts), []).append(run)
    benchmarks = sorted(runs[0]["solved"])
    text = table(arms, base, benchmarks)
    first = options.baseline or next(iter(arms))
    if all(len(part) > 1 for part in arms.values()):
        text += f"\n| minus `{first}`, Welch on seed means | " + " | ".join(benchmarks) + " |\n"
        text += "|---" * (1 + len(benchmarks)) + "|\n"
        for name in (name for name in arms if name != first):
            text += f"| `{name}` | " + " | ".join(welch(arms[name], arms[first], b) for b in benchmarks) + " |\n"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text(text, "utf-8")
    figure(arms, options.out / "curves.png")
    tidy = [run["metrics"].assign(**{name: run[name] for name in IDENTITY}) for run in runs]
    pd.concat(tidy)[[*IDENTITY, *CURVES]].round(5).to_csv(options.out / "curves.csv", index=False)
    print(text)


if __name__ == "__main__":
    main()

"""The figures of a report, readable in print and by colour-blind readers. It draws what is in the frames and tests nothing."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from analysis.comparison import Comparison, Rates
from analysis.diversity import steps_of
from analysis.load import UNTRAINED, Study
from analysis.statistics import two_level
from ngrpo.passk import k_grid, pass_at_k

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's palette (2008), without its yellow, which paper does not show.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
STYLE = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
         "figure.dpi": 150, "savefig.bbox": "tight", "legend.frameon": False}  # fmt: skip
SMOOTH = 3  # RL steps of a moving mean


def draw(study: Study, comparison: Comparison, directory: Path) -> list[tuple[Path, str]]:
    """All figures that there is data for, as (path of a PNG, caption)."""
    looks = {arm: (COLOURS[i % 7], MARKERS[i % 7], LINES[i % 7]) for i, arm in enumerate(study.arms)}
    figures = []
    with plt.rc_context(STYLE):
        for make in (_forest, _pass_at_k, _learning, _rates, _heat, _cost, _map):
            made = make(study, comparison, looks)
            if made is not None:
                figure, caption = made
                path = directory / f"{make.__name__.strip('_')}.png"
                figure.savefig(path)
                plt.close(figure)
                figures.append((path, caption))
    return figures


Looks = dict[str, tuple[Any, Any, Any]]
Drawn = tuple[Any, str] | None


def _panels(count: int, width: float = 2.6, height: float = 2.2, **options: Any) -> tuple[Any, list[Any]]:
    columns = min(count, 3)
    lines = -(-count // columns)
    size = (max(width * columns, 3.4), height * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained", **options)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, list(axes.flat[:count])


def _legend(figure: Any, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))


def _forest(study: Study, comparison: Comparison, looks: Looks) -> Drawn:
    tests = comparison.tests[comparison.tests["metric"].str.startswith("mean@")]
    if tests.empty:
        return None
    figure, axes = _panels(
        len(comparison.metrics), height=0.9 + 0.24 * len(tests) / len(comparison.metrics), sharey=True
    )
    for axis, (benchmark, part) in zip(axes, tests.groupby("benchmark", sort=False), strict=False):
        names = [f"{r.arm} minus {r.against}" for r in part.itertuples()]
        for place, row in enumerate(part.itertuples()):
            colour, marker, _ = looks[row.arm]
            if np.isfinite([row.low, row.high]).all():
                axis.plot([row.low, row.high], [place, place], color=colour, linewidth=1.2)
            axis.plot(row.gap, place, marker=marker, color=colour, markersize=5)
        axis.axvline(0, color="#555555", linewidth=0.8)
        axis.set_yticks(range(len(names)), names)
        axis.set_title(str(benchmark))
    axes[0].invert_yaxis()
    figure.supxlabel("difference of mean@n in points", fontsize=8)
    return figure, "Differences of mean@n with Welch's 95 % interval over training seeds."


def _pass_at_k(study: Study, comparison: Comparison, looks: Looks) -> Drawn:
    rates = Rates(study)
    figure, axes = _panels(len(study.benchmarks))
    for axis, benchmark in zip(axes, study.benchmarks, strict=True):
        n = rates.n[benchmark]
        for arm in study.arms:
            table = rates.tables.get((benchmark, arm))
            if table is None:
                continue
            curves = [100 * pass_at_k(n, table.to_numpy(), k) for k in k_grid(n)]
            bands = np.clip([two_level(None, c) for c in curves], 0, 100)
            colour, marker, line = looks[arm]
            axis.plot(
                k_grid(n),
                [c.mean() for c in curves],
                color=colour,
                marker=marker,
                linestyle=line,
                markersize=3,
                label=arm,
            )
            axis.fill_between(k_grid(n), bands[:, 0], bands[:, 1], color=colour, alpha=0.12, linewidth=0)
        axis.set_xscale("log", base=2)
        axis.set_xticks(k_grid(n), [str(k) for k in k_grid(n)])
        axis.set(title=benchmark, xlabel="k", ylabel="pass@k in %")
    _legend(figure, axes[0])
    return figure, "Unbiased pass@k against k; bands: 95 % for other problems and seeds."


def _learning(study: Study, comparison: Comparison, looks: Looks) -> Drawn:
    names = [name for name in ("reward", "entropy", "informative") if name in study.metrics]
    if not names:
        return None
    figure, axes = _panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        for arm, part in study.metrics.groupby("arm", sort=False):
            wide = part.pivot(index="step", columns="seed", values=name).rolling(SMOOTH, 1).mean()
            colour, _, line = looks[str(arm)]
            axis.plot(wide.index, wide.mean(axis=1), color=colour, linestyle=line, linewidth=1.2, label=arm)
            axis.fill_between(wide.index, wide.min(axis=1), wide.max(axis=1), color=colour, alpha=0.12, linewidth=0)
        axis.set(title={"informative": "share of informative groups"}.get(name, name), xlabel="RL step")
    _legend(figure, axes[0])
    return figure, f"Training rollouts, moving mean over {SMOOTH} RL steps; bands: range over seeds."


def _rates(study: Study, comparison: Comparison, looks: Looks) -> Drawn:
    """Bars over the mixing rate, one colour per strategy (N-GRPO, Figure 3), where a study has several rates."""
    runs = study.runs[study.runs["arm"] != UNTRAINED].drop_duplicates("arm")
    rates = {
        r.arm: r.config.get("exploration.rate")
        for r in runs.itertuples()
        if r.config.get("exploration.rate") is not None
    }
    kinds = {r.arm: r.exploration for r in runs.itertuples()}
    if max((sum(kinds[a] == kind for a in rates) for kind in set(kinds.values())), default=0) < 2:
        return None
    values = sorted(set(rates.values()))
    drawn = [kind for kind in dict.fromkeys(kinds.values()) if any(kinds[arm] == kind for arm in rates)]
    figure, axes = _panels(len(study.benchmarks))
    means = comparison.estimates[comparison.estimates["metric"].str.startswith("mean@")]
    for axis, benchmark in zip(axes, study.benchmarks, strict=True):
        for i, kind in enumerate(drawn):
            rows = [
                means[(means["benchmark"] == benchmark) & (means["arm"] == arm)].iloc[0]
                for arm in rates
                if kinds[arm] == kind
            ]
            places = [values.index(rates[row["arm"]]) + (i - (len(drawn) - 1) / 2) * 0.8 / len(drawn) for row in rows]
            spread = [[row["value"] - row["low"] for row in rows], [row["high"] - row["value"] for row in rows]]
            axis.bar(places, [row["value"] for row in rows], 0.75 / len(drawn), yerr=spread, color=COLOURS[i + 1],
                     hatch=("", "//", "..")[i % 3], edgecolor="white", label=kind, error_kw={"linewidth": 0.8})  # fmt: skip
        axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        axis.set(title=benchmark, xlabel="rate", ylabel="mean@n in %")
    _legend(figure, axes[0])
    return figure, "mean@n over the rate of exploration; 95 % for other problems and seeds."


def _heat(study: Study, comparison: Comparison, looks: Looks) -> Drawn:
    figure, axes = _panels(len(study.benchmarks), height=0.8 + 0.22 * len(study.arms), sharey=True)
    image = None
    for axis, benchmark in zip(axes, study.benchmarks, strict=True):
        part = study.counts[study.counts["benchmark"] == benchmark]
        solved = part.assign(rate=part["c"] / part["n"]).pivot_table(index="arm", columns="problem_id", values="rate")
        solved = solved.reindex([arm for arm in study.arms if arm in solved.index])
        solved = solved[solved.mean().sort_values(ascending=False).index]
        image = axis.imshow(solved, aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
        axis.set_yticks(range(len(solved)), list(solved.index))
        axis.set_xticks([])
        axis.grid(visible=False)
        axis.set(title=benchmark, xlabel=f"{solved.shape[1]} problems, easy to hard")
    figure.colorbar(image, ax=axes, label="solve rate", shrink=0.9)
    return figure, "Solve rate of every problem, mean over seeds, problems sorted by their mean over all methods."


def _cost(study: Study, comparison: Comparison, looks: Looks) -> Drawn:
    costs = comparison.costs
    if costs.empty:
        return None
    figure, axes = _panels(2)
    for axis, (column, label) in zip(
        axes, (("tokens", "training tokens"), ("seconds", "seconds of RL steps")), strict=True
    ):
        for arm, part in costs.groupby("arm", sort=False):
            colour, marker, _ = looks[str(arm)]
            axis.plot(part[column].mean(), part["gain"].mean(), linestyle="", marker=marker, color=colour, label=arm)
        axis.set(xlabel=label, ylabel="gain of mean@n in points")
        axis.set_xlim(0, 1.1 * costs[column].max())
        axis.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
    _legend(figure, axes[0])
    return figure, "Gain over the untrained model, mean over benchmarks, against what training cost."


def _map(study: Study, comparison: Comparison, looks: Looks) -> Drawn:
    """Fed vectors by displacement and cosine; coordinates of the table need the model, so they come from diagnose.py."""
    parts = {arm: steps for arm in study.arms if (steps := steps_of(study, arm)) is not None}
    if not parts:
        return None
    figure, axes = _panels(2)
    for arm, steps in parts.items():
        colour, _, line = looks[arm]
        for axis, column in zip(axes, ("cosine", "displacement"), strict=True):
            values = np.sort(steps[column].to_numpy())
            axis.plot(values, np.linspace(0, 1, len(values)), color=colour, linestyle=line, label=arm)
            axis.set(xlabel={"cosine": "cosine to the anchor"}.get(column, column), ylabel="share of explored steps")
    _legend(figure, axes[0])
    return figure, "How far exploration moved the fed vectors: cumulative shares over the kept steps."

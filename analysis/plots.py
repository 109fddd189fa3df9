"""The figures of a report, readable in print and by color-blind readers."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image  # comes with matplotlib

from analysis.comparison import SCOPES, Comparison
from analysis.diversity import steps_of
from analysis.fairness import setting, strategy_of
from analysis.intervals import two_level
from analysis.load import UNTRAINED, Study
from ngrpo.evaluation.passk import k_grid
from ngrpo.rundir.progress import counted

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's palette (2008), without its yellow, which paper does not show.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
OF_BASELINE, OF_UNTRAINED = ("#000000", "o", "-"), ("#7F7F7F", "o", ":")
MARKERS = ("s", "^", "D", "v", "P", "X", "*")  # one more than colors, so that they pair up anew when these run out
LINES = ("--", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)), "-")
STYLE: dict[Any, Any] = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                         "grid.alpha": 0.25, "figure.dpi": 150, "savefig.bbox": "tight", "legend.frameon": False}  # fmt: skip
SMOOTH = 3  # RL steps of a moving mean
FAR = 8  # times the median distance from the median: what lies beyond would press all the rest together
SHADES = 256  # of a picture: fewer bytes; chosen so that the rarest color, a thin line, stays what it is


def draw(study: Study, comparison: Comparison, directory: Path) -> list[tuple[Path, str]]:
    """Draws every figure that there is data for; (path of a PNG, caption) of each."""
    others = [arm for arm in study.arms if arm not in (UNTRAINED, comparison.baseline)]
    looks = {arm: (COLORS[i % 6], MARKERS[i % 7], LINES[i % 7]) for i, arm in enumerate(others)}
    looks |= {UNTRAINED: OF_UNTRAINED, comparison.baseline: OF_BASELINE}
    figures = []
    with plt.rc_context(STYLE):
        makers = (_forest, _pass_at_k, _paired, _learning, _rates, _heat, _cost, _budget, _map)
        for make in counted(makers, "drawing"):
            drawn = make(study, comparison, looks)
            if drawn is not None:
                figure, caption = drawn
                path = directory / f"{make.__name__.strip('_')}.png"
                figure.savefig(path)
                plt.close(figure)
                shrink(path)
                figures.append((path, caption))
    return figures


def shrink(path: Path) -> None:
    """Rewrites a picture with fewer colors, which makes the file smaller."""
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(SHADES, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


Look = tuple[Any, Any, Any]  # color, marker, dashes
Looks = dict[str, Look]
Drawn = tuple[Any, str] | None


def _panels(count: int, width: float = 2.6, height: float = 2.2, **options: Any) -> tuple[Any, list[Any]]:
    columns = min(count, 3)
    lines = -(-count // columns)
    size = (max(width * columns, 3.4), height * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained", **options)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, list(axes.flat[:count])


def _line(
    axis: Any, x: Any, middle: Any, low: Any, high: Any, look: Look, label: Any, alpha: float = 0.12, **style: Any
) -> None:
    """A line with its band."""
    axis.plot(x, middle, color=look[0], linestyle=look[2], label=label, **{"linewidth": 1.2, **style})
    axis.fill_between(x, low, high, color=look[0], alpha=alpha, linewidth=0)


def _log_k(axis: Any, n: int) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(k_grid(n), [str(k) for k in k_grid(n)])


def _legend(figure: Any, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))


def _window(values: Any, *more: float) -> tuple[float, float]:
    """The range of an axis: `more` and all values except outliers (see FAR), which are marked at its edge."""
    known = np.asarray(values, dtype=float).ravel()
    known = known[np.isfinite(known)]
    away = np.abs(known - np.median(known))
    near = [*known[away <= max(FAR * np.median(away), 1)], *more]
    margin = 0.06 * max(max(near) - min(near), 1)
    return min(near) - margin, max(near) + margin


def _off_scale(value: float, window: tuple[float, float]) -> str | None:
    """The mark at the edge for a value outside of the window; None inside."""
    if window[0] <= value <= window[1]:
        return None
    return f"◂ {value:+.1f}" if value < window[0] else f"{value:+.1f} ▸"


def _forest(study: Study, comparison: Comparison, looks: Looks) -> Drawn:
    tests = comparison.tests[comparison.tests["metric"].str.startswith("mean@")]
    if tests.empty:
        return None
    window = _window(tests[["gap", "low", "high"]], 0.0)
    figure, axes = _panels(
        len(comparison.metrics), height=0.9 + 0.24 * len(tests) / len(comparison.metrics), sharey=True
    )
    for axis, (benchmark, part) in zip(axes, tests.groupby("benchmark", sort=False), strict=False):
        for place, row in enumerate(part.itertuples()):
            _interval(axis, place, row, looks[row.arm], window)
        axis.axvline(0, color="#555555", linewidth=0.8)
        axis.set_yticks(range(len(part)), [f"{r.arm} minus {r.against}" for r in part.itertuples()])
        axis.set(title=str(benchmark), xlim=window, xlabel="points of mean@n")
    axes[0].invert_yaxis()
    far = "; ◂ ▸: off the scale, at the printed value" * any(_off_scale(gap, window) for gap in tests["gap"])
    return figure, f"Differences of mean@n with Welch's 95 % interval over training seeds{far}."


def _interval(axis: Any, place: int, row: Any, look: Look, window: tuple[float, float]) -> None:
    mark = _off_scale(row.gap, window)
    if mark:
        left = row.gap < window[0]
        at = {"xy": (0.02 if left else 0.98, place), "xycoords": ("axes fraction", "data")}
        axis.annotate(mark, **at, ha="left" if left else "right", va="center")
        return
    if np.isfinite([row.low, row.high]).all():
        axis.plot([row.low, row.high], [place, place], color=look[0], linewidth=1.2)
    axis.plot(row.gap, place, marker=look[1], color=look[0], markersize=5)


def _pass_at_k(study: Study, comparison: Comparison, looks: Looks) -> Drawn:
    rates = comparison.rates
    figure, axes = _panels(len(study.benchmarks))
    for axis, benchmark in zip(axes, study.benchmarks, strict=True):
        n = rates.n[benchmark]
        for arm in rates.arms(benchmark, study.arms):
            curves = [rates.values(benchmark, arm, f"pass@{k}") for k in k_grid(n)]
            low, high = np.transpose([two_level(None, c, top=100) for c in curves])
            style = {"linewidth": 1.5, "marker": looks[arm][1], "markersize": 3}
            _line(axis, k_grid(n), [c.mean() for c in curves], low, high, looks[arm], arm, **style)
        _log_k(axis, n)
        axis.set(title=benchmark, xlabel="k", ylabel="pass@k in %")
    _legend(figure, axes[0])
    return figure, "Unbiased pass@k against k; bands: 95 % for other problems and seeds."


def _paired(study: Study, comparison: Comparison, looks: Looks) -> Drawn:
    """pass@k curves minus the baseline's; the bands cover training runs if there are enough seeds."""
    widest = {(f.arm, f.benchmark): f for f in comparison.curves if f.against == comparison.baseline}
    benchmarks = list(dict.fromkeys(benchmark for _, benchmark in widest))
    if not benchmarks:
        return None
    figure, axes = _panels(len(benchmarks))
    for axis, benchmark in zip(axes, benchmarks, strict=True):
        for (arm, where), found in widest.items():
            if where == benchmark:
                curve = found.curve
                _line(axis, curve.ks, curve.value, curve.low, curve.high, looks[arm], arm, alpha=0.15)
        axis.axhline(0, color="#555555", linewidth=0.8)
        _log_k(axis, comparison.rates.n[benchmark])
        axis.set(title=benchmark, xlabel="k")
    axes[0].set_ylabel("points of pass@k")
    _legend(figure, axes[0])
    runs = any(found.scope == SCOPES[1] for found in widest.values())
    scope = "other training runs and problems" if runs else "other problems, these checkpoints only"
    return (
        figure,
        f"pass@k less that of {comparison.baseline}, same problems; bands: 95 % for all k and all curves at once, {scope}.",
    )


def _learning(study: Study, comparison: Comparison, looks: Looks) -> Drawn:
    names = [name for name in ("reward", "entropy", "informative") if name in study.metrics]
    if not names:
        return None
    figure, axes = _panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        for arm, part in study.metrics.groupby("arm", sort=False):
            wide = part.pivot(index="step", columns="seed", values=name).rolling(SMOOTH, 1).mean()
            values = (wide.mean(axis=1), wide.min(axis=1), wide.max(axis=1))
            _line(axis, wide.index, *values, looks[str(arm)], arm)
        axis.set(title={"informative": "share of informative groups"}.get(name, name), xlabel="RL step")
    _legend(figure, axes[0])
    return figure, f"Training rollouts, moving mean over {SMOOTH} RL steps; bands: range over seeds."


def _rates(study: Study, comparison: Comparison, looks: Looks) -> Drawn:
    """Bars over the mixing rate, one color per strategy (N-GRPO, Figure 3), where a study has several rates."""
    runs = study.runs[study.runs["arm"] != UNTRAINED].drop_duplicates("arm")
    rates = {r.arm: setting(strategy_of(r.config), "rate") for r in runs.itertuples()}
    rates = {arm: rate for arm, rate in rates.items() if rate is not None}
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
            axis.bar(places, [row["value"] for row in rows], 0.75 / len(drawn), yerr=spread, color=COLORS[i + 1],
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
    gains = {str(arm): _gains(comparison, str(arm)) for arm in costs["arm"].unique()}
    window = _window([value for gain in gains.values() for value in gain])
    figure, axes = _panels(2, width=3.2, height=2.6)
    for axis, (column, label) in zip(
        axes, (("tokens", "training tokens"), ("seconds", "seconds of RL steps")), strict=True
    ):
        for arm, gain in gains.items():
            (color, marker, _), x = looks[arm], costs[costs["arm"] == arm][column].mean()
            mark, inside = _off_scale(gain.mean(), window), float(np.clip(gain.mean(), *window))
            axis.plot(x, inside, linestyle="", marker=marker, color=color, label=arm, clip_on=False)
            if mark:
                far = 6 if gain.mean() < window[0] else -12
                axis.annotate(f"{gain.mean():+.1f}, off the scale", (x, inside), (0, far), textcoords="offset points",
                              ha="right" if x > costs[column].median() else "center")  # fmt: skip
            else:
                axis.plot([x, x], [gain.min(), gain.max()], color=color, linewidth=1)
        axis.set(xlabel=label, ylabel="gain in points of mean@n", ylim=window, xlim=(0, 1.15 * costs[column].max()))
        axis.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
    _legend(figure, axes[0])
    return figure, (
        "Gain over the untrained model, mean over benchmarks, against what training cost; lines: range over seeds."
    )


def _budget(study: Study, comparison: Comparison, looks: Looks) -> Drawn:
    """mean@n of every evaluation against what training had cost by then, mean over seeds."""
    found = comparison.trajectory
    if found.empty:
        return None
    panels = [(benchmark, unit) for benchmark in found["benchmark"].unique() for unit in ("tokens", "seconds")]
    figure, axes = _panels(len(panels))
    for axis, (benchmark, unit) in zip(axes, panels, strict=True):
        metric = comparison.metrics[benchmark][0]
        for arm, own in found[found["benchmark"] == benchmark].groupby("arm", sort=False):
            values = [comparison.rates.estimate(benchmark, row[None], metric).mean() for row in own["correct"]]
            means = own[["step", unit]].assign(value=values).groupby("step").mean()
            color, marker, line = looks[str(arm)]
            axis.plot(means[unit], means["value"], color=color, marker=marker, linestyle=line, markersize=3, label=arm)
        axis.set(title=benchmark, xlabel=f"training {unit}", ylabel=f"{metric} in %")
        axis.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
    _legend(figure, axes[0])
    return figure, "mean@n at every evaluation against what training had cost by then, mean over seeds."


def _gains(comparison: Comparison, arm: str) -> Any:
    """(S,) gain in mean@n of each seed of an arm, averaged over its benchmarks."""
    rates, found = comparison.rates, []
    for benchmark, names in comparison.metrics.items():
        if rates.has(benchmark, arm, UNTRAINED):
            new, old = (rates.values(benchmark, name, names[0]) for name in (arm, UNTRAINED))
            found.append(new.mean(axis=1) - old.mean())
    return np.mean(found, axis=0)


def _map(study: Study, comparison: Comparison, looks: Looks) -> Drawn:
    """Fed vectors by displacement and cosine; coordinates of the table need the model, so they come from diagnose.py."""
    parts = {arm: steps for arm in study.arms if (steps := steps_of(study, arm)) is not None}
    if not parts:
        return None
    figure, axes = _panels(2, width=3.2, height=2.6)
    for arm, steps in parts.items():
        color, _, line = looks[arm]
        for axis, column in zip(axes, ("cosine", "displacement"), strict=True):
            values = np.sort(steps[column].to_numpy())
            axis.plot(values, np.linspace(0, 1, len(values)), color=color, linestyle=line, label=arm)
            axis.set(xlabel={"cosine": "cosine to the anchor"}.get(column, column), ylabel="share of explored steps")
    _legend(figure, axes[0])
    return figure, "How far exploration moved the fed vectors: cumulative shares over the kept steps."

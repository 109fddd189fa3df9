"""Coverage of the report's intervals, false alarms and power, by simulation with known truths.

python -m experiments.coverage.run            every cell that results.csv lacks; the same command goes on
python -m experiments.coverage.run one_arm    cells of one kind

One row per cell: kind, truth, problems, n, k, seeds, spread (standard deviation of training seeds in logits), draws, share (of
draws in which the interval holds the truth, or that reject), width (mean, in points), t_share and t_width (Student's t without
pseudo-problems), wanted.
"""

import csv
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from analysis.bands import curves, paired_curves
from analysis.intervals import Array, two_level
from analysis.power import smallest_found
from analysis.statistics import holm, welch
from ngrpo.evaluation.passk import mean_interval, paired_interval, pass_at_k

HERE = Path(__file__).parent
COUNTS = HERE.parents[1] / "tests" / "data" / "deepscaler32k"
DRAWS = 2_000
POPULATION = 2_000_000  # problems that a truth without a closed form is a mean of
COLUMNS: Any = (
    "kind", "truth", "problems", "n", "k", "seeds", "spread", "alpha", "draws", "share", "width", "t_share", "t_width",
    "wanted",
)  # fmt: skip
BETAS = {"uniform": (1, 1), "extremes": (0.5, 0.5), "easy": (8, 0.5), "impossible": (2, 2)}
TRUTHS = (*BETAS, "real")
SHARE = 0.03  # of problems that training solves for good where the truth is "rare"; seven in ten were solved before
Cell = dict[str, Any]


def cells() -> Iterator[Cell]:
    """The design: what is crossed with what."""
    for truth in TRUTHS:
        for problems, k in (*product((30, 120), (1, 8, 32)), (500, 8)):
            yield {"kind": "one_arm", "truth": truth, "problems": problems, "n": 32, "k": k}
        yield {"kind": "one_arm", "truth": truth, "problems": 120, "n": 128, "k": 128}
        for problems, k in ((48, 1), (48, 8), (48, 32), (500, 8)):
            yield {"kind": "difference", "truth": truth, "problems": problems, "n": 32, "k": k}
    for problems in (30, 48, 120, 500):
        yield {"kind": "difference", "truth": "rare", "problems": problems, "n": 32, "k": 32}
    runs = [*product((48, 500), (2, 3, 5), (0.0, 0.2, 0.5)), *product((48,), (10,), (0.0, 0.2, 0.5))]
    for kind in ("one_arm_seeds", "difference_seeds"):
        for problems, seeds, spread in (*runs, (48, 2, 1.0), (48, 3, 1.0)):
            yield {"kind": kind, "truth": "middle", "problems": problems, "k": 1, "seeds": seeds, "spread": spread}
        for spread in (0.0, 0.2, 0.5):
            yield {"kind": kind, "truth": "ceiling", "problems": 48, "k": 8, "seeds": 3, "spread": spread}
    for problems, seeds, spread in (
        (48, 1, 0.0),
        (500, 1, 0.0),
        (48, 3, 0.2),
        (48, 3, 0.5),
        (120, 3, 0.0),
        (120, 5, 0.2),
    ):
        yield {"kind": "band", "truth": "middle", "problems": problems, "seeds": seeds, "spread": spread}
    for seeds, spread in product((3, 5), (0.0, 0.2)):
        yield {"kind": "false_alarm", "truth": "middle", "problems": 48, "k": 1, "seeds": seeds, "spread": spread}
    for seeds, alpha in product((2, 3, 5, 8), (0.05, 0.0167)):
        yield {"kind": "power", "truth": "normal", "seeds": seeds, "alpha": alpha}
    for kind in ("duplicates_kept", "duplicates_merged"):
        yield {"kind": kind, "truth": "extremes", "problems": 48, "n": 32, "k": 8}


def rates(truth: str, size: Any, rng: np.random.Generator) -> tuple[Array, Array]:
    """Chances of a right answer before and after training, of problems drawn from a population."""
    if truth == "real":
        files = [(COUNTS / name).read_text("utf-8").splitlines() for name in ("base.jsonl", "rl.jsonl")]
        counts = [{row["id"]: row["c"] for row in map(json.loads, lines)} for lines in files]
        pairs = np.array([[one[name] / 128 for name in counts[0]] for one in counts])
        before, after = pairs[:, rng.integers(pairs.shape[1], size=size)]
        return before, after
    if truth == "rare":
        before, found = rng.random(size) < 0.7, rng.random(size) < SHARE / 0.3
        return np.where(before, 1.0, 0.0), np.where(before | found, 1.0, 0.0)
    a, b = BETAS[truth]
    before = rng.beta(a, b, size).clip(1e-12, 1 - 1e-12)
    if truth == "impossible":
        before = np.where(rng.random(size) < 0.3, 1e-12, before)
    return before, 1 / (1 + (1 - before) / before * np.exp(rng.normal(-0.3, 0.3, size)))


def _samples(cell: Cell, rng: np.random.Generator, size: Any) -> tuple[Array, Array]:
    known = pass_at_k(cell["n"], np.arange(cell["n"] + 1), cell["k"])
    before, after = (known[rng.binomial(cell["n"], p)] for p in rates(cell["truth"], size, rng))
    return before, after


def _truth(cell: Cell) -> tuple[float, float]:
    before, after = (
        np.mean(1 - (1 - p) ** cell["k"]) for p in rates(cell["truth"], POPULATION, np.random.default_rng(0))
    )
    return float(before), float(after)


def one_arm(cell: Cell, rng: np.random.Generator) -> Cell:
    values, _ = _samples(cell, rng, (cell["problems"], DRAWS))
    return _held(mean_interval(values), _student(values), _truth(cell)[0])


def difference(cell: Cell, rng: np.random.Generator) -> Cell:
    before, after = _samples(cell, rng, (cell["problems"], DRAWS))
    one, two = _truth(cell)
    plain = _student(after - before)
    return _held(paired_interval(before, after), plain, two - one)


def duplicates_kept(cell: Cell, rng: np.random.Generator) -> Cell:
    """A third of the problems are there twice, with samples of their own, and are taken for problems."""
    p, _ = rates(cell["truth"], (cell["problems"], DRAWS), rng)
    known = pass_at_k(cell["n"], np.arange(cell["n"] + 1), cell["k"])
    values = known[rng.binomial(cell["n"], np.concatenate([p, p[::3], p[::3]]))]
    held = _held(mean_interval(values), _student(values), _truth(cell)[0])
    return {**held, "wanted": "nothing: why copies are merged"}


def duplicates_merged(cell: Cell, rng: np.random.Generator) -> Cell:
    """The same, each problem one unit: the mean of its copies."""
    p, _ = rates(cell["truth"], (cell["problems"], DRAWS), rng)
    known = pass_at_k(cell["n"], np.arange(cell["n"] + 1), cell["k"])
    values = known[rng.binomial(cell["n"], p)]
    values[::3] = (values[::3] + known[rng.binomial(cell["n"], np.stack([p[::3]] * 2))].sum(axis=0)) / 3
    return _held(mean_interval(values), _student(values), _truth(cell)[0])


def one_arm_seeds(cell: Cell, rng: np.random.Generator) -> Cell:
    level, found = LEVELS[cell["truth"]], []
    for _ in range(DRAWS):
        difficulty = rng.normal(level, 1.5, (1, cell["problems"]))
        found.append(two_level(None, _run(cell, difficulty, 0.0, rng)))
    return _held(np.array(found).T, None, _mean(cell, 0.0))


def difference_seeds(cell: Cell, rng: np.random.Generator) -> Cell:
    level, found = LEVELS[cell["truth"]], []
    for _ in range(DRAWS):
        difficulty = rng.normal(level, 1.5, (1, cell["problems"]))
        found.append(two_level(_run(cell, difficulty, 0.0, rng), _run(cell, difficulty, 0.3, rng)))
    return _held(np.array(found).T, None, _mean(cell, 0.3) - _mean(cell, 0.0))


def band(cell: Cell, rng: np.random.Generator) -> Cell:
    inside, width, ks = 0, 0.0, range(1, 33)
    truth = np.array([_mean({**cell, "k": k}, 0.3) - _mean({**cell, "k": k}, 0.0) for k in ks])
    for _ in range(DRAWS):
        difficulty = rng.normal(0, 1.5, (1, cell["problems"]))
        arms = [curves(32, _right(cell, difficulty, shift, rng), ks, top=1.0) for shift in (0.0, 0.3)]
        found = paired_curves(ks, *arms, training_runs=cell["seeds"] > 1, draws=1000, top=1.0)
        inside += bool(((found.low <= truth) & (truth <= found.high)).all())
        width += float(np.mean(found.high - found.low))
    return {"share": inside / DRAWS, "width": 100 * width / DRAWS, "wanted": ">= 0.93"}


def false_alarm(cell: Cell, rng: np.random.Generator) -> Cell:
    """Three equal arms against a baseline, Holm's correction: how often any of them is called better."""
    called = 0
    for _ in range(DRAWS):
        difficulty = rng.normal(0, 1.5, (1, cell["problems"]))
        base, *arms = (_run(cell, difficulty, 0.0, rng).mean(axis=1) for _ in range(4))
        tests = [welch(base, arm) for arm in arms]
        adjusted = holm([test.p for test in tests])
        called += any(p < 0.05 and test.gap > 0 for p, test in zip(adjusted, tests, strict=True))
    return {"share": called / DRAWS, "wanted": "<= 0.05"}


def power(cell: Cell, rng: np.random.Generator) -> Cell:
    """Seeds that differ by one, means by what `smallest_found` names: how often Welch's test finds it."""
    seeds, alpha = cell["seeds"], cell["alpha"]
    gap = smallest_found((1.0, 1.0), (seeds, seeds), alpha=alpha)
    first, second = rng.normal(0, 1, (10 * DRAWS, seeds)), rng.normal(gap, 1, (10 * DRAWS, seeds))
    test: Any = stats.ttest_ind(second, first, axis=1, equal_var=False)
    return {"share": (test.pvalue < alpha).mean(), "draws": 10 * DRAWS, "wanted": "0.77 to 0.83"}


LEVELS = {"middle": 0.0, "ceiling": 3.0}  # mean of the logits of problems


def _right(cell: Cell, difficulty: Array, shift: float, rng: np.random.Generator) -> Array:
    offsets = shift + cell["spread"] * rng.normal(size=(cell["seeds"], 1))
    return rng.binomial(32, 1 / (1 + np.exp(-(difficulty + offsets))))


def _run(cell: Cell, difficulty: Array, shift: float, rng: np.random.Generator) -> Array:
    return np.take(pass_at_k(32, np.arange(33), cell["k"]), _right(cell, difficulty, shift, rng).astype(int))


def _mean(cell: Cell, shift: float) -> float:
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    rate = 1 / (1 + np.exp(-(LEVELS[cell["truth"]] + shift + np.hypot(1.5, cell["spread"]) * nodes)))
    return float(weights @ (1 - (1 - rate) ** cell["k"]) / weights.sum())


def _student(values: Array) -> tuple[Array, Array]:
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values, axis=0)
    return values.mean(axis=0) - half, values.mean(axis=0) + half


def _held(interval: Any, plain: Any, truth: float) -> Cell:
    found: Cell = {"wanted": ">= 0.93"}
    for name, ends in (("", interval), ("t_", plain)):
        if ends is not None:
            low, high = ends
            found |= {f"{name}share": np.mean((low <= truth + 1e-9) & (truth <= high + 1e-9))}
            found |= {f"{name}width": 100 * np.mean(np.subtract(high, low))}
    return found


SIMULATIONS: dict[str, Callable[[Cell, np.random.Generator], Cell]] = {
    made.__name__: made
    for made in (
        one_arm,
        difference,
        duplicates_kept,
        duplicates_merged,
        one_arm_seeds,
        difference_seeds,
        band,
        false_alarm,
        power,
    )
}


def main(kinds: list[str]) -> None:
    """Simulates what is missing and adds it to results.csv, a line as soon as it is there."""
    path = HERE / "results.csv"
    known = list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []
    done = {_name(row) for row in known}
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not known:
            writer.writeheader()
        for cell in cells():
            if _name(cell) not in done and (not kinds or cell["kind"] in kinds):
                made = SIMULATIONS[cell["kind"]](cell, np.random.default_rng(zlib.crc32(_name(cell).encode())))
                row = {"draws": DRAWS, **cell, **made}
                writer.writerow({name: _text(value) for name, value in row.items()})
                file.flush()


def _name(cell: Cell) -> str:
    return " ".join(_text(cell.get(name, "")) for name in COLUMNS[:8])


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Values of estimates per training seed and problem, aligned over the arms of a study, each problem once."""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.bands import curves
from analysis.intervals import Array
from analysis.load import UNTRAINED, LoadError, Study
from analysis.samples import SampleFile
from ngrpo.evaluation import passk


class Rates:
    """(S, U) values in percent: S training seeds in order, U distinct problems; copies with the same text are averaged.

    Attributes:
        tables: (benchmark, arm) -> right answers, a row per seed, a column per problem id, in one order for all arms.
        n: benchmark -> samples of each problem.
        copies: benchmark -> how many problem ids have the text of another one.
    """

    def __init__(self, study: Study):
        self.tables: dict[tuple[str, str], pd.DataFrame] = {}
        self.n: dict[str, int] = {}
        self.problems: dict[str, pd.Index] = {}
        for (benchmark, arm), part in study.counts.groupby(["benchmark", "arm"], sort=False):
            self._add(str(benchmark), str(arm), part)
        self._units = {benchmark: self._unit_numbers(study, benchmark) for benchmark in self.problems}
        self.copies = {benchmark: len(units) - int(units.max()) - 1 for benchmark, units in self._units.items()}
        self.values = cache(self._values)

    def curves(self, benchmark: str, arm: str, ks: Sequence[int]) -> Array:
        """(S, U, K) of pass@k in percent."""
        return self._merge_copies(benchmark, curves(self.n[benchmark], self.tables[benchmark, arm].to_numpy(), ks))

    def size(self, benchmark: str) -> int:
        """The number of distinct problems."""
        return len(self._units[benchmark]) - self.copies[benchmark]

    def has(self, benchmark: str, *arms: str) -> bool:
        """Whether all of these arms were evaluated on the benchmark."""
        return all((benchmark, arm) in self.tables for arm in arms)

    def arms(self, benchmark: str, arms: Sequence[str]) -> list[str]:
        """Those of these arms that were evaluated on the benchmark."""
        return [arm for arm in arms if self.has(benchmark, arm)]

    def _values(self, benchmark: str, arm: str, metric: str) -> Array:
        """(S, U) in percent of an arm that was evaluated on the benchmark."""
        return self.estimate(benchmark, self.tables[benchmark, arm].to_numpy(), metric)

    def estimate(self, benchmark: str, correct: Array, metric: str) -> Array:
        """(S, U) in percent from (S, P) right answers in the order of `problems`."""
        n = self.n[benchmark]
        name, _, k = metric.partition("@")
        if name == "mean":
            values = 100 * correct / n
        else:
            values = 100 * (passk.pass_at_k if name == "pass" else passk.boot_best_at_k)(n, correct, int(k))
        return self._merge_copies(benchmark, values)

    def _add(self, benchmark: str, arm: str, part: pd.DataFrame) -> None:
        wide = part.pivot(index="seed", columns="problem_id", values="c")
        place = part["path"].iloc[-1]
        if wide.isna().to_numpy().any():
            seed = wide.index[wide.isna().any(axis=1)][0]
            place = part[part["seed"] == seed]["path"].iloc[0]
            raise LoadError(f"{place}: {arm}, seed {seed}: lacks problems of {benchmark} that other seeds have")
        known = self.problems.setdefault(benchmark, wide.columns)
        if set(known) != set(wide.columns):
            odd = sorted(set(known) ^ set(wide.columns))[0]
            raise LoadError(f"{place}: {arm}: {benchmark} has other problems than the first arm has, {odd} for one")
        n = int(part["n"].iloc[0])
        if self.n.setdefault(benchmark, n) != n:
            raise LoadError(
                f"{place}: {arm}: {benchmark} has {n} samples per problem, other arms have {self.n[benchmark]}"
            )
        self.tables[benchmark, arm] = wide[known]  # by id: the first arm's order, whatever that of the file

    def _merge_copies(self, benchmark: str, values: Array) -> Array:
        """(S, U, ...) means of (S, P, ...) values over the copies of each problem."""
        if not self.copies[benchmark]:
            return values
        units = self._units[benchmark]
        order, starts = np.argsort(units, kind="stable"), np.unique(np.sort(units), return_index=True)[1]
        sizes = np.diff([*starts, len(units)]).reshape(-1, *[1] * (values.ndim - 2))
        return np.add.reduceat(values[:, order], starts, axis=1) / sizes

    def _unit_numbers(self, study: Study, benchmark: str) -> np.ndarray:
        """(P,) for each problem id the index of its distinct problem, in order of first appearance."""
        prompts, known = study.prompts(benchmark), {}
        texts = [normalized(prompts.get(problem, "")) or f"\0{problem}" for problem in self.problems[benchmark]]
        units = np.array([known.setdefault(text, len(known)) for text in texts])
        # Where all are of one text, what tells the problems apart is not in it.
        return units if len(known) > 1 else np.arange(len(units))


def normalized(text: str) -> str:
    """Text without differences in case, spaces or character encoding; `3²` still differs from `32`."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def trajectory(study: Study, problems: Mapping[str, pd.Index]) -> pd.DataFrame:
    """arm, seed, benchmark, step, tokens, seconds and the right answers of each problem, a row per evaluation of a trained run.

    Empty where no run was evaluated between its first and its last step.
    """
    trained = [run for run in study.runs.itertuples() if run.arm != UNTRAINED]
    found = [row for run in trained for row in _evaluations(study, problems, run)]
    frame = pd.DataFrame(found, columns=["arm", "seed", "benchmark", "step", "tokens", "seconds", "path"])
    if not (frame.groupby(["arm", "seed", "benchmark"])["step"].nunique() > 1).any():
        frame = frame.iloc[:0]
    frame["correct"] = [
        SampleFile(row.path).counts().set_index("problem_id")["c"].reindex(problems[row.benchmark]).to_numpy()
        for row in frame.itertuples()
    ]
    return frame.drop(columns="path")


def _evaluations(study: Study, benchmarks: Iterable[str], run: Any) -> Iterator[tuple]:
    timings = study.timings
    if timings.empty or "step" not in timings:
        return
    own = timings[(timings["arm"] == run.arm) & (timings["seed"] == run.seed)].sort_values("step")
    spent = own.set_index("step")[["tokens", "seconds"]].cumsum()
    for benchmark in benchmarks:
        for path in Path(run.path).glob(f"samples/eval/{benchmark}-*.parquet"):
            name, _, step = path.stem.rpartition("-")
            if name == benchmark and int(step) in spent.index:
                cost = spent.loc[int(step)]
                yield run.arm, run.seed, benchmark, int(step), float(cost["tokens"]), float(cost["seconds"]), path

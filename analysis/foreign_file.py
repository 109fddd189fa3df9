"""One sample file of another tool: the roles of its columns, its problems and verdicts, and cells on request.

It is read by columns, a batch at a time; what is kept of keys is hashed, and answers are not kept.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis import columns, formats, repeats
from analysis.columns import COUNTS, Verdicts
from analysis.samples import LoadError, pc

TEXT_COLUMNS = {
    "prompt": columns.TEXTS,
    "gold": ("gold", "target", "gts", "label"),
    "completion": ("completion", "output", "response", "solution", "generation", "resps"),
    "extracted": ("extracted", "pred", "answer"),
}
ROLES = ("verdict", "problem", "sample", "benchmark", "completion", "gold")
NONE = "none"  # columns.benchmark=none: no column is
Columns = Mapping[str, str | None]


class ForeignFile:
    """A file whose keys and verdicts are read at once, its texts on request.

    Attributes:
        there: all its columns; columns: role -> the column that was taken.
        hashed: column -> (rows,) uint64, equal where cells are; until `settle`.
        problem_names: columns that may name problems, likelier ones first.
        counted: seed, benchmark, problem_id, n, c, tokens (nan without n_tokens), in the order of the file; after `settle`.
    """

    def __init__(self, path: Path, chosen: Columns):
        self.path, self.there = path, formats.names(path)
        self.chosen = {role: name for role, name in chosen.items() if name in self.there}
        self.no_benchmark = chosen.get("benchmark") == NONE and NONE not in self.there
        known = {role: [name for name in names if name in self.there] for role, names in TEXT_COLUMNS.items()}
        self.columns = {role: names[0] for role, names in known.items() if names}
        self.counts_only = set(COUNTS) <= set(self.there) and "verdict" not in self.chosen
        self.agreeing: list[str] = []
        self._survey()
        listed = self.counts_only or self.sizes is not None
        bench = None if self.no_benchmark else self._first("benchmark", columns.BENCHMARKS)
        self.problem_names = columns.problem_names(self.hashed, self.rows, bench, listed)
        if "problem" in self.chosen:
            self.problem_names = [self.chosen["problem"]]
        if not self.problem_names:
            self._refuse_without("problem", columns.PROBLEMS)

    def settle(self, problem: str) -> None:
        """Groups the samples by this column. Raises LoadError for rows that are there twice."""
        self.columns["problem"] = problem
        self._refuse_blank(problem)
        self._find_benchmark()
        key = reduce(columns.mix, [self.hashed[name] for name in self._grouping()])
        self._find_sample()
        self._refuse_steps()
        self._refuse_repeats(key)
        codes, found = pd.factorize(key)
        self._codes = codes.astype(np.int32)
        del self.hashed, codes, key
        self._name(len(found))
        self.counted = self._count()
        self._refuse_gold()

    def columns_note(self) -> str:
        """One line: which column has which role."""
        parts = [f"{role} is {self.columns[role]}" for role in ROLES if role in self.columns]
        if self.counts_only:
            parts = [f"counts are {' and '.join(COUNTS)}", *parts]
        if self.agreeing:
            parts[0] += f" ({', '.join(self.agreeing)} {'agrees' if len(self.agreeing) == 1 else 'agree'})"
        pooled = f"; {self._steps} values of {self.columns['step']} are pooled" if self._steps > 1 else ""
        return f"{self.path}: {', '.join(parts)}{pooled}"

    def _first(self, role: str, names: Sequence[str]) -> str | None:
        return self.chosen.get(role) or next((name for name in names if name in self.there), None)

    def _survey(self) -> None:
        """Reads columns that may be keys or verdicts, hashing or counting them; reads no answers."""
        names = [] if self.counts_only else columns.verdict_names(self.there, self._metrics())
        if "verdict" in self.chosen:
            names = [self.chosen["verdict"]]
        found = [Verdicts(name, not self.path.name.removesuffix(".gz").endswith(".csv")) for name in names]
        known = (*columns.KEYS, "filter", *self.chosen.values())
        keys = [name for name in dict.fromkeys(known) if name in self.there and name != self.chosen.get("verdict")]
        numbers = [name for name in ("seed", "n_tokens", *(COUNTS if self.counts_only else ())) if name in self.there]
        self.hashed, counted = columns.Hashed(keys), {name: [] for name in numbers}
        start = 0
        for batch in formats.batches(self.path, list(dict.fromkeys([*keys, *numbers, *names]))):
            for name in keys:
                self.hashed.add(name, self._strings(batch.column(name), name))
            for name in numbers:
                counted[name].append(self._numbers(batch.column(name), name, start))
            for one in found:
                one.add(batch.column(one.name))
            start += len(batch)
        if start == 0:
            raise LoadError(f"samples: {self.path} has no rows")
        self.rows = start
        self.numbers = {name: np.concatenate(parts) for name, parts in counted.items()}
        self._take_verdict(found)

    def _metrics(self) -> list[str]:
        """The names in lm-eval's column of metrics, which are columns of the same file."""
        first = formats.first(self.path, "metrics") if "metrics" in self.there else None
        return [name for name in first if isinstance(name, str)] if isinstance(first, list) else []

    def _take_verdict(self, found: Sequence[Verdicts]) -> None:
        self.sizes = self._right = None
        if self.counts_only:
            self._refuse_counts()
            return
        self._refuse_filters()
        agreeing, why = columns.choose(found, "verdict" in self.chosen)
        if why:
            raise LoadError(f"samples: {self.path}{', ' if why.startswith('column ') else ' '}{why}")
        if not agreeing:
            self._refuse_without("verdict", columns.VERDICTS)
        self.columns["verdict"], self.agreeing = agreeing[0].name, [one.name for one in agreeing[1:]]
        self._right, self.sizes = agreeing[0].values == 1, agreeing[0].sizes
        if self.sizes is not None and not self.sizes.all():
            row = int(np.flatnonzero(self.sizes == 0)[0]) + 1
            raise LoadError(f"samples: {self.path}, column {agreeing[0].name}, row {row}: holds no verdict")
        if self.columns.get("gold") == agreeing[0].name:
            del self.columns["gold"]

    def _find_benchmark(self) -> None:
        """Takes a column that is often something else only if its values group the problems."""
        if self.no_benchmark:
            return
        problem, name = self.columns["problem"], self._first("benchmark", columns.BENCHMARKS)
        problems = self.hashed.distinct(problem)
        for other in columns.PERHAPS_BENCHMARKS if name is None else ():
            if other in self.hashed and other != problem and self.hashed.distinct(problem, other) == problems:
                name = other if name is None and self.hashed.distinct(other) <= problems / 2 else name
        if name is not None:
            self.columns["benchmark"] = name

    def _find_sample(self) -> None:
        """A number that is constant within each problem and differs between problems does not number samples."""
        own, one = self._grouping(), self.counts_only or self.sizes is not None
        for name in [self.chosen["sample"]] if "sample" in self.chosen else columns.SAMPLES:
            if name not in self.hashed or name in own or one or not self.hashed[name].all():
                continue
            alike = self.hashed.distinct(*own, name) == self.hashed.distinct(*own)
            if "sample" in self.chosen or not alike or self.hashed.distinct(name) == 1:
                self.columns["sample"] = name
                return

    def _grouping(self) -> list[str]:
        """The columns whose cells together name a problem."""
        return list(dict.fromkeys(self.columns[role] for role in ("benchmark", "problem") if role in self.columns))

    def _refuse_without(self, what: str, known: Sequence[str]) -> None:
        hint = f"columns.{what}= names one"
        if what == "verdict":
            alike = columns.like_verdicts(next(formats.batches(self.path, self.there)))
            hint = " or ".join(f"columns.verdict={name}" for name in alike) or hint
        names = f"{', '.join(known)}); it has {', '.join(self.there)}; {hint}"
        raise LoadError(f"samples: {self.path} has no {what} column ({names}")

    def _refuse_counts(self) -> None:
        n, c = (self.numbers[name] for name in COUNTS)
        if len(odd := np.flatnonzero((n < 1) | (c < 0) | (c > n))):
            reason = f"c={c[odd[0]]:g} right answers of n={n[odd[0]]:g}; c must lie in 0..n"
            raise LoadError(f"samples: {self.path}, row {odd[0] + 1}: {reason}")

    def _refuse_blank(self, name: str) -> None:
        if len(at := np.flatnonzero(self.hashed[name] == 0)):
            cell = str(self.cells([name], at[:1])[name][0])
            raise LoadError(f"samples: {self.path}, column {name}, row {at[0] + 1}: {cell!r} names nothing")

    def _refuse_filters(self) -> None:
        if "filter" in self.hashed and (several := self.hashed.distinct("filter")) > 1:
            names = dict.fromkeys(self.cells(["filter"], np.arange(min(self.rows, formats.LOOKED_AT)))["filter"])
            reason = f"holds {several}, {', '.join(map(str, names))}, so each answer is there several times; keep one"
            raise LoadError(f"samples: {self.path}, column filter {reason}")

    def _refuse_gold(self) -> None:
        """Refuses a `label` that is the same for all samples of each problem: it may be the gold answer."""
        if self.columns.get("verdict") != "label" or "verdict" in self.chosen:
            return
        n, c = self.counted["n"], self.counted["c"]
        if (n > 1).any() and ((c == 0) | (c == n)).all() and 0 < c.sum() < n.sum():
            reason = "is the same in all samples of each problem, as a gold answer is; columns.verdict=label takes it"
            raise LoadError(f"samples: {self.path}, column label {reason}")

    def _refuse_steps(self) -> None:
        """Refuses answers of several checkpoints to the same problems, which stand in the file in blocks of steps."""
        name, own = next((name for name in columns.STEPS if name in self.hashed), None), self._grouping()
        self._steps = self.hashed.distinct(name) if name else 1
        if name is None or self._steps == 1:
            return
        self.columns["step"], step = name, self.hashed[name]
        blocks = int((step[1:] != step[:-1]).sum()) + 1
        if self._steps == blocks and self.hashed.distinct(*own, name) > self.hashed.distinct(*own):
            first, last = self.cells([name], np.array([0, self.rows - 1]))[name]
            reason = f"{self._steps} training steps, {first} to {last}, of the same problems; keep one of them"
            raise LoadError(f"samples: {self.path}, column {name} holds {reason}")

    def _refuse_repeats(self, key: np.ndarray) -> None:
        problem = self.columns["problem"]
        if "seed" in self.numbers:
            key = columns.mix(key, self.numbers["seed"].astype(np.int64).view(np.uint64))
        numbered = self.columns.get("sample")
        if numbered or self._right is None or self.sizes is not None:
            at = repeats.recurring(columns.mix(key, self.hashed[numbered]) if numbered else key)
            if at is not None:
                cells = self.cells([problem, *([numbered] if numbered else [])], np.array([at]))
                sample = f", sample {cells[numbered][0]}" if numbered else ""
                reason = f"{cells[problem][0]!r}{sample} is there more than once"
                raise LoadError(f"samples: {self.path}, column {problem}: {reason}")
            return
        if block := self._block(key, self._right):
            reason = f"the same {block} rows in the same order {self.rows // block} times"
            raise LoadError(f"samples: {self.path} holds {reason}; keep them once, or number them (columns.sample=)")

    def _block(self, key: np.ndarray, right: np.ndarray) -> int | None:
        """The size of the block of rows that the file repeats, or None; reads answers only if problems and verdicts repeat."""
        answers = right.astype(np.uint64)
        if repeats.period(columns.mix(key, answers)) is None:
            return None
        if text := self.columns.get("completion"):
            texts = (self._strings(batch.column(text), text) for batch in formats.batches(self.path, [text]))
            answers = columns.mix(answers, np.concatenate([columns.hashes(part) for part in texts]))
        block = repeats.period(columns.mix(key, answers))
        return block if block and repeats.is_repeat(key, answers, block) else None

    def _name(self, problems: int) -> None:
        """The texts of problems and benchmarks, read at the first row of each."""
        starts = np.zeros(problems, np.int64)
        starts[self._codes[::-1]] = np.arange(self.rows - 1, -1, -1)  # the last one written is the first row
        self._starts, names = starts, [self.columns[role] for role in ("problem", "benchmark") if role in self.columns]
        cells = self.cells(list(dict.fromkeys(names)), starts)
        self.problems = np.array(cells[self.columns["problem"]], object)
        found = cells.get(self.columns.get("benchmark", ""), [None] * len(starts))
        self.benchmarks = np.array([name or "samples" for name in found], object)

    def prompts(self, benchmark: str) -> dict[str, str]:
        """problem_id -> its text, of its first row; empty where the file has no texts."""
        name, mine = self.columns.get("prompt"), self.benchmarks == benchmark
        found = self.cells([name], self._starts[mine])[name] if name else []
        return dict(zip(self.problems[mine].tolist(), [text or "" for text in found], strict=False))

    def _count(self) -> pd.DataFrame:
        seeds, group = np.zeros(1, np.int64), self._codes
        if "seed" in self.numbers:
            codes, seeds = pd.factorize(self.numbers["seed"].astype(np.int64))
            group = codes * len(self.problems) + group
        found = pd.unique(group)  # in the order of the file
        cells = {"n": None, "c": self._right, "tokens": self.numbers.get("n_tokens")}
        if self.counts_only:
            cells |= {name: self.numbers[name] for name in COUNTS}
        else:
            group = self._per_sample(group)
            cells["tokens"] = None if cells["tokens"] is None else self._per_sample(cells["tokens"])
        sums = {name: columns.sums(group, own)[found] for name, own in cells.items()}
        if cells["tokens"] is None:
            sums["tokens"] = np.full(len(found), np.nan)
        at = found % len(self.problems)
        cells = {"seed": seeds[found // len(self.problems)], "problem_id": self.problems[at]}
        return pd.DataFrame({**cells, "benchmark": self.benchmarks[at], **sums}).astype({"n": np.int64, "c": np.int64})

    def _per_sample(self, cells: np.ndarray) -> np.ndarray:
        return cells if self.sizes is None else np.repeat(cells, self.sizes)

    def samples(self, problems: Collection[str] | None) -> pd.DataFrame:
        """seed, benchmark, problem_id, correct and row (of the file) of the samples of these problems; none of counts."""
        if self._right is None:
            return pd.DataFrame(columns=["seed", "benchmark", "problem_id", "correct", "row"])
        codes = self._per_sample(self._codes)
        wanted = np.ones(len(self.problems), bool) if problems is None else np.isin(self.problems, list(problems))
        at = np.flatnonzero(wanted[codes])
        row = at if self.sizes is None else np.repeat(np.arange(self.rows), self.sizes)[at]
        seed = self.numbers["seed"][row].astype(np.int64) if "seed" in self.numbers else 0
        cells = {"seed": seed, "benchmark": self.benchmarks[codes[at]], "problem_id": self.problems[codes[at]]}
        return pd.DataFrame({**cells, "correct": self._right[at], "row": row}, index=at)

    def cells(self, names: Sequence[str], at: np.ndarray) -> dict[str, list[Any]]:
        """Texts of these columns in these rows, ascending."""
        found, start = {name: [] for name in names}, 0
        for batch in formats.batches(self.path, names) if names and len(at) else ():
            first, last = np.searchsorted(at, [start, start + len(batch)])
            here = batch.take(pa.array(at[first:last] - start))
            start += len(batch)
            for name in names:
                found[name] += self._strings(here.column(name), name).to_pylist()
        return found

    def _numbers(self, column: pa.Array, name: str, start: int) -> np.ndarray:
        """(rows,) float64; nan where a length is missing."""
        found = self._cast(lambda cells: pc.cast(cells, pa.float64()), column, name).to_numpy(zero_copy_only=False)
        if name != "n_tokens" and len(odd := np.flatnonzero((np.floor(found) != found) | ~np.isfinite(found))):
            cell = self._strings(column, name)[int(odd[0])].as_py()
            reason = f"row {start + odd[0] + 1}: {str(cell)!r} is no whole number"
            raise LoadError(f"samples: {self.path}, column {name}, {reason}")
        return found

    def _strings(self, column: pa.Array, name: str) -> pa.Array:
        return self._cast(columns.strings, column, name)

    def _cast(self, cast: Callable[[pa.Array], pa.Array], column: pa.Array, name: str) -> pa.Array:
        try:
            return cast(column)
        except pa.ArrowException as error:
            raise LoadError(f"samples: {self.path}, column {name}: {' '.join(str(error).split())}") from error

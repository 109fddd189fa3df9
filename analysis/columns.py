"""Finds the role of each column of a sample file: by the names that tools use, then by what the columns hold.

A verdict is true, 1 or `passed`, or false, 0, -1 or `failed`; a column with anything else is not a verdict, whatever its name.
Names of gold answers are never looked at, and `label`, which some tools call the gold, only where it holds numbers and
there is no other candidate.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.samples import COUNTED, pc

IDS = ("problem_id", "question_id", "doc_id", "task_id", "unique_id", "example_id", "prompt_id", "problem_idx", "id")
RUN_IDS = ("uid",)  # verl makes them anew in every run: of use where no text names the problem
TEXTS = ("problem", "question", "prompt", "input", "instruction")
BENCHMARKS = ("benchmark", "data_source")
PERHAPS_BENCHMARKS = ("dataset", "task")  # where their values group problems
SAMPLES = ("sample_index", "sample_idx", "sample_id", "sample", "completion_index", "completion_id", "rollout_index")
STEPS = ("step", "global_step")
COUNTS = ("n", "c")
PROBLEMS = (*IDS, *RUN_IDS, *TEXTS)
KEYS = (*PROBLEMS, *BENCHMARKS, *PERHAPS_BENCHMARKS, *SAMPLES, *STEPS)
VERDICTS = ("correct", "is_correct", "passed", "acc", "exact_match", "outcome", "score", "reward", "result")
TOKENS_OF_VERDICTS = {"correct", "correctness", "corrects", "acc", "accuracy", "match", "verify", "verdict", "verdicts", "pass",
                      "passed", "passes", "score", "scores", "reward", "rewards", "success", "solved", "status", "graded",
                      "outcomes", "results"}  # fmt: skip
NOT_VERDICTS = {"answer", "answers", "option", "choice", "index", "idx", "id", "label", "count", "num", "n", "model", "type",
                "name", "rate", "mean", "std", "stderr", "time", "threshold", "ratio"}  # fmt: skip
OF_THE_FORM = {"format", "status", "length", "len", "bonus", "penalty", "tag", "tags", "style", "language"}
RIGHT = {"true", "correct", "right", "pass", "passed", "success"}
WRONG = {"false", "incorrect", "wrong", "fail", "failed", "failure", "timeout", "timed out", "unparsed", "error"}
PART = 1 << 22  # rows that are summed at once
GAP, ODD = -1, -2  # no verdict stands there; something stands there that is none


def verdict_names(names: Sequence[str], metrics: Sequence[str] = ()) -> list[str]:
    """Columns that may hold verdicts, most likely first; `metrics` are those that lm-eval's rows name."""
    if set(COUNTED) <= set(names):  # our own files, whose rewards may hold more than the verdict
        return ["outcome"]
    found = [name for name in (*VERDICTS, *metrics) if name in names]
    found += [name for name in names if (tokens := _tokens(name)) & TOKENS_OF_VERDICTS and not tokens & NOT_VERDICTS]
    if {"prompt", "completion", "advantage"} <= set(names):  # TRL names a column after each reward function
        found += [name for name in names if name not in ("prompt", "completion", "advantage", *STEPS, *IDS)]
    return list(dict.fromkeys([*found, *(["label"] if "label" in names else [])]))


def _tokens(name: str) -> set[str]:
    """`isCorrect`, `is_correct` and `is-correct` are two words."""
    return {*re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())}


class Verdicts:
    """The verdict of one column on each sample.

    Attributes:
        odd: row (from 1) and text of the first cell that holds no verdict, None where all do.
        strange: whether some cell holds something other than a verdict; the rest is then not read.
        numbers: whether verdicts are numbers or booleans, as far as the kind of file tells.
    """

    def __init__(self, name: str, typed: bool):
        self.name, self.odd, self.strange, self.numbers = name, None, False, True
        self.rows, self._parts, self._sizes, self._typed = 0, [], [], typed

    def add(self, column: pa.Array) -> None:
        """The next batch of rows, of any type; lists hold the verdicts of several samples."""
        if self.strange:
            return
        cells, sizes = _unlisted(column)
        self.numbers &= not self._typed or any(
            is_it(cells.type)
            for is_it in (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_null)
        )
        coded = strings(cells).dictionary_encode()
        known = np.array([_verdict(word) for word in coded.dictionary.to_pylist()] + [GAP], np.int8)
        values = known[coded.indices.fill_null(len(known) - 1).to_numpy(zero_copy_only=False)]
        if sizes is not None or self._sizes:
            sizes = np.ones(len(column), np.int64) if sizes is None else sizes
            self._sizes = self._sizes or [np.ones(self.rows, np.int64)]
            self._sizes.append(sizes)
        if len(at := np.flatnonzero(values == ODD)) or (self.odd is None and len(at := np.flatnonzero(values == GAP))):
            row = int(at[0]) if sizes is None else int(np.searchsorted(np.cumsum(sizes), at[0], side="right"))
            self.odd = (self.rows + row + 1, repr(str(strings(cells)[int(at[0])].as_py())[:60]))
            self.strange = values[at[0]] == ODD
        self.rows += len(column)
        self._parts.append(values)

    @property
    def values(self) -> np.ndarray:
        """(samples,) int8: 1 right, 0 wrong, GAP."""
        return np.concatenate(self._parts)

    @property
    def sizes(self) -> np.ndarray | None:
        """(rows,) samples of each row; None where a row is a sample."""
        return np.concatenate(self._sizes) if self._sizes else None

    @property
    def usable(self) -> bool:
        return not self.strange and bool((self.values != GAP).any())

    def same(self, other: "Verdicts") -> bool:
        """Whether both columns agree on every sample."""
        return np.array_equal(self.values, other.values)

    def summary(self) -> str:
        """The name with the share that is right."""
        values = self.values
        return f"{self.name} (mean {values[values != GAP].mean():.3f})"


def like_verdicts(batch: pa.RecordBatch) -> list[str]:
    """Columns of true and false: verdicts in all but name."""
    return [
        name for name, cells in zip(batch.schema.names, batch.columns, strict=True) if pa.types.is_boolean(cells.type)
    ]


def choose(found: Sequence[Verdicts], named: bool) -> tuple[list[Verdicts], str | None]:
    """The verdict column and others that agree with it in every row; or none, and why.

    Args:
        found: what may be one, most likely first.
        named: whether the reader chose it.
    """
    if not named:
        rest = [one for one in found if one.name != "label"]
        better = [one for one in rest if one.usable or (one.strange and one.numbers)]
        found = better or [one for one in found if one.name == "label" and one.numbers] or rest
    usable = [one for one in found if one.usable]
    if odd := [one for one in usable[:1] or found if one.odd]:
        row, word = odd[0].odd or (0, "")
        more = f", nor do {', '.join(one.name for one in odd[1:])} hold verdicts" if odd[1:] else ""
        return [], f"column {odd[0].name}, row {row}: {word} is neither right (1) nor wrong (0){more}"
    # A reward for the form of an answer holds nothing but verdicts too: it must not stand in for a score that does not.
    scored = [one for one in found if one.strange and one.numbers and one.odd]
    if not named and usable and scored and _tokens(usable[0].name) & OF_THE_FORM:
        row, word = scored[0].odd or (0, "")
        message = f"column {scored[0].name}, row {row}: {word} is neither right (1) nor wrong (0)"
        return [], f"{message}; columns.verdict={usable[0].name} takes another"
    unlike = [one for one in usable[1:] if not one.same(usable[0])]
    if unlike:
        names = " or ".join(f"columns.verdict={one.name}" for one in (usable[0], *unlike))
        message = " and ".join(one.summary() for one in (usable[0], *unlike))
        return [], f"holds verdicts that differ: {message}; choose {names}"
    return usable, None


def _verdict(word: str | None) -> int:
    word = (word or "").strip().lower()
    if nested := re.fullmatch(r'\{"[^"]*": ([^,:{}]+)\}', word):  # lm-eval nests its metrics in some versions
        word = str(nested[1])
    if word in ("", "nan", "none", "null"):
        return GAP
    if word in RIGHT or word in WRONG or word.startswith("failed:"):
        return int(word in RIGHT)
    try:
        return {1.0: 1, 0.0: 0, -1.0: 0}.get(float(word), ODD)
    except ValueError:
        return ODD


def _unlisted(column: pa.Array) -> tuple[pa.Array, np.ndarray | None]:
    """The cells of a column of lists, one after the other, and how many each row has; other columns as they are."""
    if pa.types.is_large_string(column.type) or pa.types.is_dictionary(column.type):
        column = pc.cast(column, pa.string())
    if pa.types.is_string(column.type) and pc.any(pc.starts_with(column, "[")).as_py():
        lists = [_as_list(word) for word in column.to_pylist()]
        flat = [None if v is None else v if isinstance(v, str) else json.dumps(v) for values in lists for v in values]
        return pa.array(flat, pa.string()), np.array([len(values) for values in lists], np.int64)
    if not any(is_it(column.type) for is_it in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
        return column, None
    sizes = pc.list_value_length(column).fill_null(0)
    return pc.list_flatten(column), sizes.to_numpy(zero_copy_only=False).astype(np.int64)


def _as_list(word: str | None) -> list[Any]:
    try:
        found = json.loads(word.lower()) if word else word
    except (ValueError, RecursionError):
        return [word]
    return found if isinstance(found, list) else [word]


def strings(column: pa.Array) -> pa.Array:
    """Text of any column: chat messages and other nested values as JSON. Raises pa.ArrowException."""
    if pa.types.is_nested(column.type):
        return pa.array([None if v is None else json.dumps(v, default=str) for v in column.to_pylist()], pa.string())
    return pc.cast(column, pa.string())


def hashes(words: pa.Array) -> np.ndarray:
    """(rows,) uint64: equal where texts are; 0 where there is none.

    Of a million texts two are taken for one with a chance of 3e-8.
    """
    coded = words.dictionary_encode()
    known = np.append(
        pd.util.hash_array(coded.dictionary.to_numpy(zero_copy_only=False), categorize=False), np.uint64(0)
    )
    known[:-1][pc.equal(coded.dictionary, "").to_numpy(zero_copy_only=False)] = 0
    return known[coded.indices.fill_null(len(known) - 1).to_numpy(zero_copy_only=False)]


class Hashed(Mapping[str, np.ndarray]):
    """Column -> (rows,) uint64, equal where cells are; 0 where there is none.

    A batch is kept as its distinct hashes and where they stand, a few bytes a row, and laid out when it is looked at.
    """

    def __init__(self, names: Sequence[str]):
        self._parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in names}

    def add(self, name: str, words: pa.Array) -> None:
        """The next batch of a column."""
        codes, known = pd.factorize(hashes(words))
        self._parts[name].append((known, codes.astype(np.min_scalar_type(len(known)))))

    def distinct(self, *names: str | None) -> int:
        """The number of distinct rows in these columns; None stands for no column."""
        columns = [self._parts[name] for name in dict.fromkeys(names) if name is not None]
        found = np.concatenate(
            [pd.unique(reduce(mix, [known[codes] for known, codes in cells])) for cells in zip(*columns, strict=True)]
        )
        return distinct(found)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.concatenate([known[codes] for known, codes in self._parts[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def mix(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(rows,) uint64: a hash of pairs of hashes."""
    mixed = first >> np.uint64(29)
    mixed ^= first
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    mixed += second
    return mixed


def distinct(hashed: np.ndarray) -> int:
    """The number of distinct values; sorts in place, because a hash table of them would take ten times the memory."""
    hashed.sort()
    return int((hashed[1:] != hashed[:-1]).sum()) + bool(len(hashed))


def problem_names(hashed: Hashed, rows: int, benchmark: str | None, per_problem: bool) -> list[str]:
    """Columns that may name problems, most likely first; a row is a problem where `per_problem`.

    An id is left out where texts of problems recur and it is another in every row, as a number of the answer is, or the same
    for several texts, as a place in a batch is.
    """
    ids, texts = [name for name in (*IDS, *RUN_IDS) if name in hashed], [name for name in TEXTS if name in hashed][:1]
    sizes = {name: hashed.distinct(name) for name in (*ids, *texts)}
    if per_problem:
        return [*ids, *texts]
    for text in texts:
        if 1 < sizes[text] <= rows / 2:
            ids = [name for name in ids if sizes[name] < rows
                   and hashed.distinct(benchmark, name, text) == hashed.distinct(benchmark, name)]  # fmt: skip
    ids = [name for name in ids if sizes[name] < rows] or ids
    last = [name for name in ids if name in RUN_IDS and any(sizes[text] > 1 for text in texts)]
    return [*(name for name in ids if name not in last), *texts, *last]


def sums(group: np.ndarray, cells: np.ndarray | None) -> np.ndarray:
    """(groups,) the sum of cells of each group, or its size; a part at a time, since `bincount` copies what it is given."""
    totals = np.zeros(int(group.max()) + 1)
    for at in range(0, len(group), PART):
        part = slice(at, at + PART)
        totals += np.bincount(group[part], None if cells is None else cells[part], minlength=len(totals))
    return totals

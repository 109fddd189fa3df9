"""Sample files of other tools as a `Study`: JSON lines, CSV or parquet, one row per sample. It knows names of columns only.

The first of these columns that a file has is taken (others are ignored):

    problem    problem_id question_id doc_id id uid, else the text of problem question prompt input
    verdict    correct is_correct acc label exact_match score reward outcome: true, 1, 1.0 or `correct` is correct
    benchmark  benchmark data_source task; seed: seed; text: completion output response generation; answer: extracted pred

which covers verl's rollout dumps (input, output, score), lm-eval's sample logs (doc_id, exact_match) and NGRPO's files
(question_id, label).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from analysis.load import LoadError, Study, study_of

PROBLEM = ("problem_id", "question_id", "doc_id", "id", "uid", "problem", "question", "prompt", "input")
VERDICT = ("correct", "is_correct", "acc", "label", "exact_match", "score", "reward", "outcome")
BENCHMARK = ("benchmark", "data_source", "task")
TEXT = ("completion", "output", "response", "generation")
ANSWER = ("extracted", "pred", "answer")
RIGHT, WRONG = (
    {"1", "1.0", "true", "correct"},
    {"0", "0.0", "-1", "-1.0", "false", "wrong", "unparsed", "timeout", "error"},
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
        frame = _normal(_read(Path(place)), Path(place))
        if seed and not seed.isdigit():
            raise LoadError(f"samples={text}: the seed after / must be a whole number")
        frame["seed"] = int(seed) if seed else frame["seed"]
        for number, part in frame.groupby("seed", sort=True):
            runs.append(_run(arm, int(str(number)), part, place))
    return study_of(runs, [])


def _run(arm: str, seed: int, frame: pd.DataFrame, place: str) -> dict:
    files = {str(name): part.reset_index(drop=True) for name, part in frame.groupby("benchmark", sort=False)}
    run = {"run": f"{arm}-s{seed}", "path": place, "arm": arm, "exploration": arm, "algorithm": "", "seed": seed}
    return run | {"config": {}, "wall_seconds": None, "step": 0, "files": files, "metrics": None, "timings": None}


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise LoadError(f"samples: {path} is no file")
    readers = {
        ".parquet": pd.read_parquet,
        ".csv": lambda p: pd.read_csv(p, dtype=str, keep_default_na=False),  # "007" and "None" are answers
        ".jsonl": lambda p: pd.read_json(p, lines=True, dtype=False),
        ".json": lambda p: pd.read_json(p, dtype=False),
    }
    if path.suffix not in readers:
        raise LoadError(f"samples: {path} must end in {', '.join(readers)}")
    try:
        frame = readers[path.suffix](path)
    except (ValueError, OSError) as error:
        raise LoadError(f"samples: {path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if frame.empty:
        raise LoadError(f"samples: {path} has no rows")
    return frame


def _normal(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The columns of our own sample files, as far as there are any."""

    def first(names: Sequence[str]) -> str | None:
        return next((name for name in names if name in frame), None)

    problem, verdict = first(PROBLEM), first(VERDICT)
    if problem is None or verdict is None:
        missing, names = ("problem", PROBLEM) if problem is None else ("verdict", VERDICT)
        raise LoadError(
            f"samples: {path} has no {missing} column ({', '.join(names)}); it has {', '.join(frame.columns)}"
        )
    words = frame[verdict].map(_word)
    odd = words[~words.isin(RIGHT | WRONG)]
    if len(odd):
        row, found = odd.index[0] + 1, str(frame[verdict].iloc[odd.index[0]])[:60]
        raise LoadError(f"samples: {path}, column {verdict}, row {row}: {found!r} is neither right (1) nor wrong (0)")
    texts = frame[name].astype(str) if (name := first(TEXT)) else pd.Series("", index=frame.index)
    tokens = texts.str.split()
    known: dict[str, int] = {}
    made = {
        "benchmark": frame[name].astype(str) if (name := first(BENCHMARK)) else "samples",
        "problem_id": frame[problem].astype(str),
        "seed": pd.to_numeric(frame["seed"]) if "seed" in frame else 0,
        "outcome": words.isin(RIGHT).map({True: "correct", False: "wrong"}),
        "prompt": frame[name].astype(str) if (name := first(PROBLEM[-4:])) else "",
        "gold": frame[name].astype(str) if (name := first(("gold", "target", "gts"))) else "",
        "completion": texts,
        "extracted": frame[name].astype(str) if (name := first(ANSWER)) else None,
        "solution_path": "",
        "n_tokens": pd.to_numeric(frame["n_tokens"]) if "n_tokens" in frame else tokens.str.len(),
        "token_ids": tokens.map(lambda row: [known.setdefault(word, len(known)) for word in row]),
        "entropy_mean": float("nan"),
        "explored_steps": 0,
    }
    tidy = pd.DataFrame(made)
    keys = ["benchmark", "seed", "problem_id"]
    tidy["sample_index"] = frame["sample_index"] if "sample_index" in frame else tidy.groupby(keys).cumcount()
    twice = tidy[tidy.duplicated([*keys, "sample_index"])]
    if len(twice):
        row = twice.iloc[0]
        raise LoadError(
            f"samples: {path}, column {problem}: {row['problem_id']!r}, sample {row['sample_index']} is there more than once"
        )
    return tidy


def _word(value: object) -> str:
    if isinstance(value, Mapping):  # lm-eval nests its metrics in some versions
        value = next(iter(value.values()), None)
    return str(value).strip().lower()

"""How much room for exploration an untrained model has, from its samples: estimates per strategy and paired comparisons.

It reads the directory that diagnose.py wrote.

P problems, n samples of each, G the group size of the training that is planned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from analysis.fairness import PLAIN, as_uncertain, controls
from analysis.intervals import Array
from analysis.load import LoadError
from analysis.statistics import false_discovery, paired
from ngrpo.evaluation import passk
from ngrpo.rundir.schema import READING, read_run

COLUMNS = ("problem_id", "sample_index", "outcome", "finish_reason", "extracted", "solution_path", "token_ids", "n_tokens",
           "explored_steps", "reward")  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """The answers of one strategy, a row per problem and a column per sample, all (P, n).

    correct, malformed (no answer could be read, or cut off), unparsed, cut: bool. texts, paths, finals: what stands for the
    wording, the way to the solution ("" where the task tells none) and the final answer ("" where there is none).
    """

    correct: np.ndarray
    unparsed: np.ndarray
    cut: np.ndarray
    texts: np.ndarray
    paths: np.ndarray
    finals: np.ndarray
    tokens: int
    explored: int
    seconds: float
    graded: bool  # rewards that are more than right or wrong

    @property
    def malformed(self) -> np.ndarray:
        return self.unparsed | self.cut

    @property
    def solved(self) -> np.ndarray:
        """(P,) correct answers to each problem."""
        return self.correct.sum(axis=1)


@dataclass(frozen=True)
class Sampled:
    """Everything that was sampled: strategy -> answers, explored steps as a frame, the configuration, the task's name.

    compositions: strategy -> what it was built from.
    """

    answers: Mapping[str, Answers]
    steps: pd.DataFrame
    config: Mapping[str, Any]
    compositions: Mapping[str, Mapping[str, Any]]
    task: str = ""

    @property
    def baseline(self) -> Answers:
        return self.answers[PLAIN]


def read(directory: Path) -> Sampled:
    """Reads the output of diagnose.py. Raises LoadError if it is incomplete."""
    try:
        record = read_run(directory)
        times = pd.read_csv(directory / "timings.csv").groupby("strategy")["seconds"].sum()
        steps = pq.read_table(directory / "steps.parquet").to_pandas()
        paths = {name: directory / "samples" / f"{name}.parquet" for name in record.config["strategies"]}
        answers = {name: _answers(path, float(times[name])) for name, path in paths.items()}
        task = str(pq.read_table(paths[PLAIN], columns=["benchmark"])["benchmark"][0])
    except (OSError, LookupError, ValueError) as error:
        raise LoadError(f"{directory}: is no finished diagnosis ({' '.join(str(error).split())})") from error
    return Sampled(answers, steps, record.config, record.content.get("compositions", {}), task)


def _answers(path: Path, seconds: float) -> Answers:
    frame = pq.read_table(path, columns=list(COLUMNS)).to_pandas()
    problems, n = frame["problem_id"].nunique(), int(frame["sample_index"].max()) + 1
    if len(frame) != problems * n:
        raise LoadError(f"{path}: has {len(frame)} rows, expected {problems} problems x {n} samples")

    def wide(values: Any) -> np.ndarray:
        return np.asarray(values).reshape(problems, n)

    correct = frame["outcome"] == "correct"
    return Answers(
        correct=wide(correct),
        unparsed=wide(frame["outcome"] == "unparsed"),
        cut=wide(frame["finish_reason"] == "length"),
        texts=wide([np.asarray(ids).tobytes() for ids in frame["token_ids"]]),
        paths=wide(frame["solution_path"].mask(frame["solution_path"].str.startswith(READING, na=True), "")),
        finals=wide(frame["extracted"].fillna("")),
        tokens=int(frame["n_tokens"].sum()),
        explored=int(frame["explored_steps"].sum()),
        seconds=seconds,
        graded=bool((frame["reward"] != correct.astype(float)).any()),
    )


@dataclass(frozen=True)
class Diagnosis:
    """The frames of a page, shares in percent.

    Attributes:
        arms: a row per strategy; estimates as name, name_low and name_high.
        pairs: a row per strategy and what it is paired with: the difference of mean@n with interval and p, problems won,
            tied and lost, the 2 x 2 table of problems solved at least once, answers broken and mended, and the change of
            the share of malformed ones. p values are adjusted over the rows (Benjamini-Hochberg).
    """

    sampled: Sampled
    arms: pd.DataFrame
    pairs: pd.DataFrame

    @cached_property
    def figures(self) -> dict[str, Any]:
        """The baseline's row."""
        return self.arms.set_index("strategy").loc[PLAIN].to_dict()


def diagnose(sampled: Sampled) -> Diagnosis:
    """Computes all figures of a page."""
    rows = [{"strategy": name, **_arm(sampled, name)} for name in sampled.answers]
    return Diagnosis(sampled, pd.DataFrame(rows), _pairs(sampled))


def group_shares(solved: Sequence[int] | np.ndarray, n: int, group: int) -> tuple[Array, Array]:
    """(P,) chances that a group of G of the n samples of a problem is all right, and all wrong.

    Unbiased for groups of G fresh samples: C(c, G) / C(n, G) and C(n - c, G) / C(n, G), from c right ones.
    """
    every = comb(n, group)
    right = np.array([comb(int(c), group) / every for c in solved])
    wrong = np.array([comb(n - int(c), group) / every for c in solved])
    return right, wrong


def estimate(values: Array) -> tuple[float, float, float]:
    """Mean of (P,) shares in percent and its 95 % interval over problems, nan for one; see `passk.mean_interval`."""
    values = 100 * np.asarray(values, dtype=np.float64)
    low, high = passk.mean_interval(values, top=100)
    return float(values.mean()), float(low), float(high)


def distinct(values: np.ndarray, only: np.ndarray | None = None) -> Array:
    """(P,) the number of distinct nonempty texts in each row of (P, n), counting only cells where `only` is true."""
    kept = np.ones(values.shape, bool) if only is None else only
    return np.array([len({v for v in row[mask] if v != ""}) for row, mask in zip(values, kept, strict=True)], float)


def tells_paths(answers: Answers) -> bool:
    """Whether the task reports solution paths; otherwise different final answers stand for different paths."""
    return bool((answers.paths != "").any())


def _arm(sampled: Sampled, name: str) -> dict[str, Any]:
    answers, base = sampled.answers[name], sampled.baseline
    n, group = answers.correct.shape[1], int(sampled.config["group_size"])
    right, wrong = group_shares(answers.solved, n, group)
    mean, solved = answers.solved / n, passk.pass_at_k(n, answers.solved, n)
    shares = {"mean": mean, "pass_group": passk.pass_at_k(n, answers.solved, group), "pass": solved,
              "room": solved - mean, "all_right": right, "all_wrong": wrong, "mixed": 1 - right - wrong,
              "malformed": answers.malformed.mean(axis=1), "unparsed": answers.unparsed.mean(axis=1),
              "cut": answers.cut.mean(axis=1)}  # fmt: skip
    row: dict[str, Any] = {}
    for label, values in shares.items():
        row |= zip((label, f"{label}_low", f"{label}_high"), estimate(values), strict=True)
    ways = answers.paths if tells_paths(base) else answers.finals
    row |= {"texts": distinct(answers.texts).mean(), "ways": distinct(ways).mean()}
    some = answers.solved > 0
    row["right_ways"] = distinct(ways, answers.correct)[some].mean() if some.any() else np.nan
    speed, usual = answers.tokens / answers.seconds, base.tokens / base.seconds
    row |= {"tokens_per_answer": answers.tokens / answers.correct.size}
    row |= {"tokens_per_second": speed, "speed": speed / usual}
    row["explored"] = 100 * answers.explored / answers.tokens
    return row | _moved(sampled.steps, name)


def _moved(steps: pd.DataFrame, name: str) -> dict[str, float]:
    own = steps[steps["strategy"] == name] if "strategy" in steps else steps
    if own.empty:
        return dict.fromkeys(("displacement", "cosine", "changed", "next_changed", "next_kl"), np.nan)
    found = {"displacement": own["displacement"].mean(), "cosine": own["cosine"].mean()}
    found |= {"changed": 100 * (own["nearest"] != own["anchor"]).mean()}
    if "next_kl" not in own:  # older diagnoses did not look at it
        return found | {"next_changed": np.nan, "next_kl": np.nan}
    return found | {"next_changed": 100 * own["next_changed"].mean(), "next_kl": own["next_kl"].mean()}


def _pairs(sampled: Sampled) -> pd.DataFrame:
    matches = [(name, PLAIN) for name in sampled.answers if name != PLAIN]
    controlled = (controls(sampled.compositions), as_uncertain(sampled.compositions))
    matches += [pair for pairs in controlled for pair in pairs.items() if pair[1] != PLAIN]
    found = sampled.answers
    frame = pd.DataFrame([{"strategy": a, "against": b, **_pair(found[a], found[b])} for a, b in matches])
    for name in ("p", "p_only") if len(frame) else ():
        frame[name] = false_discovery(frame[name].to_list())
    return frame


def _pair(answers: Answers, other: Answers) -> dict[str, Any]:
    n = answers.correct.shape[1]
    before, after = (100 * sample.malformed.mean(axis=1) for sample in (other, answers))
    low, high = passk.paired_interval(before, after, top=100)
    return {
        **vars(paired(100 * other.solved / n, 100 * answers.solved / n, top=100)),
        "broken": int((answers.malformed & ~other.malformed).sum()),
        "mended": int((~answers.malformed & other.malformed).sum()),
        "answers": int(answers.malformed.size),
        "valid": int((~other.malformed).sum()),
        "ill_change": float((after - before).mean()),
        "ill_low": float(low),
        "ill_high": float(high),
    }

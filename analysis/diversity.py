"""How diverse the answers to one problem are, and how far exploration moved the inputs, from samples alone.

Groups are the samples of one problem under one training seed. Quantities over pairs are taken over a few pairs per group,
drawn with fixed random numbers, and over at most LONGEST tokens of an answer.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from analysis.load import UNTRAINED, Study
from analysis.tables import Cell, Table, number, words
from ngrpo.rundir.schema import READING

LONGEST = 512  # tokens of an answer that enter edit distances and n-grams
GROUPS = 60  # groups per method and benchmark that are compared token by token
PAIRS = 2  # of answers of a group
CLOSE = 0.95  # cosine to the anchor below which N-GRPO's appendix E counts a mixed vector as displaced
COLUMNS = ("problem_id", "extracted", "solution_path", "outcome", "token_ids", "entropy_mean", "explored_steps",
           "n_tokens")  # fmt: skip


def tables(study: Study) -> list[Table]:
    """Diversity of the evaluation samples, the course of training, and the fed vectors, each if there is data for it."""
    built = [_answers(study), _training(study), _drift(study)]
    return [table for table in built if table.rows]


def distinct_n(groups: Sequence[Sequence[int]], n: int = 2) -> float:
    """Distinct n-grams of the texts over all their n-grams (Li et al. 2016, arXiv 1510.03055); nan without any."""
    grams = [tuple(text[i : i + n]) for text in groups for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else np.nan


def edit_distance(first: Sequence[int], second: Sequence[int]) -> int:
    """Levenshtein distance of two token sequences: a row of the table at a time, linear memory."""
    a, b = np.asarray(first), np.asarray(second)
    row = np.arange(len(b) + 1)
    for i, token in enumerate(a, start=1):
        straight = np.minimum(row[1:] + 1, row[:-1] + (b != token))
        # Insertions run along the row: the minimum over all cells to the left, each one dearer by its distance.
        ahead = np.concatenate(([i], straight)) - np.arange(len(b) + 1)
        row = np.minimum.accumulate(ahead) + np.arange(len(b) + 1)
    return int(row[-1])


def bleu(text: Sequence[int], others: Sequence[Sequence[int]], longest: int = 4) -> float:
    """BLEU of one text against others (Papineni et al. 2002), add-one smoothed above unigrams (Lin and Och 2004).

    Self-BLEU (Zhu et al. 2018, arXiv 1802.01886) is its mean over the texts of a group, each against the rest.
    """
    if not text or not others:
        return np.nan
    logs = []
    for n in range(1, longest + 1):
        mine = Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
        most: Counter = Counter()
        for other in others:
            most |= Counter(tuple(other[i : i + n]) for i in range(len(other) - n + 1))
        hits, total, smooth = sum((mine & most).values()), sum(mine.values()), int(n > 1)
        if hits + smooth == 0:
            return 0.0
        logs.append(np.log((hits + smooth) / (total + smooth)))
    nearest = min((abs(len(other) - len(text)), len(other)) for other in others)[1]
    brevity = min(0.0, 1 - nearest / len(text))
    return float(np.exp(brevity + np.mean(logs)))


def of_group(texts: Sequence[Sequence[int]], generator: np.random.Generator) -> tuple[float, float, float]:
    """(distinct-2, mean edit distance per token of the longer text, self-BLEU) of one group."""
    texts = [list(text[:LONGEST]) for text in texts]
    distances, scores = [], []
    for _ in range(PAIRS):
        i, j = generator.choice(len(texts), size=2, replace=False)
        distances.append(edit_distance(texts[i], texts[j]) / max(len(texts[i]), len(texts[j]), 1))
        others = generator.permutation([at for at in range(len(texts)) if at != i])[:7]
        scores.append(bleu(texts[i], [texts[at] for at in others]))
    return distinct_n(texts), float(np.mean(distances)), float(np.mean(scores))


def _answers(study: Study) -> Table:
    heads = ["method", "benchmark", "distinct answers", "distinct right paths", "distinct-2", "edit distance", "self-BLEU",
             "entropy", "explored steps", "tokens"]  # fmt: skip
    rows = []
    for benchmark in study.benchmarks:
        for arm in study.arms:
            frame = _samples(study, arm, benchmark)
            if frame is None:
                continue
            groups = frame.groupby(["seed", "problem_id"], sort=False)
            n = groups.size().iloc[0]
            answers = groups["extracted"].nunique().mean()
            ways = frame["solution_path"].fillna("")
            right = frame[(frame["outcome"] == "correct") & (ways != "") & ~ways.str.startswith(READING)]
            paths = right.groupby(["seed", "problem_id"])["solution_path"].nunique()
            cells = [*words(arm, benchmark), number(answers, 2), number(paths.mean() if len(paths) else np.nan, 2)]
            entropy, share = frame["entropy_mean"].mean(), (frame["explored_steps"] / frame["n_tokens"]).mean()
            if n > 1:
                generator = np.random.default_rng(0)
                chosen = generator.permutation(len(groups))[:GROUPS]
                texts = groups["token_ids"].agg(list).to_numpy()
                figures = np.mean([of_group(texts[at], generator) for at in chosen], axis=0)
            else:
                figures = [np.nan] * 3
            rows.append([*cells, *(number(value, 3) for value in figures), number(entropy, 3), number(share, 3),
                         number(frame["n_tokens"].mean(), 1)])  # fmt: skip
    note = (f"per problem and seed over its samples; distinct-2, normalized token edit distance and self-BLEU over {GROUPS} "
            f"groups and {PAIRS} pairs in each, the first {LONGEST} tokens; entropy in nats per token")  # fmt: skip
    return Table("diversity", "Diversity of the evaluated answers", heads, rows, note)


def _samples(study: Study, arm: str, benchmark: str) -> pd.DataFrame | None:
    try:
        frame = study.samples(arm, benchmark, COLUMNS)
    except (OSError, KeyError, ValueError):  # samples of another tool, which lack what this table is made of
        return None
    return None if frame.empty or "token_ids" not in frame else frame


def _training(study: Study) -> Table:
    known = ("reward", "informative", "distinct", "entropy", "explored", "displacement", "length")
    names = [name for name in known if name in study.metrics]
    rows = []
    for arm, part in study.metrics.groupby("arm", sort=False) if names else ():
        last = part["step"].max()
        early, late = part[part["step"] <= max(1, last // 10)], part[part["step"] > last - max(1, last // 10)]
        cells = [Cell(f"{early[n].mean():.2f} → {late[n].mean():.2f}", late[n].mean()) for n in names]
        rows.append([Cell(str(arm)), *cells])
    note = "of the training rollouts, first and last tenth of the RL steps; informative: groups of unequal rewards"
    return Table("training", "Over training", ["method", *names], rows, note)


def _drift(study: Study) -> Table:
    rows = []
    for arm in study.arms:
        steps = steps_of(study, arm)
        if steps is None:
            continue
        moved = (steps["nearest"] != steps["anchor"]).mean()
        cosine = steps["cosine"]
        cells = [number(len(steps), 0), number(cosine.mean(), 4), number(cosine.min(), 3)]
        shares = [(cosine < CLOSE).mean(), steps["displacement"].mean(), moved]
        rows.append([Cell(arm), *cells, *(number(share, 3) for share in shares)])
    heads = ["method", "steps", "mean cosine", "least cosine", f"share below {CLOSE}", "displacement",
             "nearest token changed"]  # fmt: skip
    note = ("explored steps that samples/steps.parquet keeps: cosine of the fed vector to its anchor (N-GRPO, appendix E), its "
            "distance in units of the anchor's length, and how often the nearest token is no longer the anchor")  # fmt: skip
    return Table("drift", "What exploration fed", heads, rows, note)


def steps_of(study: Study, arm: str) -> pd.DataFrame | None:
    """Explored decode steps of all seeds of an arm; None if no run kept any."""
    paths = [Path(run.path, "samples", "steps.parquet") for run in study.runs[study.runs["arm"] == arm].itertuples()]
    parts = [pq.read_table(path).to_pandas() for path in paths if arm != UNTRAINED and path.exists()]
    return pd.concat(parts, ignore_index=True) if parts else None

"""Renders a diagnosis, its recommendation and its tables, for the terminal, as Markdown and as CSV."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import neighbors, tables
from analysis.diagnosis import Diagnosis, tells_paths
from analysis.fairness import PLAIN
from analysis.recommendation import recommend
from analysis.tables import Cell, Table, estimate, number, p_value, words

PAGE, NUMBERS, PAIRS = "diagnose.md", "diagnose.csv", "diagnose_pairs.csv"


def files_of(diagnosis: Diagnosis, directory: Path) -> dict[str, bytes]:
    """File name -> content of everything written beside the samples, the page last."""
    files = {NUMBERS: _csv(diagnosis.arms), PAIRS: _csv(diagnosis.pairs)}
    every_table = [*page_tables(diagnosis), *neighbors.tables([neighbors.read(directory)])]
    parts = [f"# Is exploration the bottleneck of {_subject(diagnosis)}?", ""]
    answer = recommend(diagnosis)
    parts += [f"**{answer.head}**", "", *(f"- {line}" for line in answer.lines)]
    parts += ["", *(line for table in every_table for line in (tables.markdown(table), ""))]
    return files | {PAGE: ("\n".join(parts) + "\n").encode()}


def terminal(diagnosis: Diagnosis, directory: Path) -> str:
    """The page without the neighbors, then the path of the page."""
    bodies = [tables.terminal(table) for table in page_tables(diagnosis)]
    answer = recommend(diagnosis)
    head = ["", _subject(diagnosis), "", answer.head, "", *(f"- {line}" for line in answer.lines), ""]
    return "\n".join([*head, *bodies, str(directory / PAGE)])


def page_tables(diagnosis: Diagnosis) -> list[Table]:
    """Head room, variety, inputs and pairs."""
    built = [_room(diagnosis), _variety(diagnosis), _inputs(diagnosis), _pairs(diagnosis)]
    return [table for table in built if table.rows]


def _subject(diagnosis: Diagnosis) -> str:
    config, base = diagnosis.sampled.config, diagnosis.sampled.baseline
    problems, n = base.correct.shape
    sizes = f"{problems} problems x {n} answers"
    return f"{config['model']['path']} on {diagnosis.sampled.task} ({sizes}, temperature {config['temperature']:g})"


def _room(diagnosis: Diagnosis) -> Table:
    group, n = diagnosis.sampled.config["group_size"], diagnosis.sampled.baseline.correct.shape[1]
    heads = {"mean": f"mean@{n}"} | ({"pass_group": f"pass@{group}"} if group < n else {})
    heads |= {"pass": f"pass@{n}", "room": "head room", "all_right": "all right", "mixed": "mixed", "all_wrong": "all wrong",
              "malformed": "not well-formed"}  # fmt: skip
    rows = [
        [Cell(row["strategy"]), *(estimate(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in heads)]
        for row in _rows(diagnosis.arms)
    ]
    note = (
        f"in % with 95 % intervals over problems; unbiased pass@k; head room: pass@{n} minus mean@{n}; all right, mixed "
        f"and all wrong: shares of groups of {group}, unbiased from {n} samples; not well-formed: no answer that can be "
        "read, or cut off"
    )
    return Table("room", "Head room and groups", ["strategy", *heads.values()], rows, note)


def _variety(diagnosis: Diagnosis) -> Table:
    sampled = diagnosis.sampled
    n = sampled.baseline.correct.shape[1]
    known = tells_paths(sampled.baseline)
    ways = "solution paths" if known else "final answers"
    heads = ["strategy", "different texts", f"different {ways}", f"right {ways}", "ways per text", "tokens per answer",
             "tokens/s", "speed"]  # fmt: skip
    rows = [
        [Cell(r["strategy"]), number(r["texts"], 1), number(r["ways"], 1), number(r["right_ways"], 1),
         number(r["ways"] / r["texts"], 2), number(r["tokens_per_answer"], 0), number(r["tokens_per_second"], 0),
         number(r["speed"], 2, "x")]
        for r in _rows(diagnosis.arms)
    ]  # fmt: skip
    note = f"of the {n} answers to a problem, mean over problems; texts that share a way differ in wording only; "
    note += f"right {ways}: among right answers, over problems that have any; "
    note += "" if known else "this task tells no solution path, so different final answers stand for different ways; "
    note += f"tokens/s: sampling and grading, batches of {sampled.config['rows_per_batch']} rows; speed: beside {PLAIN}"
    return Table("variety", "Variety and speed", heads, rows, note)


def _inputs(diagnosis: Diagnosis) -> Table:
    heads = ["strategy", "explored steps", "displacement", "cosine to anchor", "nearest token changed", "next token changed",
             "KL of the next token"]  # fmt: skip
    rows = [
        [Cell(r["strategy"]), number(r["explored"], 1, " %"), number(r["displacement"], 3), number(r["cosine"], 3),
         number(r["changed"], 1, " %"), number(r["next_changed"], 1, " %"), number(r["next_kl"], 3)]
        for r in _rows(diagnosis.arms) if r["explored"]
    ]  # fmt: skip
    note = ("explored steps: share of all steps; the rest over the kept ones of steps.parquet: distance of the fed vector from "
            "its anchor in units of the anchor's length, cosine, how often another token is nearest, and, beside feeding the "
            "anchor itself there, how often another token is the likeliest next one and KL in nats")  # fmt: skip
    return Table("inputs", "What exploration feeds", heads, rows, note)


def _pairs(diagnosis: Diagnosis) -> Table:
    n = diagnosis.sampled.baseline.correct.shape[1]
    heads = ["strategy", "against", f"mean@{n}", "p", "wins/ties/losses", "solved by both/it/other/none", "p (only)", "broken",
             "mended", "not well-formed"]  # fmt: skip
    rows = [
        [*words(r["strategy"], r["against"]), estimate(r["gap"], r["low"], r["high"], "+"), p_value(r["p"]),
         Cell(f"{r['wins']}/{r['ties']}/{r['losses']}", r["wins"] - r["losses"]),
         Cell(f"{r['both']}/{r['only_it']}/{r['only_other']}/{r['neither']}", r["only_it"] - r["only_other"]),
         p_value(r["p_only"]), Cell(f"{r['broken']} of {r['valid']}", r["broken"]),
         Cell(f"{r['mended']} of {r['answers'] - r['valid']}", r["mended"]),
         estimate(r["ill_change"], r["ill_low"], r["ill_high"], "+")]
        for r in _rows(diagnosis.pairs)
    ]  # fmt: skip
    note = (
        "points of 100, 95 % intervals over problems; solved: problems with a right answer in "
        f"{n} from both strategies, from it only, from the other only, from none, p (only) by an exact McNemar test; p "
        "values adjusted over the rows (Benjamini-Hochberg); broken: answers that are well-formed under the other "
        "strategy with the same random numbers and not under this one, mended: the reverse"
    )
    return Table("pairs", "Problem by problem, with the same random numbers", heads, rows, note)


def _rows(frame: pd.DataFrame) -> Sequence[dict[str, Any]]:
    return frame.to_dict("records")


def _csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False).encode()

"""Pairs of a gold and an answer that are, or are not, equal: a file of them, and other examples of each kind."""

from pathlib import Path

import pytest

from ngrpo.grading.latex import Latex

DATA = Path(__file__).parents[1] / "data"
PAIRS, OTHERS = (
    [line.split("\t") for line in (DATA / name).read_text(encoding="utf-8").split("\n")[1:] if line]
    for name in ("grading_pairs.tsv", "grading_kinds.tsv")
)


@pytest.fixture(scope="module")
def grader():
    made = Latex()
    yield made
    made.workers.close()


def verdicts(grader, pairs):
    return grader.grade([f"so \\boxed{{{answer}}}" for _, answer, *_ in pairs], [gold for gold, *_ in pairs])


def test_every_pair_of_the_file_comes_out_as_it_says(grader):
    assert len(PAIRS) >= 189
    found = [verdict.outcome == "correct" for verdict in verdicts(grader, PAIRS)]
    assert [pair for pair, right in zip(PAIRS, found, strict=True) if right != (pair[2] == "y")] == []


@pytest.mark.parametrize("kind", sorted({kind for *_, kind in OTHERS}))
def test_other_examples_of_each_kind(grader, kind):
    rows = [row for row in OTHERS if row[3] == kind]
    found = [verdict.outcome == "correct" for verdict in verdicts(grader, rows)]
    assert [row for row, right in zip(rows, found, strict=True) if right != (row[2] == "y")] == []

"""Pairs of a gold and an answer that are, or are not, equal: a file of them, and other examples of each kind."""

from pathlib import Path

import pytest

from ngrpo.grading.latex import Latex

FILE = Path(__file__).parents[1] / "data" / "grading_pairs.tsv"
PAIRS = [line.split("\t") for line in FILE.read_text(encoding="utf-8").splitlines()[1:]]


@pytest.fixture(scope="module")
def grader():
    made = Latex(workers=1)
    yield made
    made.workers.close()


def verdicts(grader, pairs):
    return grader.grade([f"so \\boxed{{{answer}}}" for _, answer, *_ in pairs], [gold for gold, *_ in pairs])


def test_every_pair_of_the_file_comes_out_as_it_says(grader):
    assert len(PAIRS) >= 189
    found = [verdict.outcome == "correct" for verdict in verdicts(grader, PAIRS)]
    assert [pair for pair, right in zip(PAIRS, found, strict=True) if right != (pair[2] == "y")] == []

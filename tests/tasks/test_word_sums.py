"""Word sums: the answer that the words tell, arithmetic that no other split has, and what of a completion is read."""

import re
from pathlib import Path

import pytest
import yaml

from ngrpo.tasks.base import Problem
from ngrpo.tasks.word_sums import GAINS, LOSSES, SPLITS, WordSums

CONF = Path(__file__).parents[2] / "conf"
GAINED = {event.split()[0] for event in GAINS}
LOST = {event.split()[0] for event in LOSSES}


def told(question):
    """(a, b, a + b) that a question or a worked example adds up, or undoes, by reading its words."""
    start, change = map(int, re.findall(r"\d+", question.partition("Answer")[0]))
    verb = question.partition(" and ")[2].split()[0]
    assert verb in GAINED | LOST and max(start, change) <= 30
    return (*sorted((start, change)), start + change) if verb in GAINED else (*sorted((start - change, change)), start)


def configured(place):
    node = yaml.safe_load((CONF / place).read_text())
    part = yaml.safe_load((CONF / "task" / "part" / "word_sums.yaml").read_text())
    assert part.pop("_target_") == "ngrpo.tasks.word_sums.WordSums"
    return WordSums(**part, split=node["split"], size=node["size"])


@pytest.mark.parametrize("split", SPLITS)
def test_gold_is_the_answer_that_the_words_tell(split):
    for problem in WordSums(split=split, size=300).problems:
        start, change = map(int, re.findall(r"\d+", problem.question))
        assert int(problem.gold) in (start + change, start - change) and int(problem.gold) in told(problem.question)


def test_no_sum_of_a_benchmark_is_trained_on_in_any_words_nor_given_away_by_the_examples():
    train, test, val = (
        configured(f"{place}.yaml") for place in ("task/word_sums", "benchmark/word_sums", "benchmark/word_sums_val")
    )
    trained, held_out, settings = ({told(p.question) for p in task.problems} for task in (train, test, val))
    assert not trained & held_out and not trained & settings and not settings & held_out
    assert len(test.problems) >= 300 and len({p.question for p in test.problems}) == len(test.problems)
    assert len(held_out) > 100
    examples = train.examples.splitlines()
    assert len(examples) == 4 and not {told(line) for line in examples} & (held_out | settings)


def test_the_examples_are_worked_right_and_end_where_the_question_begins():
    task = configured("benchmark/word_sums.yaml")
    for line in task.examples.splitlines():
        left, operation, right, equals, result = line.partition("Answer: ")[2].split(" ")
        assert int(result) == int(left) + int(right) * (1 if operation == "+" else -1)
        assert equals == "=" and {int(left), int(right), int(result)} == set(told(line))
    assert task.problems[0].prompt == f"{task.examples}{task.problems[0].question} Answer:"


@pytest.mark.parametrize(
    ("completion", "outcome", "extracted"),
    [
        (" 3 + 4 = 7\n", "correct", "7"),
        ("\n 3 + 4 = 7\nTom has 9 pens", "correct", "7"),
        (" 7\n8", "correct", "7"),
        (" 7 + 4 = 11", "wrong", "11"),
        (" 3 - 4 = -7", "wrong", "-7"),
        (" 1 + 6.7", "unparsed", "6.7"),
        (" seven", "unparsed", None),
        ("", "unparsed", None),
        ("\n\n", "unparsed", None),
    ],
)
def test_the_last_number_of_the_first_line_is_the_answer(completion, outcome, extracted):
    (score,) = WordSums(split="test", size=1).score([Problem("x", "", "7")], [completion])
    assert (score.outcome, score.extracted, score.reward) == (outcome, extracted, float(outcome == "correct"))


@pytest.mark.parametrize(
    ("wrong", "key"), [({"split": "dev"}, "split"), ({"size": 0}, "size"), ({"largest": 5}, "largest")]
)
def test_settings_without_problems_are_told_with_the_setting_that_mends_them(wrong, key):
    with pytest.raises(ValueError, match=rf"word_sums: .*; set task\.{key}"):
        WordSums(**{"split": "train", "size": 1, **wrong})

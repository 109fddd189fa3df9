"""What is said aloud where hardly an answer of a benchmark was graded."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from ngrpo.evaluation.benchmarks import Evaluation
from ngrpo.evaluation.first_look import warnings
from ngrpo.models.prompting import Prompting
from ngrpo.rundir import files


def written(path, count, completion="so 4", outcome="unparsed", finish="stop", fine=0):
    """A file of samples, of which `fine` are graded and complete."""
    row = {"completion": completion, "outcome": outcome, "finish_reason": finish}
    good = {"completion": "so</think>4", "outcome": "wrong", "finish_reason": "stop"}
    files.write_parquet([row] * (count - fine) + [good] * fine, path)
    return path


def asked(form="chat", start: str | None = "</think>", template: str | None = "x", limit=96) -> Any:
    prompts = SimpleNamespace(prompting=Prompting(form, start), tokenizer=SimpleNamespace(chat_template=template))
    return SimpleNamespace(prompts=prompts, max_new_tokens=limit)


def task(start: str | None = "</think>") -> Any:
    return SimpleNamespace(name="aime", answer_start=start)


@pytest.mark.parametrize(
    ("rows", "start", "sampler", "said"),
    [
        ({}, "</think>", asked(), "100 % of the answers are unparsed.*model.answer_start=null"),
        ({}, "</think>", asked(start=None), "choose another task"),
        ({"fine": 5}, None, asked("plain"), "95 % of the answers are unparsed.*model.prompt=chat"),
        ({}, None, asked("plain", template=None), "task.instruction="),
        ({"completion": "</think>7"}, "</think>", asked(), "task.instruction="),
    ],
)
def test_where_nothing_is_parsed_the_likeliest_cause_is_said(tmp_path, rows, start, sampler, said):
    (line,) = warnings(written(tmp_path / "a.parquet", 100, **rows), task(start), sampler)
    assert re.search(said, line) and line.startswith("aime: ")


def test_where_half_is_truncated_it_is_room_or_a_stop_that_is_missing(tmp_path):
    (room,) = warnings(written(tmp_path / "a.parquet", 100, finish="length", fine=50), task(), asked())
    assert "50 % of the answers are truncated" in room and "max_new_tokens=192" in room
    graded = written(tmp_path / "b.parquet", 100, outcome="wrong", finish="length")
    assert "model.stop=" in "".join(warnings(graded, task(), asked()))
    both = warnings(written(tmp_path / "c.parquet", 100, finish="length"), task(None), asked())
    assert len(both) == 2 and all("max_new_tokens=192" in line for line in both)


def test_what_is_mostly_graded_is_left_alone_and_only_the_first_look_speaks(tmp_path, capsys):
    fine = written(tmp_path / "a.parquet", 100, finish="length", fine=51)
    assert warnings(fine, task(), asked()) == []
    evaluation = Evaluation(asked(), {"aime": task()}, 1, 1)
    bad = written(tmp_path / "b.parquet", 100)
    for _ in range(2):
        evaluation.warn("aime", bad)
    assert capsys.readouterr().err.count("WARNING: aime: 100 %") == 1

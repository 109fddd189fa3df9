"""Answers and what is said of them, where the engine tells the entropy of its steps and where it does not."""

import math
from dataclasses import replace

import pyarrow.parquet
import pytest
import torch

from ngrpo.exploration.neighbor_mix import NeighborMix
from ngrpo.rollout.join import join, join_rollouts
from ngrpo.rollout.sampling import Answers, padded, rollout_measures, sample_rows
from ngrpo.rundir.recorder import write_samples
from ngrpo.tasks.base import Problem, Score

LABELS = {"run": "r", "benchmark": "train", "exploration": "e", "algorithm": "a", "step": 1, "seed": 0}


@pytest.fixture(scope="module")
def asked(setting, ready, make_rollouts):
    """A strategy and answers to four problems, four each, of which some are right."""
    model, vocabulary = setting
    strategy = ready(NeighborMix(0.5, 3), model, vocabulary)
    rollouts = make_rollouts(model, strategy)
    problems = [Problem(f"p{index}", f"{index}?", "1") for index in range(4)]
    scores = [Score(float(index % 3 == 0), "wrong" if index % 3 else "correct", "1", "") for index in range(16)]
    texts = [" ".join(map(str, row)) for row in rollouts.steps.tokens.tolist()]
    return strategy, Answers(problems, rollouts, texts, scores)


def silent(answers: Answers) -> Answers:
    """The same from an engine that does not tell the entropy."""
    return replace(answers, rollouts=replace(answers.rollouts, entropy=None))


def test_the_mean_entropy_of_an_answer_is_that_of_its_tokens_or_unknown(asked, tmp_path):
    strategy, answers = asked
    told, untold = (sample_rows(a, strategy.vocabulary.stops, LABELS) for a in (answers, silent(answers)))
    for row, (one, other) in enumerate(zip(told, untold, strict=True)):
        length = int(answers.rollouts.lengths[row])
        mean = answers.rollouts.entropy[row, :length].double().mean().item()
        assert one["entropy_mean"] == pytest.approx(mean, rel=1e-12) and other["entropy_mean"] is None
        assert {**one, "entropy_mean": None} == other
    write_samples(untold, tmp_path / "rows.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "rows.parquet")["entropy_mean"].null_count == 16


def test_the_entropy_of_a_step_is_a_mean_over_tokens_or_not_a_number(asked, setting):
    strategy, answers = asked
    table = setting[0].table.detach()
    told, untold = (rollout_measures(a, strategy, table) for a in (answers, silent(answers)))
    mean = answers.rollouts.entropy[answers.rollouts.mask].double().mean().item()
    assert told["entropy"] == pytest.approx(mean, rel=1e-12) and math.isnan(untold["entropy"])
    assert {**told, "entropy": 0} == {**untold, "entropy": 0}


def test_parts_and_joins_of_rollouts_without_entropy_have_none(asked):
    _, answers = asked
    untold = silent(answers)
    assert untold.rollouts.rows(torch.tensor([3, 1])).entropy is None
    assert join([untold, untold], torch.tensor([5, 0])).rollouts.entropy is None
    assert join_rollouts([untold.rollouts, answers.rollouts]).entropy is None, "half of it would be a lie"
    whole = join_rollouts([answers.rollouts, answers.rollouts]).entropy
    assert torch.equal(whole, answers.rollouts.entropy.repeat(2, 1))


def test_prompts_are_padded_on_the_left():
    ids, mask = padded([[5, 6, 7], [8], [9, 4]], 3)
    assert ids.tolist() == [[5, 6, 7], [3, 3, 8], [3, 9, 4]] and ids.dtype == torch.int64
    assert mask.tolist() == [[True, True, True], [False, False, True], [False, True, True]]

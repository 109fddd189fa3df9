"""Answers and what is said of them, where the engine tells the entropy of its steps and where it does not."""

import math
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest
import torch
from strategies import gaussian_noise, neighbor_mix

from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.ranks import Ranks
from ngrpo.rollout.join import join, join_rollouts
from ngrpo.rollout.sampling import Answers, padded, rollout_measures, sample_rows
from ngrpo.rundir.recorder import write_samples
from ngrpo.tasks.base import Problem, Score

LABELS = {"run": "r", "benchmark": "train", "exploration": "e", "algorithm": "a", "step": 1, "seed": 0}


@pytest.fixture(scope="module")
def asked(setting, ready, make_rollouts):
    """A strategy and answers to four problems, four each, of which some are right."""
    model, vocabulary = setting
    strategy = ready(neighbor_mix(0.5, 3), model, vocabulary)
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
    told, untold = (sample_rows(a, strategy.vocabulary, LABELS) for a in (answers, silent(answers)))
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
    assert whole is not None and torch.equal(whole, answers.rollouts.entropy.repeat(2, 1))


def test_prompts_are_padded_on_the_left():
    ids, mask = padded([np.array(row) for row in ([5, 6, 7], [8], [9, 4])], 3)
    assert ids.tolist() == [[5, 6, 7], [3, 3, 8], [3, 9, 4]] and ids.dtype == torch.int64
    assert mask.tolist() == [[True, True, True], [False, False, True], [False, True, True]]


# --- what was explored --------------------------------------------------------------------------------------------------


def rolled(setting, ready, make_rollouts, strategy) -> Answers:
    model, vocabulary = setting
    rollouts = make_rollouts(model, ready(strategy, model, vocabulary))
    problems = [Problem(f"p{index}", f"{index}?", "1") for index in range(4)]
    return Answers(problems, rollouts, [""] * 16, [Score(0.0, "wrong", None, "")] * 16)


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_the_last_token_of_an_answer_is_never_an_explored_step(setting, ready, make_rollouts, rate):
    """Its vector is never fed. At rate 1 every step is chosen, so there are as many as the answer has tokens, less one."""
    answers = rolled(setting, ready, make_rollouts, neighbor_mix(rate, 3))
    rollouts = answers.rollouts
    last = rollouts.steps.explored.gather(1, rollouts.lengths[:, None] - 1).squeeze(1).tolist()
    assert any(last), "else nothing is tested here"
    for row, one in enumerate(sample_rows(answers, setting[1], LABELS)):
        length = int(rollouts.lengths[row])
        assert one["explored_steps"] == sum(rollouts.steps.explored[row, : length - 1].tolist()) < length
        assert rate < 1 or not rollouts.steps.explored[row, :length].all() or one["explored_steps"] == length - 1


def test_the_anchor_weight_is_that_of_the_softmax_over_the_candidates(setting, ready, make_rollouts):
    """alpha(v*) = p(v*) / sum of p over the candidates, in float64 from the logits that each mixed step was drawn from."""
    model, _ = setting
    answers = rolled(setting, ready, make_rollouts, neighbor_mix(0.5, 3, temperature=0.7))
    rollouts, table, strategy = answers.rollouts, model.table.detach(), ready(neighbor_mix(0.5, 3), *setting)
    fed, found, steps = strategy.embed(rollouts.steps, table, rollouts.draws), [], rollouts.steps
    assert steps.mix_ids is not None and steps.mix_weights is not None
    for row, length in enumerate(rollouts.lengths.tolist()):
        prompt = rollouts.prompts[row][rollouts.prompt_mask[row]]
        own = torch.cat((table[prompt], fed[row, : length - 1]))
        logits = model.model(inputs_embeds=own[None]).logits[0, len(prompt) - 1 :].detach().double() / 0.7
        for time in rollouts.steps.explored[row, : length - 1].nonzero().squeeze(1).tolist():
            ids, mixed = steps.mix_ids[row, time], steps.mix_weights[row, time, 0] < 1
            found.append(logits[time][ids].softmax(dim=0)[0].item() if mixed else 1.0)
    measured = rollout_measures(answers, strategy, table)["anchor_weight"]
    assert measured == pytest.approx(sum(found) / len(found), abs=1e-5) and 1 / 3 <= measured < 0.999


@pytest.mark.parametrize(("k", "expected"), [(1, 1.0), (3, None)])
def test_an_anchor_alone_has_all_the_weight(setting, ready, make_rollouts, k, expected):
    answers = rolled(setting, ready, make_rollouts, neighbor_mix(0.5, k))
    measured = rollout_measures(answers, ready(neighbor_mix(0.5, k), *setting), setting[0].table.detach())
    assert measured["anchor_weight"] == expected or (expected is None and measured["anchor_weight"] < 1)


@pytest.mark.parametrize(
    "strategy", [TokenSampling(), gaussian_noise(0.5, 0.3), neighbor_mix(0.0, 3)], ids=["tokens", "noise", "rate 0"]
)
def test_where_no_recipe_is_recorded_there_is_no_anchor_weight(setting, ready, make_rollouts, strategy):
    answers = rolled(setting, ready, make_rollouts, strategy)
    assert "anchor_weight" not in rollout_measures(answers, strategy, setting[0].table.detach())
    assert answers.rollouts.steps.mix_weights is None


def test_a_figure_that_some_ranks_lack_is_a_mean_over_the_others(monkeypatch):
    told = [([1], {"a": 1.0}), ([2], {"a": 3.0, "b": 5.0}), ([3], {"a": 5.0})]
    monkeypatch.setattr(Ranks, "gather", lambda self, value: told)
    assert Ranks(0, 3).merge(*told[0]) == ([1, 2, 3], {"a": 3.0, "b": 5.0})

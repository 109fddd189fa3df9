"""What identifies a row: training never draws a number twice, evaluation draws the same ones before and after."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from ngrpo.evaluation import benchmarks, diagnosis
from ngrpo.ranks import ALONE
from ngrpo.rollout.keys import row_keys
from ngrpo.training import collect


@dataclass
class Problem:
    id: str


TASK: Any = SimpleNamespace(name="task", problems=[Problem(f"p{i}") for i in range(6)])


@pytest.fixture
def asked(monkeypatch):
    """The row keys of every call that would have sampled."""
    found: list[list[int]] = []

    def answer(sampler, task, problems, identities, prompts=None):
        found.append(row_keys(identities).tolist())
        raise NotImplementedError  # nothing is sampled

    for module in (collect, benchmarks):
        monkeypatch.setattr(module, "answer", answer)
    return found


def trained(asked, seed: int, step: int, draw: int) -> list[int]:
    config: Any = SimpleNamespace(seed=seed, prompts_per_step=6, group_size=4)
    with pytest.raises(NotImplementedError):
        collect._draw(SimpleNamespace(), TASK, config, (seed, step, draw), ALONE)  # pyright: ignore[reportArgumentType]
    return asked[-1]


def evaluated(asked, tmp_path, seed: int, step: int, benchmark: str = "bench") -> list[int]:
    labels, sampler = {"seed": seed, "benchmark": benchmark, "step": step}, SimpleNamespace()
    target = tmp_path / f"{benchmark}-{step}.parquet"
    with pytest.raises(NotImplementedError):
        next(benchmarks.evaluate_benchmark(sampler, TASK, [(0, 6)], 4, target, labels))  # pyright: ignore
    return asked[-1]


@pytest.mark.parametrize("other", [(1, 1, 0), (0, 2, 0), (0, 1, 1)], ids=["seed", "step", "draw"])
def test_training_draws_every_number_once(asked, other):
    first, second = trained(asked, 0, 1, 0), trained(asked, *other)
    assert len({*first, *second}) == 2 * 6 * 4, "problems and samples of a step differ, and so do two steps"


def test_an_evaluation_repeats_its_numbers_before_and_after_training_and_in_nothing_else(asked, tmp_path):
    before, after = (evaluated(asked, tmp_path, 0, step) for step in (0, 50))
    assert before == after and len({*before}) == 6 * 4
    for seed, benchmark in ((1, "bench"), (0, "other")):
        assert not {*before} & {*evaluated(asked, tmp_path, seed, 0, benchmark)}


def test_strategies_of_a_diagnosis_answer_with_the_same_numbers_and_samples_with_their_own():
    draw: Any = SimpleNamespace(seed=0, task=TASK, n=4)
    found = row_keys(diagnosis.identities(draw, TASK.problems)).tolist()
    assert len({*found}) == 6 * 4, "no strategy is asked for, so that two of them get the same"

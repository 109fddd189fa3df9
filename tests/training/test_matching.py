"""The temperature of the control that is as uncertain as a strategy: what is found, and that a run keeps what it found."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet
import pytest
import torch
import warm

from ngrpo.exploration.token_sampling import TokenSampling
from ngrpo.rollout.engines.transformers import TransformersEngine
from ngrpo.rollout.sampling import Sampler
from ngrpo.rundir.schema import checksum_of
from ngrpo.training.matching import CLOSE, FARTHEST, SAMPLES, Matching, Unmatched, crossing

LIMIT = 12
SMALL = [
    "exploration=entropy_temperature", "exploration.match=neighbor_mix", "mix_rate=0.5", "exploration.problems=2",
    "trainer=smoke", "trainer.threads=1", "benchmark=story_math", "problems=2", "n=2", "max_new_tokens=12",
]  # fmt: skip


@pytest.fixture
def matching(setting, make_strategy, make_prompts):
    """`matching(other)`: what matches plain sampling to another strategy, on a small model and 8 problems."""
    model, vocabulary = setting
    prompts, mask = make_prompts(8)
    problems = [SimpleNamespace(prompt=str(row), is_message=False, id=str(row)) for row in range(8)]
    ids = {(str(row), False): prompts[row, mask[row]].numpy() for row in range(8)}
    asked = SimpleNamespace(ids=ids, tokenizer=SimpleNamespace(pad_token_id=0))

    def make(other) -> Matching:
        own = make_strategy("token_sampling", model, vocabulary)
        engine = TransformersEngine()
        samplers = [Sampler(engine, strategy, asked, LIMIT) for strategy in (own, other)]  # pyright: ignore
        task = SimpleNamespace(problems=problems, name="own")
        return Matching(*samplers, "other", task, seed=0, rows=32, micro_rows=16)  # pyright: ignore

    return make


@pytest.mark.parametrize("zero", [0.3, 0.7, 1.0, 1.01, 2.9, 7.0])
@pytest.mark.parametrize("start", [0.6, 1.0])
def test_a_crossing_is_found_wherever_it_is_in_reach(zero, start):
    found = crossing(lambda t: math.log(t / start / zero), start)
    assert found is not None and abs(found / start - zero) <= CLOSE


@pytest.mark.parametrize("zero", [1 / (2 * FARTHEST), 2 * FARTHEST])
def test_beyond_reach_nothing_is_found(zero):
    assert crossing(lambda t: t - zero, 1.0) is None


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.4])
def test_plain_sampling_at_a_temperature_is_matched_by_that_temperature(setting, make_strategy, matching, temperature):
    model, vocabulary = setting
    both = matching(make_strategy("token_sampling", model, vocabulary, temperature))
    found = both.settle(model)
    assert found["temperature"] == both.sampler.strategy.temperature == pytest.approx(temperature, abs=2 * CLOSE)
    assert found["answers"] == 64 and found == matching(both.other.strategy).settle(model), "the same again"


def test_the_entropies_are_those_of_what_is_drawn_from(setting, make_strategy, matching):
    """Against every answer read alone, without a cache, in float64."""
    model, vocabulary = setting
    both = matching(make_strategy("neighbor_mix", model, vocabulary, rate=0.9, k=4))
    found = both.settle(model)
    total, tokens = 0.0, 0
    identities = [("match", 0, problem.id, sample) for problem in both.task.problems for sample in range(SAMPLES)]
    rollouts = both.sampler.generate(both.task.problems, identities)
    for row in range(len(identities)):
        length = int(rollouts.lengths[row])
        prompt = rollouts.prompts[row, rollouts.prompt_mask[row]]
        line = torch.cat((prompt, rollouts.steps.tokens[row, :length]))
        with torch.no_grad():
            logits = model.model(input_ids=line[None]).logits[0, len(prompt) - 1 : -1].double()
        p = (logits / found["temperature"]).softmax(-1)
        total, tokens = total - (p * p.log()).sum().item(), tokens + length
    assert found["entropy"] == pytest.approx(total / tokens, abs=1e-5)
    assert found["entropy"] == pytest.approx(found["entropy_of_strategy"], rel=0.02)


def test_what_is_known_is_not_looked_for_again(setting, make_strategy, matching):
    model, vocabulary = setting
    both = matching(make_strategy("token_sampling", model, vocabulary))
    run = SimpleNamespace(record={"matched": {"temperature": 1.7}})
    deaf = replace(both, sampler=replace(both.sampler, engine=None), run=run)  # pyright: ignore
    assert deaf.settle(model) == {"temperature": 1.7} and both.sampler.strategy.temperature == 1.7


def test_an_entropy_out_of_reach_is_told_in_one_line(setting, make_strategy, matching):
    model, vocabulary = setting
    other = TokenSampling(temperature=1e4)
    other.bind(vocabulary, model.table.detach())
    with pytest.raises(Unmatched, match=r"exploration.match=other: has an entropy .*temperature=<value>"):
        matching(other).settle(model)


def test_a_run_goes_on_with_the_temperature_that_it_began_with(tmp_path):
    log, place = tmp_path / "log", tmp_path / "run"
    command = (*SMALL, f"hydra.run.dir={place}", "steps=1")
    warm.finish("train.py", log, *command)
    record, begun = json.loads((place / "run.json").read_text()), read_train(place)
    assert record["matched"]["strategy"] == "neighbor_mix" and record["matched"]["answers"] == 16
    assert record["matched"]["temperature"] != 1 and "nats per token" in log.read_text()
    record |= {"status": "interrupted", "checksums": {}} | {"matched": record["matched"] | {"temperature": 3.0}}
    shutil.rmtree(place)  # as if it had been stopped before its first step, with another temperature
    place.mkdir()
    (place / "run.json").write_text(json.dumps(record | {"checksum": checksum_of(record)}))
    warm.finish("train.py", log, *command)
    assert "nats per token" not in log.read_text()
    assert json.loads((place / "run.json").read_text())["matched"] == record["matched"]
    assert read_train(place) != begun, "it is hotter"


def read_train(place: Path) -> list[str]:
    return pyarrow.parquet.read_table(place / "samples/train/1.parquet")["completion"].to_pylist()


def test_an_evaluation_and_a_diagnosis_are_matched_too_and_pair_the_strategy_with_its_control(tmp_path):
    sizes = ["exploration.problems=2", "problems=2", "n=2", "max_new_tokens=12", "mix_rate=0.5"]
    place = tmp_path / "evaluated"
    chosen = ["exploration=entropy_temperature", "model=tiny", "benchmark=story_math"]
    warm.finish("evaluate.py", tmp_path / "log", *chosen, *sizes, f"hydra.run.dir={place}")
    assert json.loads((place / "run.json").read_text())["matched"]["answers"] == 16
    place = tmp_path / "diagnosed"
    chosen = ["strategies=[token_sampling,neighbor_mix,entropy_temperature]", "group_size=2"]
    text = warm.finish("diagnose.py", tmp_path / "log", *chosen, *sizes, f"hydra.run.dir={place}")
    assert json.loads((place / "run.json").read_text())["matched"]["strategy"] == "neighbor_mix"
    assert any(line.split()[:2] == ["neighbor_mix", "entropy_temperature"] for line in text.splitlines())
